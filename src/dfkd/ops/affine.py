"""Random rotation, scaling and translation of a whole batch, each image by its own draw (STTS's augmentation)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.types import Images

__all__ = ["affine", "draw_affine"]


def draw_affine(
    n: int, generator: torch.Generator, degrees: float = 15.0, scale: float = 0.1, shift: float = 0.1
) -> Tensor:
    """``n`` matrices (n, 2, 3) for :func:`affine`, uniform within the given limits, on the generator's device.

    A matrix turns and scales distances in pixels; its last column is in halves of the image's sides.

    Args:
        n: images.
        generator: random stream.
        degrees: largest rotation, either way.
        scale: images become between ``1 - scale`` and ``1 + scale`` times as large.
        shift: largest translation, either way and along both axes, as a share of the side.
    """
    u = torch.rand(4, n, generator=generator, device=generator.device) * 2 - 1
    angle, size = u[0] * math.radians(degrees), 1 / (1 + u[1] * scale)
    cos, sin = angle.cos() * size, angle.sin() * size
    x, y = u[2] * 2 * shift, u[3] * 2 * shift  # the coordinates run from -1 to 1
    rows = torch.stack([cos, -sin, x, sin, cos, y])
    return rows.T.reshape(n, 2, 3)


def affine(images: Images, matrices: Tensor) -> Images:
    """Read every image at the places its matrix sends the output's places to: bilinear, black (0) outside.

    Coordinates are distances from the middle of the image in pixels, x before y; a matrix's last column, the shift, is
    in halves of the image's sides. For square images that is the matrix of ``torch.nn.functional.affine_grid``, whose
    coordinates run from -1 to 1 between the outer edges of the outer pixels.
    """
    h, w = images.shape[2:]
    if h != w:  # a half of a side is not as long along both axes
        matrices = matrices.clone()
        matrices[:, 0, 1] *= h / w
        matrices[:, 1, 0] *= w / h
    grid = F.affine_grid(matrices.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
