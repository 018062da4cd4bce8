"""The convolution of a doubled map, against doubling and convolving."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.ops.doubling import DoublingConv, doubled_conv, folding_matrix


@pytest.mark.parametrize("side", [1, 3, 5, 7])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_doubling_and_convolving_with_all_gradients(side: int, last: bool, bias: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(3, 5, side, side, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    b = torch.randn(3, dtype=torch.float64, requires_grad=True) if bias else None
    given = [x, weight] if b is None else [x, weight, b]
    want = F.conv2d(F.interpolate(x, scale_factor=2), weight, b, padding=side // 2)
    got = doubled_conv(x, weight, b, folding_matrix(side))
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=layout)
    upstream = torch.randn_like(want)
    for ours, theirs in zip(
        torch.autograd.grad(got, given, upstream), torch.autograd.grad(want, given, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_every_weight_is_used_once_for_every_place() -> None:
    for side in (1, 3, 5):
        fold = folding_matrix(side)
        assert torch.equal(fold.sum(0), torch.full((side**2,), 4.0))
        assert torch.equal(fold.unique(), torch.tensor([0.0, 1.0])) or side == 1
    with pytest.raises(ValueError, match="odd"):
        folding_matrix(4)


def test_the_layer_has_the_weights_of_a_convolution() -> None:
    torch.manual_seed(0)
    ours = DoublingConv(4, 6)
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    assert list(ours.state_dict()) == ["weight"]
    assert torch.equal(ours.weight, plain.weight)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(ours(x), plain(F.interpolate(x, scale_factor=2)))


def test_it_costs_half_of_the_products_or_less() -> None:
    x = torch.randn(2, 8, 16, 16)
    for side, most in ((3, 4 / 9 * (17 / 16) ** 2), (5, 9 / 25)):
        weight = torch.randn(4, 8, side, side)
        with FlopCounterMode(display=False) as plain:
            F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=side // 2)
        with FlopCounterMode(display=False) as ours:
            doubled_conv(x, weight, None, folding_matrix(side))
        sums = 2 * weight.numel() * 4 * (side // 2 + 1) ** 2  # adding the weights up: once, whatever the batch
        assert (ours.get_total_flops() - sums) / plain.get_total_flops() == pytest.approx(most)


@torch.no_grad()
def test_half_precision_rounds_the_sums_once() -> None:
    torch.manual_seed(1)
    x, layer = torch.randn(4, 16, 8, 8), DoublingConv(16, 8)
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
        plain = F.conv2d(F.interpolate(x, scale_factor=2), layer.weight, padding=1)
    assert got.dtype == torch.bfloat16
    ours, theirs = (float((y.float() - want).norm() / want.norm()) for y in (got, plain))
    assert ours < 1.2 * theirs


def test_it_compiles_to_the_same() -> None:
    layer, x = DoublingConv(3, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    want = layer(x)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    got = compiled(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x), torch.autograd.grad(want.square().sum(), x))
