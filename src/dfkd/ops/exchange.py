"""More images out of stored ones: channel exchange of features (Spaceship-Net's CFE), mixup and CutMix."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dfkd.ops.mixing import draw_beta, draw_mix
from dfkd.types import Images, Labels, Maps, PerImage

Pairs = Literal["complementary", "independent"]
ChannelMask = Bool[Tensor, "n c"]


class CutDraw(NamedTuple):
    """What CutMix draws: the share an image keeps, the centre of its window (y, x in [0, 1)), its partner."""

    lam: PerImage
    centres: Float[Tensor, "n 2"]
    permutation: Labels


def draw_channel_mask(
    n: int, c: int, fraction: float, generator: torch.Generator, pairs: Pairs = "complementary"
) -> ChannelMask:
    """True where row i takes the channel of row ``n - 1 - i``: floor(fraction * c) random ones in each row.

    ``"complementary"``: both rows of a pair exchange the same channels (the paper), so together they keep
    all their channels. ``"independent"``: each row draws its own (the authors' code). ``fraction`` is in
    [0, 1]. On the generator's device.
    """
    scores = torch.rand(n, c, generator=generator, device=generator.device)
    if pairs == "complementary":
        half = scores[: (n + 1) // 2]
        scores = torch.cat([half, half[: n // 2].flip(0)])
    shuffled = scores.argsort(dim=1)  # a random permutation of 0..c-1 in each row
    return shuffled < math.floor(fraction * c + 1e-9)  # 0.29 * 100 is a little less than 29


def exchange(features: Float[Tensor, "n c h w"], mask: Bool[Tensor, "n c"]) -> Float[Tensor, "n c h w"]:
    """Row i with the channels of row ``n - 1 - i`` where ``mask`` is True; an odd middle row stays.

    One copy of whole maps, several times quicker on the CPU than choosing element by element.
    """
    n, c = mask.shape
    rows = torch.arange(n, device=mask.device).unsqueeze(1)
    source = torch.where(mask, n - 1 - rows, rows) * c + torch.arange(c, device=mask.device)
    return features.reshape(n * c, -1).index_select(0, source.flatten()).view(features.shape)


def exchange_channels(
    features: Maps, fraction: float, generator: torch.Generator, pairs: Pairs = "complementary"
) -> Maps:
    """Channel-wise feature exchange (CFE) of a batch; see :func:`draw_channel_mask` for the arguments."""
    n, c = features.shape[:2]
    return exchange(features, draw_channel_mask(n, c, fraction, generator, pairs))


def mixup(images: Images, lam: PerImage, permutation: Labels) -> Images:
    """``lam * image + (1 - lam) * partner``, one share per image (Zhang et al.)."""
    weight = lam.to(images.dtype).view(-1, 1, 1, 1)
    return weight * images + (1 - weight) * images[permutation]


def cutmix(images: Images, lam: PerImage, centres: Float[Tensor, "n 2"], permutation: Labels) -> Images:
    """Paste a window of a partner into each image (Yun et al.).

    The window has ``floor(sqrt(1 - lam) * side)`` pixels per side around ``centres`` (fractions of the
    sides, in [0, 1)) and is cut off at the border, so an image may keep more than ``lam`` of itself.
    """
    scale = (1 - lam).clamp_min(0).sqrt()
    rows = _window(images.shape[2], scale, centres[:, 0])
    columns = _window(images.shape[3], scale, centres[:, 1])
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images[permutation], images)


def draw_mixup(images: Images, alpha: float, generator: torch.Generator, together: bool = False) -> Images:
    """:func:`mixup` with Beta(alpha, alpha) shares and random partners.

    ``together``: one share for the whole batch, whose partners are the batch in reverse order (Spaceship-Net's code).
    """
    if together:
        return mixup(images, *_reversed_partners(draw_mix(1, alpha, generator).lam, len(images)))
    return mixup(images, *draw_mix(images.shape[0], alpha, generator))


def draw_cut(n: int, alpha: float, generator: torch.Generator) -> CutDraw:
    """Beta(alpha, alpha) shares, uniform centres and random partners for ``n`` images."""
    return CutDraw(
        lam=draw_beta(alpha, alpha, n, generator),
        centres=torch.rand(n, 2, generator=generator, device=generator.device),
        permutation=torch.randperm(n, generator=generator, device=generator.device),
    )


def draw_cutmix(images: Images, alpha: float, generator: torch.Generator, together: bool = False) -> Images:
    """:func:`cutmix` with the windows and partners of :func:`draw_cut`.

    ``together``: one window for the whole batch, whose partners are the batch in reverse order (Spaceship-Net's code).
    """
    if together:
        cut = draw_cut(1, alpha, generator)
        lam, partners = _reversed_partners(cut.lam, len(images))
        return cutmix(images, lam, cut.centres.expand(len(images), 2), partners)
    return cutmix(images, *draw_cut(images.shape[0], alpha, generator))


def _reversed_partners(lam: PerImage, n: int) -> tuple[PerImage, Labels]:
    """One share for ``n`` images, and their partners in reverse order."""
    return lam.expand(n), torch.arange(n - 1, -1, -1, device=lam.device)


def _window(side: int, scale: PerImage, centre: PerImage) -> Bool[Tensor, "n side"]:
    """Positions within ``floor(scale * side)`` pixels around the pixel that holds ``centre``."""
    length = (scale * side).floor()
    start = (centre * side).floor() - (length / 2).floor()
    positions = torch.arange(side, device=scale.device)
    return (positions >= start[:, None]) & (positions < (start + length)[:, None])
