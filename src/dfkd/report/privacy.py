"""The page of an audit: how near synthetic images come to private ones, in sentences, numbers, curves and pairs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.engine.audit import Attack, Audit, Distances
from dfkd.ops.intervals import wilson
from dfkd.report.canvas import INK, TONES, draw_file, plain_axes
from dfkd.report.files import plain, write_whole
from dfkd.report.grid import image_grid, with_names
from dfkd.report.html import render_template
from dfkd.report.sheets import png
from dfkd.report.summary import Verdict, percent
from dfkd.types import Bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AUDIT_FILE", "Nearness", "audit_numbers", "audit_verdict", "nearness_of", "write_audit"]

AUDIT_FILE = "audit.html"
NUMBERS_FILE = "audit.json"
PAIRS = 12  # closest pairs that are shown
CHANCE = 0.01  # share of the held-out images that the threshold leaves below it

_SPACES = {
    "pixels": ("pixels", "root mean square of pixels in [0, 1]"),
    "features": ("the teacher's features", "distance of feature vectors of length 1"),
}
_ATTACKS = {
    "pixels": "nearness to a synthetic image, in pixels",
    "features": "nearness to a synthetic image, in the teacher's features",
    "teacher": "confidence of the teacher",
    "student": "confidence of the student",
}


class Nearness(NamedTuple):
    """How synthetic images lie to private ones beside how held-out ones do, by the ratio of local distances.

    Attributes:
        threshold: ratio below which 1 % of the held-out images are.
        below: synthetic images below it.
        share, low, high: their share with its 95 % interval (Wilson).
        suspicious: the whole interval is above that of the held-out images (1 % of few is not known well).
    """

    threshold: float
    below: int
    share: float
    low: float
    high: float
    suspicious: bool


@dataclass(frozen=True)
class _Space:
    """What the page shows of one space."""

    title: str
    unit: str
    nearness: Nearness
    medians: tuple[str, str]
    smallest: tuple[str, str]
    curves: tuple[bytes, bytes]
    pairs: bytes


def nearness_of(space: Distances) -> Nearness:
    """Count the synthetic images that are nearer to one private image than 99 % of held-out images are."""
    threshold = float(space.reference_ratio.quantile(CHANCE))
    below, n = int((space.ratio < threshold).sum()), len(space.ratio)
    low, high = wilson(below, n)
    chance = wilson(int((space.reference_ratio < threshold).sum()), len(space.reference_ratio))
    return Nearness(threshold, below, below / n, low, high, low > chance.high)


def audit_verdict(audit: Audit) -> Verdict:
    """What the audit comes to: "good" (nothing found), "fair" (something) or "poor" (copies, or members are told)."""
    near = {name: nearness_of(space) for name, space in audit.spaces.items()}
    suspicious = [name for name, nearness in near.items() if nearness.suspicious]
    telling = {name: attack for name, attack in audit.attacks.items() if attack.low > 0.5}
    sentences = []
    if suspicious:
        where = " and in ".join(_SPACES[name][0] for name in suspicious)
        many = max(near[name].below for name in suspicious)
        sentences.append(
            f"{many:,} of {audit.images:,} synthetic images are suspiciously near to one private image, in {where}"
        )
    from_images = [name for name in telling if name in _SPACES]
    if from_images:
        best = max(telling[name].auc for name in from_images)
        sentences.append(
            f"the synthetic images tell private images from held-out ones (AUC {best:.3f}; guessing gives 0.5)"
        )
    if "student" in telling:
        sentences.append(f"so does the confidence of the student (AUC {telling['student'].auc:.3f})")
    if not sentences:
        text = f"Nothing was found: the {audit.images:,} synthetic images are no nearer to private images than chance."
        if not audit.attacks:
            text += " Without held-out images it is not known whether they tell who is among the private ones."
        return Verdict("good", text)
    level = "poor" if suspicious or any(telling[name].auc > 0.6 for name in from_images) else "fair"
    text = "; ".join(sentences)
    return Verdict(level, f"{text[0].upper()}{text[1:]}.")


def audit_numbers(audit: Audit) -> dict[str, Any]:
    """Everything but the images, as plain values."""
    verdict = audit_verdict(audit)
    spaces = {
        name: {
            **nearness_of(space)._asdict(),
            "median": float(space.nearest.median()),
            "median_reference": float(space.reference.median()),
            "smallest": float(space.nearest.min()),
            "smallest_reference": float(space.reference.min()),
            "closest_private_rows": space.row[_closest(space)].tolist(),
        }
        for name, space in audit.spaces.items()
    }
    counts = {"images": audit.images, "private": audit.private, "heldout": audit.heldout, "copies": audit.copies}
    numbers = {name: attack._asdict() for name, attack in audit.attacks.items()}
    page = plain({**counts, "level": verdict.level, "verdict": verdict.text, "spaces": spaces, "attacks": numbers})
    return dict(page)


def write_audit(folder: Path, audit: Audit, images: Bytes, private: Rows, facts: Mapping[str, str]) -> Path:
    """Write ``audit.html`` and ``audit.json`` into ``folder``; returns the page.

    Args:
        folder: made if need be.
        audit: what was found.
        images: the synthetic images that were compared, uint8 (n, c, h, w), in that order.
        private: where the nearest are taken from. The page shows some of them.
        facts: name -> value, what was compared with what.

    Raises:
        UserError: the folder cannot be written.
    """
    reference = "held-out" if audit.heldout else "other private"  # images that the synthetic ones are compared with
    page = render_template(
        "audit.html.j2",
        {
            "verdict": audit_verdict(audit),
            "audit": audit,
            "facts": facts,
            "spaces": [_space(name, space, images, private, reference) for name, space in audit.spaces.items()],
            "attacks": [(_ATTACKS[name], _attack_cells(attack)) for name, attack in audit.attacks.items()],
            "reference": reference,
        },
    )
    write_whole(folder / AUDIT_FILE, page.encode())
    text = json.dumps(audit_numbers(audit), allow_nan=False, ensure_ascii=False, indent=1)
    write_whole(folder / NUMBERS_FILE, text.encode() + b"\n")
    return folder / AUDIT_FILE


def _space(name: str, space: Distances, images: Bytes, private: Rows, reference: str) -> _Space:
    title, unit = _SPACES[name]
    return _Space(
        title,
        unit,
        nearness_of(space),
        (f"{float(space.nearest.median()):.4f}", f"{float(space.reference.median()):.4f}"),
        (f"{float(space.nearest.min()):.4f}", f"{float(space.reference.min()):.4f}"),
        _curves(space, unit, reference),
        _pairs(space, images, private),
    )


def _attack_cells(attack: Attack) -> tuple[str, str, str]:
    return f"{attack.auc:.3f}", f"{attack.low:.3f} to {attack.high:.3f}", percent(attack.caught)


def _closest(space: Distances) -> Tensor:
    return space.ratio.argsort(stable=True)[:PAIRS]


def _pairs(space: Distances, images: Bytes, private: Rows) -> bytes:
    """Two rows: the synthetic images with the smallest ratios, and below each its nearest private image."""
    closest = _closest(space)
    pairs = torch.cat([images[closest].cpu(), private.take(space.row[closest]).cpu()])
    rows = torch.arange(2).repeat_interleave(len(closest))
    ratios = [f"{float(space.ratio[i]):.2f}" for i in closest]
    return png(with_names(image_grid(pairs, rows, len(closest)), ("synthetic", "private"), ratios))


def _curves(space: Distances, unit: str, reference: str) -> tuple[bytes, bytes]:
    """Shares of synthetic and of ``reference`` images below a distance, and below a ratio: two charts."""
    series: Sequence[tuple[str, Tensor, Tensor]] = (
        (f"nearest private image\n({unit})", space.nearest, space.reference),
        ("that distance over the mean\nof the 50 nearest", space.ratio, space.reference_ratio),
    )
    names = ("synthetic", reference)
    near, relative = (draw_file((3.6, 2.6), partial(_draw_shares, across, names, pair)) for across, *pair in series)
    return near, relative


def _draw_shares(across: str, names: Sequence[str], pair: Sequence[Tensor], figure: "Figure") -> None:
    axes = figure.add_subplot()
    plain_axes(axes)
    for values, tone, label in zip(pair, (TONES[1], TONES[0]), names, strict=True):
        axes.ecdf(values.numpy(), color=tone, linewidth=1.4, label=label)
    axes.set_xlabel(across)
    axes.set_ylabel("images below")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.legend(frameon=False, labelcolor=INK)
