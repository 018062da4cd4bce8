"""Sizes of networks: parameters and multiply-adds."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dfkd.errors import UserError


def count_parameters(net: nn.Module) -> int:
    """Count parameters, trainable or frozen, shared ones once, buffers (such as BatchNorm's averages) not."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Count the multiply-adds of convolutions and matrix products for one image.

    Runs ``net`` once in eval mode on a black image of its own device and floating type, and puts the train/eval mode of
    every submodule back.

    Args:
        net: maps (1, c, h, w) to anything.
        image_shape: (c, h, w).

    Returns:
        The number, or None where the network fails while its operations are counted.

    Raises:
        UserError: ``image_shape`` is not three positive numbers.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise UserError(f"count_macs needs an image shape (c, h, w), got {image_shape}; give three positive sizes")
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, *image_shape, device=like.device, dtype=like.dtype)
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        # With gradients: torch's counter fails without them where a module is called with a parameter.
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            net(image)
    except Exception:  # the network is the user's, and no run depends on this number
        return None
    finally:
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops()) // 2
