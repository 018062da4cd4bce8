"""Between stored bytes and images in [0, 1]."""

import torch
from torch import Tensor

from dfkd.types import Bytes, Images

__all__ = ["as_bytes", "as_images"]


def as_bytes(images: Images) -> Bytes:
    """Images in [0, 1] as uint8, rounded to the nearest of 256 levels; values outside are clipped."""
    return images.detach().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def as_images(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Images:
    """uint8 (n, c, h, w) as images in [0, 1]."""
    return pixels.to(dtype).div_(255)
