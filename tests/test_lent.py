"""A lent network comes back as it was: layout, device and precision of its numbers, modes, gradient flags."""

import torch
from torch import Tensor, nn

from dfkd.lent import loan_of, put_back


class Network(nn.Module):
    """A convolution and its BatchNorm, with fresh weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def mean_of(net: Network) -> Tensor:
    """The running mean, which is a new tensor after each move."""
    mean = net.bn.running_mean
    assert mean is not None
    return mean


def test_weights_come_back_in_their_memory_format_and_nothing_is_held() -> None:
    net = Network()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert net.conv.bias is not None
    net.conv.bias.requires_grad_(False)
    values = {name: value.clone() for name, value in net.state_dict().items()}
    loan = loan_of(net.eval())
    assert all(layout.original is None for _, _, layout, _ in loan.parameters)
    net.train().requires_grad_(True).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    put_back(loan)
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(module.training for module in net.modules())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, False, True, True]
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())


def test_buffers_that_moved_keep_what_they_learnt() -> None:
    """As on a GPU, where ``to`` makes new buffers; calibration writes into those."""
    net = Network()
    loan = loan_of(net)
    net._apply(torch.clone)
    mean_of(net).fill_(7)
    put_back(loan)
    assert torch.equal(mean_of(net), torch.full((4,), 7.0))


def test_double_precision_comes_back_exactly() -> None:
    net = Network().double()
    net.conv.weight.grad = torch.rand_like(net.conv.weight)
    values = {name: value.clone() for name, value in net.state_dict().items()}
    gradient = net.conv.weight.grad.clone()
    loan = loan_of(net)
    net.float()
    put_back(loan)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.conv.weight.grad, gradient)
    assert net.conv.weight.grad.dtype == torch.float64
