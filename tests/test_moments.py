"""Batch moments against closed forms and torch.var_mean in double precision."""

import pytest
import torch

from dfkd.ops.moments import moments


@pytest.mark.parametrize("shape", [(7, 3), (5, 4, 6), (6, 5, 4, 3), (2, 3, 4, 2, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_var_mean(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 3
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    var, mean = torch.var_mean(x.double(), dim=[0, *range(2, x.dim())], correction=0)
    found = moments(x)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.var.double(), var, rtol=1e-4, atol=1e-5)


def test_gradient() -> None:
    x = torch.randn(4, 3, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(moments(x)), (x,))


def test_gradient_equals_autograd_of_var_mean() -> None:
    x = torch.randn(6, 4, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(2, 4)
    found = moments(x)
    (ours,) = torch.autograd.grad((found.mean * weight[0] + found.var * weight[1]).sum(), x)
    var, mean = torch.var_mean(x, dim=[0, 2, 3], correction=0)
    (theirs,) = torch.autograd.grad((mean * weight[0] + var * weight[1]).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_a_constant_channel_has_no_variance() -> None:
    found = moments(torch.full((4, 2, 3, 3), 0.25))
    assert torch.equal(found.mean, torch.full((2,), 0.25))
    assert torch.equal(found.var, torch.zeros(2))


def test_half_precision_is_read_in_float32() -> None:
    x = torch.randn(8, 3, 4, 4).bfloat16()
    found = moments(x)
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, x.float().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_compiles_as_one_graph() -> None:
    def total(x: torch.Tensor) -> torch.Tensor:
        return moments(x).var.sum()

    x = torch.randn(4, 3, 4, 4, requires_grad=True)
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    (ours,) = torch.autograd.grad(compiled(x), x)
    (theirs,) = torch.autograd.grad(total(x), x)
    torch.testing.assert_close(ours, theirs)
