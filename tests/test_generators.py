"""Generators: shapes, parameter counts, taps, and noisy layers against loops of ``nn.Linear``."""

import pytest
import torch
from torch import Tensor, nn

from dfkd.nets.generators import ConvGenerator, DeepGenerator, NoisyLayer, TanhGenerator, redraw


def by_hand(layer: NoisyLayer, e: Tensor) -> Tensor:
    """The same computation with one ``nn.Linear`` per group of rows."""
    normed = layer.norm(e)
    parts = []
    for i, rows in enumerate(normed.split(layer.group)):
        linear = nn.Linear(e.shape[1], layer.weight.shape[2]).to(e.dtype)
        with torch.no_grad():
            linear.weight.copy_(layer.weight[i].T)
            linear.bias.copy_(layer.bias[i, 0])
        parts.append(linear(rows))
    return torch.cat(parts)


@pytest.mark.parametrize(("rows", "group"), [(12, 4), (10, 4), (3, 4), (5, 1), (7, 7)])
@pytest.mark.parametrize("norm", [True, False])
def test_a_noisy_layer_is_a_linear_layer_per_group(rows: int, group: int, norm: bool) -> None:
    layer = NoisyLayer(6, 9, rows, group, norm).double()
    with torch.no_grad():
        layer.bias.normal_()
    e = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True)
    out = layer(e)
    assert out.shape == (rows, 9)
    assert layer.weight.shape[0] == -(-rows // group)
    torch.testing.assert_close(out, by_hand(layer, e))
    weights = torch.randn_like(out)
    mine = torch.autograd.grad((out * weights).sum(), e)[0]
    torch.testing.assert_close(mine, torch.autograd.grad((by_hand(layer, e) * weights).sum(), e)[0])


def test_redrawn_weights_are_standard_normal_and_biases_zero() -> None:
    layer = NoisyLayer(50, 40, 20, 5)
    old = layer.weight.clone()
    with torch.no_grad():
        layer.bias.fill_(3)
        nn.init.constant_(layer.norm.weight, 2)  # type: ignore[arg-type]
    layer.redraw()
    assert not torch.equal(layer.weight, old)
    assert layer.bias.abs().sum() == 0
    drawn = layer.weight.detach()
    assert float(drawn.mean()) == pytest.approx(0, abs=0.06)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    assert (layer.norm.weight == 2).all()  # type: ignore[union-attr]
    redraw(layer)
    assert (layer.norm.weight == 1).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [ConvGenerator, DeepGenerator])
def test_redraw_is_building_again(kind: type[ConvGenerator | DeepGenerator]) -> None:
    torch.manual_seed(1)
    net = kind(5, (1, 16, 16), 4)
    for tensor in net.state_dict().values():
        tensor.fill_(7)
    torch.manual_seed(2)
    redraw(net)
    torch.manual_seed(2)
    fresh = kind(5, (1, 16, 16), 4)
    for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 8, 12)])
def test_images_of_any_size_that_is_a_multiple_of_four(image_shape: tuple[int, int, int]) -> None:
    net = ConvGenerator(10, image_shape, 4)
    images = net(torch.randn(3, 10)).detach()
    assert images.shape == (3, *image_shape)
    assert 0 <= float(images.min()) < float(images.max()) <= 1


@pytest.mark.parametrize("side", [64, 224])
def test_the_deep_generator(side: int) -> None:
    with torch.device("meta"):
        net = DeepGenerator(1000, (3, side, side))
        assert net(torch.randn(2, 1000)).shape == (2, 3, side, side)
    start = 128 * (side // 16) ** 2
    # conv 128, x2, conv 128, x2, conv 64, x2, conv 64, x2, conv 64, and the last one to 3 channels
    convolutions = 9 * (2 * 128 * 128 + 128 * 64 + 2 * 64 * 64 + 64 * 3) + 3
    norms = 2 * (2 * 128 + 3 * 64)
    assert sum(p.numel() for p in net.parameters()) == 1001 * start + convolutions + norms


def test_the_shallow_generator_has_the_published_size() -> None:
    with torch.device("meta"):
        net = ConvGenerator(1000, (3, 32, 32))
    linear = 1000 * 8192 + 8192  # 8.2 M, as the fact sheet has it
    rest = 2 * 128 + 9 * 128 * 128 + 2 * 128 + 9 * 128 * 64 + 2 * 64 + 9 * 64 * 3 + 3
    assert sum(p.numel() for p in net.parameters()) == linear + rest


def test_every_tap_decodes_to_the_same_images() -> None:
    net = ConvGenerator(6, (1, 8, 8), 4).eval()
    code = torch.randn(2, 6)
    images, features = net(code), net.features(code)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 2, 2), (8, 4, 4), (4, 8, 8)]
    for tap in range(net.taps):
        assert torch.equal(net.decode(features[tap], tap), images)


def ordinary(net: TanhGenerator) -> nn.Sequential:
    """DAFL's generator from PyTorch's own layers, with the same weights."""
    a, h, w = net.start
    convs = [layer for layer in net.blocks if isinstance(layer, nn.Conv2d)]
    norm1, norm2 = (layer for layer in net.blocks if isinstance(layer, nn.BatchNorm2d))
    plain1, plain2 = (nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1) for conv in convs)
    for plain, conv in zip((plain1, plain2), convs, strict=True):
        plain.load_state_dict(conv.state_dict())
    head = [net.project, nn.Unflatten(1, (a, h, w)), net.norm, nn.Upsample(scale_factor=2), plain1, norm1]
    tail = [nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), plain2, norm2, nn.LeakyReLU(0.2), *net.paint]
    return nn.Sequential(*head, *tail)


def test_dafls_generator_paints_normalised_images() -> None:
    net = TanhGenerator(6, (3, 8, 12), 5)
    z = torch.randn(40, 6)
    x = net(z)
    assert x.shape == (40, 3, 8, 12)
    torch.testing.assert_close(x.transpose(0, 1).flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.transpose(0, 1).flatten(1).var(1), torch.ones(3), atol=0.01, rtol=0)
    torch.testing.assert_close(x, ordinary(net)(z), atol=1e-4, rtol=1e-4)
    assert [layer.eps for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)] == [1e-5, 0.8, 0.8, 1e-5]
    wide = TanhGenerator(1000, (3, 32, 32))
    assert sum(p.numel() for p in wide.parameters()) == 1001 * 8192 + 256 + 147_584 + 256 + 73_792 + 128 + 1731


def test_the_large_generator() -> None:
    net = ConvGenerator(512, (3, 32, 32), first=4)
    norms = 2 * (256 + 128 + 64)
    assert sum(p.numel() for p in net.parameters()) == 513 * 256 * 64 + 9 * (256 * 128 + 128 * 64) + 1731 + norms
    assert net(torch.randn(2, 512)).shape == (2, 3, 32, 32)
    assert [tuple(f.shape[1:]) for f in net.features(torch.randn(2, 512))] == [(256, 8, 8), (128, 16, 16), (64, 32, 32)]
