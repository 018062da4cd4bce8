"""Difference hashes: D3K's differentiable D-Dhash, and the classical one for finding near-duplicates."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dfkd.errors import UserError
from dfkd.types import Features, Images, Scalar

StraightThrough = Literal["literal", "difference"]
Pairing = Literal["all", "index", "random"]
HashForm = Literal["square", "xor"]
Bits = Bool[Tensor, "n b"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's "L" uses


def to_gray(images: Images) -> Float[Tensor, "n 1 h w"]:
    """Brightness: luma of 3 channels, 1 channel unchanged, the plain mean of any other number."""
    if images.shape[1] == 3:
        red, green, blue = images.unbind(dim=1)
        return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
    return images.mean(dim=1, keepdim=True)


def dhash_codes(images: Images, pool: int = 4, ste: StraightThrough = "literal", strength: float = 1.0) -> Features:
    """D-Dhash codes of images in [0, 1] (D3K, equations 7 to 13): 0 or 1, with a surrogate gradient.

    Average pooling by ``pool``, grey, row-major flattening to L numbers, minus their mean; bit i of L - 1
    says whether number i exceeds number i + 1 (comparisons run across row ends). Backward, bit i sends
    ``strength`` times its gradient to number i (``"literal"``, equation 13), or that to i and its negative
    to i + 1 (``"difference"``).
    """
    flat = to_gray(F.avg_pool2d(images, pool)).flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    bits = (flat[:, :-1] > flat[:, 1:]).to(images.dtype)  # subtracting the mean changes no bit
    current, following = centred[:, :-1], centred[:, 1:]
    surrogate = strength * (current if ste == "literal" else current - following)
    return bits + (surrogate - surrogate.detach())  # the bracket is exactly 0


def dhash_loss(
    new_codes: Float[Tensor, "n b"],
    bank_codes: Float[Tensor, "m b"],
    pairing: Pairing = "all",
    generator: torch.Generator | None = None,
    form: HashForm = "square",
) -> Scalar:
    """Minus the mean squared difference of new codes and bank codes, over pairs and bits; in [-1, 0].

    ``form="square"`` is ``-(b - m)^2``, as printed: concave in b, so descent strengthens whichever bit is there.
    ``"xor"`` is ``-(b + m - 2 b m)``, the same value on bits, whose slope ``-(1 - 2 m)`` depends on the bank alone:
    away from the bit that most of the bank has.

    ``"all"``: every new code against every bank code. ``"index"``: code i against bank row i (modulo the
    bank's length). ``"random"``: against a random bank row, drawn with ``generator``. The bank is a constant;
    an empty bank gives 0. Raises ``UserError`` for ``"random"`` without a generator.
    """
    n, m = new_codes.shape[0], bank_codes.shape[0]
    if m == 0:
        return new_codes.sum() * 0
    bank = bank_codes.detach()
    if pairing == "all":
        # Mean over j of (a - b_j)^2 is (a - mean b)^2 + var b: no n * m * bits tensor.
        centre = bank.mean(dim=0)
        if form == "xor":  # linear in the bank: its mean says all
            return -_xor(new_codes, centre).mean()
        spread = (bank - centre).square().mean(dim=0)
        return -((new_codes - centre).square() + spread).mean()
    if pairing == "index":
        rows = torch.arange(n, device=bank.device) % m
    elif generator is None:
        raise UserError("dhash_loss with random pairing needs a generator, got None; pass generator=")
    else:
        rows = torch.randint(m, (n,), generator=generator, device=generator.device)
    if form == "xor":
        return -_xor(new_codes, bank[rows]).mean()
    return -(new_codes - bank[rows]).square().mean()


def _xor(a: Tensor, b: Tensor) -> Tensor:
    """Exclusive or of bits, linear in either."""
    return a + b - 2 * a * b


def difference_hash(images: Images, size: int = 8) -> Bits:
    """Classical row-wise difference hash: ``size * size`` bits per image, no gradient.

    A bit says whether a pixel of the shrunk image (:func:`row_steps`) is darker than its right neighbour, as in the
    ``imagehash`` package.
    """
    return row_steps(images, size) > 0


def row_steps(images: Images, size: int = 8) -> Float[Tensor, "n b"]:
    """How much brighter than a pixel its right neighbour is, ``size * size`` numbers per image, no gradient.

    Of the grey image, shrunk to ``size`` rows of ``size + 1`` pixels (antialiased bilinear). Rounding makes steps of up
    to about 1e-6 in an image of one colour.
    """
    gray = to_gray(images.detach().float())
    small = F.interpolate(gray, size=(size, size + 1), mode="bilinear", antialias=True, align_corners=False)
    return (small[..., 1:] - small[..., :-1]).flatten(1)


def hamming(
    a: Bool[Tensor, "n b"] | Float[Tensor, "n b"],
    b: Bool[Tensor, "m b"] | Float[Tensor, "m b"],
    block: int = 4096,
) -> Int[Tensor, "n m"]:
    """Number of differing bits of every pair of codes (zeros and ones), by matmul, ``block`` rows a time."""
    right = b.float()
    return torch.cat([_hamming_block(rows, right) for rows in a.split(block)])


def _hamming_block(rows: Tensor, right: Float[Tensor, "m b"]) -> Int[Tensor, "n m"]:
    """|a| + |b| - 2 a.b; whole numbers far below 2**24, so float32 is exact."""
    left = rows.float()
    distance = left.sum(dim=1)[:, None] + right.sum(dim=1)[None, :] - 2 * left @ right.T
    return distance.to(torch.int64)
