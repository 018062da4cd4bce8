"""What a probe reads, against NumPy and layer-by-layer recomputation without hooks."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.nets.zoo import ZOO, build
from dfkd.ops.moments import moments
from dfkd.types import Readout

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.8)


class Small(nn.Module):
    """Two convolutions whose every intermediate result can be recomputed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 8)
        self.norm3 = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 5)

    def by_hand(self, x: Tensor) -> dict[str, Tensor]:
        first = self.conv1(x)
        second = self.conv2(torch.relu(self.norm1(first)))
        last = torch.relu(self.norm2(second))
        third = self.fc(last.mean(dim=(2, 3)))
        features = torch.relu(self.norm3(third))
        return {"bn1": first, "bn2": second, "bn3": third, "f": features, "y": self.head(features)}

    def forward(self, x: Tensor) -> Tensor:
        return self.by_hand(x)["y"]


def a_pair(**changes: object) -> tuple[Small, Probe]:
    torch.manual_seed(5)
    net = Small()
    for norm in (net.norm1, net.norm2, net.norm3):
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    settings: dict[str, object] = {"head": "head", "stages": ["conv1", "conv2"], **changes}
    return net, Probe(net, mean=MEAN, std=STD, **settings).freeze()  # type: ignore[arg-type]


def some_images(n: int = 6, side: int = 8) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(8))


def normalised(images: Tensor) -> Tensor:
    return torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)


def test_everything_read_is_what_the_layers_saw() -> None:
    net, probe = a_pair(channels_last=False)
    images = some_images()
    seen = probe(images, stats=True, maps=True, means=True)
    oracle = copy.deepcopy(probe.release())
    assert isinstance(oracle, Small)
    wanted = oracle.by_hand(normalised(images))
    torch.testing.assert_close(seen.logits, wanted["y"])
    torch.testing.assert_close(seen.features, wanted["f"])
    for got, name in zip(seen.maps, ("bn1", "bn2"), strict=True):
        torch.testing.assert_close(got, wanted[name])
    assert len(seen.stats) == 3
    for (mean, var), name in zip(seen.stats, ("bn1", "bn2", "bn3"), strict=True):
        x = wanted[name].double().numpy()
        axes = (0, 2, 3)[: x.ndim - 1]
        np.testing.assert_allclose(mean.numpy(), x.mean(axis=axes), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(var.numpy(), x.var(axis=axes), rtol=1e-4, atol=1e-5)
    for means, name in zip(seen.means, ("bn1", "bn2", "bn3"), strict=True):
        x = wanted[name].double().numpy()
        np.testing.assert_allclose(means.numpy(), x.reshape(*x.shape[:2], -1).mean(axis=2), rtol=1e-4, atol=1e-5)
    for (mean, var), norm in zip(seen.stored, (net.norm1, net.norm2, net.norm3), strict=True):
        assert mean is norm.running_mean
        assert var is norm.running_var


def test_train_mode_statistics_are_the_ones_batch_norm_uses() -> None:
    net, probe = a_pair(channels_last=False)
    net.norm1.momentum = 1.0
    probe.train()
    (mean, var), *_ = probe(some_images(), stats=True).stats
    n = 6 * 8 * 8
    torch.testing.assert_close(mean, net.norm1.running_mean)
    torch.testing.assert_close(var * n / (n - 1), net.norm1.running_var)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (4, 3, 5, 2), (2, 3, 4, 2, 2)])
def test_moments_of_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    mean, var = moments(x)
    flat = x.transpose(0, 1).reshape(3, -1).numpy()
    np.testing.assert_allclose(mean.numpy(), flat.mean(axis=1))
    np.testing.assert_allclose(var.numpy(), flat.var(axis=1))
    assert moments(x.bfloat16()).mean.dtype == torch.float32


def test_moments_have_gradients() -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: tuple(moments(t)), (x,))


def test_normalisation_and_back() -> None:
    _, probe = a_pair()
    images = some_images()
    torch.testing.assert_close(probe.normalise(images), normalised(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(probe.denormalise(probe.normalise(images)), images)
    torch.testing.assert_close(probe.read_normalised(normalised(images)).logits, probe(images).logits)


def test_nothing_is_read_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _, probe = a_pair()
    asked = probe(some_images(), stats=True, maps=True)
    assert (len(asked.stats), len(asked.maps)) == (3, 2)

    def forbidden(x: Tensor) -> None:
        raise RuntimeError("read although nobody asked")

    monkeypatch.setattr("dfkd.engine.probe.moments", forbidden)
    plain = probe(some_images())
    assert (plain.stats, plain.maps) == ((), ())
    assert torch.equal(plain.logits, asked.logits)


def test_a_probe_keeps_nothing_after_a_pass() -> None:
    _, probe = a_pair()
    probe(some_images(), stats=True, maps=True)
    kept = [value for value in vars(probe).values() if isinstance(value, list) and value and value is not probe.norms]
    assert all(not isinstance(item, Tensor | Readout | tuple) for value in kept for item in value)


def test_a_pass_that_fails_leaves_the_next_one_clean() -> None:
    _, probe = a_pair()
    with pytest.raises(RuntimeError):
        probe(torch.rand(2, 3, 8, 8, 1), stats=True, maps=True)
    seen = probe(some_images())
    assert (seen.stats, seen.maps) == ((), ())
    assert len(seen.features) == 6


def test_layouts_agree() -> None:
    _, last = a_pair(channels_last=True)
    _, first = a_pair(channels_last=False)
    a, b = last(some_images(), stats=True, maps=True), first(some_images(), stats=True, maps=True)
    torch.testing.assert_close(a, b)
    assert last.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr,operator]


def test_layers_of_three_dimensions_stay_contiguous() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.deep, self.head = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.deep(self.flat(x)[:, None]).flatten(1)[:, :64])
            return y

    net = Volume()
    with torch.no_grad():
        expected = net(normalised(some_images()))
    seen = Probe(net, mean=MEAN, std=STD).freeze()(some_images())
    torch.testing.assert_close(seen.logits, expected)
    assert net.deep.weight.is_contiguous()
    assert net.flat.weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_close_and_reads_full_precision() -> None:
    _, half = a_pair(precision="bf16")
    _, full = a_pair()
    a, b = half(some_images(), stats=True, maps=True), full(some_images(), stats=True, maps=True)
    assert {a.logits.dtype, a.features.dtype, *(t.dtype for pair in a.stats for t in pair)} == {torch.float32}
    torch.testing.assert_close(a.logits, b.logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(a.stats, b.stats, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("asked", [False, True])
def test_a_pass_is_one_graph(asked: bool) -> None:
    _, probe = a_pair()
    torch._dynamo.reset()
    read = torch.compile(lambda x: probe(x, stats=asked, maps=asked), fullgraph=True, backend="eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    got = read(some_images())
    torch.testing.assert_close(got, probe(some_images(), stats=asked, maps=asked))
    read(some_images())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


def test_release_leaves_no_hooks() -> None:
    net, probe = a_pair()
    hooks = [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks
    assert probe.release() is net
    assert not [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("name", ["wrn16-1", "resnet8", "vgg8", "lenet5", "mobilenetv2-half", "shufflenetv2"])
def test_networks_of_the_zoo(name: str) -> None:
    entry = ZOO[name]
    net = build(name, 10, 3).net
    probe = Probe(net, mean=MEAN, std=STD, head=entry.head, stages=entry.stages).freeze()
    seen = probe(some_images(2, 32), stats=True, maps=True)
    assert len(seen.maps) == len(entry.stages)
    assert len(seen.stats) == len([m for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    head = probe.head
    assert head is not None
    torch.testing.assert_close(head(seen.features), seen.logits)


def test_norms_without_running_statistics_do_not_count() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(256, 2)
    )
    probe = Probe(net, mean=MEAN, std=STD)
    assert probe.norms == []
    assert probe.head is None
    seen = probe(some_images(), stats=True)
    assert seen.stats == ()
    assert seen.features is seen.logits


def test_bad_input_is_named() -> None:
    net = Small()
    with pytest.raises(UserError, match="as many stds as means, got 3 means and 2 stds"):
        Probe(net, mean=MEAN, std=STD[:2])
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="every std above 0"):
            Probe(net, mean=MEAN, std=(0.5, bad, 0.5))
    with pytest.raises(UserError, match="named by its path, got 'classifier'; its top-level layers are: conv1"):
        Probe(net, mean=MEAN, std=STD, head="classifier")
