"""How good a student seems without test images, in sentences, table rows and curves."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dfkd.engine.records import Agreement, Estimate, RoundRecord, RunResult
from dfkd.report.summary import finished_rounds, number, percent

__all__ = [
    "agreement_curves",
    "agreement_rows",
    "estimate_sentence",
    "last_estimate",
    "main_agreement",
    "picked_sentence",
    "set_name",
    "short_estimate",
    "signal_notes",
]

_SETS: Mapping[str, str] = MappingProxyType(
    {
        "own": "made by the run's method from other seeds",
        "inverted": "made from the teacher alone, by optimising pixels",
        "shifted": "these images, shifted",
        "mixed": "means of two of them",
        "noise": "as bright and as varied as the data",
    }
)
_SIGNALS: Mapping[str, str] = MappingProxyType(
    {
        "confidence": "the teacher's mean largest probability",
        "retention": "share in the class they were made for",
        "classes": "share of the classes among them",
        "largest": "share of the most frequent class",
        "within": "distance within a class over that between any two",
        "roughness": "roughness (normal noise: 1.13)",
        "statistics": "distance of BatchNorm statistics, per layer",
    }
)


def last_estimate(records: Sequence[RoundRecord]) -> Estimate | None:
    """The newest estimate."""
    return next((record.estimate for record in reversed(records) if record.estimate is not None), None)


def set_name(kind: str) -> str:
    """What the images of a kind are."""
    return _SETS.get(kind, kind)


def estimate_sentence(estimate: Estimate) -> str:
    """One sentence: agreement with its interval on images of the run's own method and on those of another."""
    main = [(kind, estimate.sets[kind]) for kind in ("own", "inverted") if kind in estimate.sets]
    sentences = [
        f"on {_sentence(agreement)} of {agreement.images:,} synthetic images {_SETS[kind]}" for kind, agreement in main
    ]
    if not sentences:
        return ""
    return f"Without test images: the student chooses the teacher's class {', and '.join(sentences)}."


def picked_sentence(result: RunResult | None) -> str:
    """One sentence: which round agreed most, and where its student is; "" where it was not kept."""
    if result is None or result.picked is None or "picked" not in result.files:
        return ""
    picked = result.picked
    return (
        f"The agreement on held-out images ({picked.held_out}) was highest after round {picked.round + 1}, "
        f"{percent(picked.agreement)}: that student is kept as {result.files['picked']}, the result is the last one."
    )


def main_agreement(estimate: Estimate) -> Agreement | None:
    """The agreement on the images that rules go by unless told otherwise; None where there are none."""
    return estimate.sets.get("inverted") or estimate.sets.get("own")


def short_estimate(estimate: Estimate) -> str:
    """The main agreement for one line of the terminal."""
    agreement = main_agreement(estimate)
    return "" if agreement is None else f"agreement without test images {percent(agreement.agreement)}"


def _sentence(agreement: Agreement) -> str:
    return f"{percent(agreement.agreement)} (95 % interval {percent(agreement.low)} to {percent(agreement.high)})"


def agreement_rows(estimate: Estimate) -> list[tuple[str, tuple[str, ...]]]:
    """(kind of images, cells): agreement, interval, images, lowest class, calibration error."""
    return [
        (
            f"{kind}: {set_name(kind)}",
            (
                percent(agreement.agreement),
                f"{percent(agreement.low)} to {percent(agreement.high)}",
                f"{agreement.images:,}",
                percent(_lowest(agreement)),
                percent(agreement.calibration),
            ),
        )
        for kind, agreement in estimate.sets.items()
    ]


def _lowest(agreement: Agreement) -> float | None:
    shares = [value for value in agreement.class_agreement if math.isfinite(value)]
    return min(shares) if shares else None


def agreement_curves(records: Sequence[RoundRecord], kind: str) -> list[tuple[float, float]]:
    """(rounds done, agreement) on one kind of held-out images."""
    return [
        (float(finished_rounds(record)), record.estimate.sets[kind].agreement)
        for record in records
        if record.estimate is not None and kind in record.estimate.sets
    ]


def signal_notes(estimate: Estimate) -> list[tuple[str, str]]:
    """(what, value) of the signals about the newest images."""
    return [
        (_SIGNALS.get(name, name), f"{value:.3g}")
        for name, value in estimate.signals.items()
        if number(value) is not None
    ]
