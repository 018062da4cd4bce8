"""Signs that a run goes wrong: a run can collapse (one class, all images equal) while its losses look fine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.engine.records import RoundRecord
from dfkd.report.summary import finished_rounds, losses_of, number, percent

ENTROPY_SHARE = 0.5  # of log K: a batch below it shows few of the classes
LEAST_DISTANCE = 0.02  # in pixel values of [0, 1], five steps of 255: images closer than that look the same
CHANCE_MARGIN = 0.05  # of the way from chance to perfect
WINDOW = 3  # rounds that are averaged, so that one odd batch is no alarm


@dataclass(frozen=True)
class Concern:
    """A sign that a run goes wrong: ``kind`` tells them apart, ``text`` is one sentence for a person."""

    kind: str
    text: str


def warnings_of(records: Sequence[RoundRecord], classes: int) -> list[Concern]:
    """Signs of collapse in the rounds so far, as of the last one; an empty list where there are none.

    * ``nonfinite``: a loss was NaN or infinite in some round.
    * ``entropy``: the metric ``class_entropy`` (nats), averaged over the last three rounds that have it, is
      below half of log K: the images show few of the K classes.
    * ``distance``: the metric ``pairwise_distance`` (pixel values in [0, 1]), averaged likewise, is below
      0.02: the images look all the same.
    * ``chance``: after the first quarter of the rounds, the student agrees with the teacher hardly more often
      than guessing would: at most 1/K + 0.05 (1 - 1/K) plus three standard errors.
    """
    found = [
        _nonfinite(records),
        _entropy(records, classes),
        _distance(records),
        _chance(records, classes),
    ]
    return [concern for concern in found if concern is not None]


def _nonfinite(records: Sequence[RoundRecord]) -> Concern | None:
    for record in records:
        bad = [name for name, value in losses_of(record).items() if not math.isfinite(value)]
        if bad:
            names = " and ".join(name.removeprefix("loss/") for name in bad)
            text = (
                f"The loss '{names}' was not a finite number in round {finished_rounds(record)}; "
                "lower the learning rates, or train in fp32."
            )
            return Concern("nonfinite", text)
    return None


def _recent(records: Sequence[RoundRecord], metric: str) -> float | None:
    values = [record.metrics[metric] for record in records if number(record.metrics.get(metric)) is not None]
    return sum(values[-WINDOW:]) / len(values[-WINDOW:]) if values else None


def _entropy(records: Sequence[RoundRecord], classes: int) -> Concern | None:
    entropy, most = _recent(records, "class_entropy"), math.log(classes)
    if entropy is None or entropy >= ENTROPY_SHARE * most:
        return None
    if _recent(records, "selected") is not None:
        text = (
            f"The selected images belong to few of the {classes} classes: the entropy of these is {entropy:.2f} nats, "
            f"balanced classes have {most:.2f}; lower v_th, or give more or closer web images."
        )
    else:
        text = (
            f"The synthetic images show few of the {classes} classes: the entropy of a batch is {entropy:.2f} "
            f"nats, balanced classes have {most:.2f}; raise the weight of the class loss or the synthesis steps."
        )
    return Concern("entropy", text)


def _distance(records: Sequence[RoundRecord]) -> Concern | None:
    distance = _recent(records, "pairwise_distance")
    if distance is None or distance >= LEAST_DISTANCE:
        return None
    text = (
        f"The synthetic images look all the same: the mean distance between two of them is {distance:.4f} on "
        "a scale of 0 to 1; lower the generator's learning rate, or renew its noise more often."
    )
    return Concern("distance", text)


def _chance(records: Sequence[RoundRecord], classes: int) -> Concern | None:
    record = next((record for record in reversed(records) if record.evaluation is not None), None)
    if record is None or record.evaluation is None or 4 * finished_rounds(record) <= record.rounds:
        return None
    agreement, images = number(record.evaluation.agreement), record.evaluation.images
    guess = 1 / classes
    error = math.sqrt(guess * (1 - guess) / max(1, images))
    if agreement is None or agreement > guess + CHANCE_MARGIN * (1 - guess) + 3 * error:
        return None
    text = (
        f"After round {finished_rounds(record)} the student agrees with the teacher on {percent(agreement)} of "
        f"the test images, and guessing gives {percent(guess)}; it has learned next to nothing."
    )
    return Concern("chance", text)
