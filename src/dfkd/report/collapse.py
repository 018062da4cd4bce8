"""Signs that a run goes wrong: a run can collapse (one class, all images equal) while its losses look fine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfkd.engine.measures import RUN_MEASURES, Measure
from dfkd.engine.records import RoundRecord
from dfkd.report.summary import finished_rounds, losses_of, number, percent

CHANCE_MARGIN = 0.05  # of the way from chance to perfect
LEAST_WITHIN = 0.3  # distance within a class over that between any two images
LEAST_CONFIDENCE = 0.15  # of the way from chance to certainty
MOST_OF_ONE = 0.6  # likewise, share of the most frequent class
NOISE = 1.05  # roughness; 1.13 is that of normal noise
LOOKED_AT = 100  # images whose classes are counted
WINDOW = 3  # rounds that are averaged, so that one odd batch is no alarm


@dataclass(frozen=True)
class Concern:
    """A sign that a run goes wrong: ``kind`` tells them apart, ``text`` is one sentence for a person."""

    kind: str
    text: str


def warnings_of(
    records: Sequence[RoundRecord], classes: int, measures: Mapping[str, Measure] = RUN_MEASURES
) -> list[Concern]:
    """Signs of collapse in the rounds so far, as of the last one; an empty list where there are none.

    * ``nonfinite``: a loss was NaN or infinite in some round.
    * The alarms of the ``measures``, averaged over the last three rounds that have them: ``entropy`` (the
      images show few of the K classes) and ``distance`` (they look all the same), and those of the method's own.
    * ``chance``: after the first quarter of the rounds, the student agrees with the teacher hardly more often
      than guessing would: at most 1/K + 0.05 (1 - 1/K) plus three standard errors. Without test images it is asked of
      held-out synthetic ones, of every kind made from the teacher.
    * What the teacher sees in the newest images (:func:`~dfkd.engine.heldout.signals_of`), averaged likewise after
      the first quarter of the rounds: ``within`` (those of one class are all alike), ``noise`` (they are as rough as
      noise and of the class they were made for no more often than by chance), ``unsure`` (the teacher is sure of
      none), ``one class`` (most are of one class). Rarely being of their class alone is no bad sign: adversarial
      methods make such images on purpose, and good students.
    """
    alarms = [_alarm(records, name, measure, classes) for name, measure in measures.items()]
    concerns = [_nonfinite(records), *alarms, _chance(records, classes), *_seen_in_images(records, classes)]
    return [concern for concern in concerns if concern is not None]


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


def _recent_mean(records: Sequence[RoundRecord], metric: str) -> float | None:
    values = [record.metrics[metric] for record in records if number(record.metrics.get(metric)) is not None]
    return sum(values[-WINDOW:]) / len(values[-WINDOW:]) if values else None


def _alarm(records: Sequence[RoundRecord], name: str, measure: Measure, classes: int) -> Concern | None:
    """The alarm of one measure."""
    value, level, alarm = _recent_mean(records, name), measure.height(classes), measure.alarm
    if alarm is None or value is None:
        return None
    if value >= alarm.below * (level or 0.0 if alarm.of_level else 1.0):
        return None
    return Concern(alarm.kind, alarm.text.format(value=value, level=level, classes=classes))


def _chance(records: Sequence[RoundRecord], classes: int) -> Concern | None:
    if not records or 4 * finished_rounds(records[-1]) <= records[-1].rounds:
        return None
    record = next((record for record in reversed(records) if record.evaluation is not None), None)
    guess = 1 / classes
    if record is None or record.evaluation is None:
        return _chance_without_test(records, guess)
    agreement, images = number(record.evaluation.agreement), record.evaluation.images
    if agreement is None or agreement > _beyond(guess, images):
        return None
    text = (
        f"After round {finished_rounds(record)} the student agrees with the teacher on {percent(agreement)} of "
        f"the test images, and guessing gives {percent(guess)}; it has learned next to nothing."
    )
    return Concern("chance", text)


def _beyond(guess: float, images: int) -> float:
    """Agreement that is more than guessing."""
    return guess + CHANCE_MARGIN * (1 - guess) + 3 * math.sqrt(guess * (1 - guess) / max(1, images))


def _chance_without_test(records: Sequence[RoundRecord], guess: float) -> Concern | None:
    record = next((record for record in reversed(records) if record.estimate is not None), None)
    sets = {} if record is None or record.estimate is None else record.estimate.sets
    agreements = [sets[kind] for kind in ("own", "inverted") if kind in sets]
    if (
        record is None
        or not agreements
        or any(agreement.agreement > _beyond(guess, agreement.images) for agreement in agreements)
    ):
        return None
    best = max(agreement.agreement for agreement in agreements)
    text = (
        f"After round {finished_rounds(record)} the student agrees with the teacher on {percent(best)} of held-out "
        f"synthetic images, and guessing gives {percent(guess)}; it has learned next to nothing: raise plan.lr or the "
        "steps, and see whether the images are any good."
    )
    return Concern("chance", text)


def _signal(records: Sequence[RoundRecord], name: str) -> float | None:
    """The mean of a signal over the last rounds that have it; None in the first quarter of a run."""
    if not records or 4 * finished_rounds(records[-1]) <= records[-1].rounds:
        return None
    estimates = [record.estimate for record in records if record.estimate is not None]
    values = [value for estimate in estimates if (value := number(estimate.signals.get(name))) is not None]
    return sum(values[-WINDOW:]) / len(values[-WINDOW:]) if values else None


def _seen_in_images(records: Sequence[RoundRecord], classes: int) -> list[Concern | None]:
    """Concerns about what the teacher sees in the newest images."""
    within, retention = _signal(records, "within"), _signal(records, "retention")
    rough, sure, largest = (_signal(records, name) for name in ("roughness", "confidence", "largest"))
    guess, concerns = 1 / classes, list[Concern | None]()
    if within is not None and within < LEAST_WITHIN:
        text = (
            "The images of a class that the student learns from look all alike: the distance between two of them is "
            f"{percent(within)} of that between any two; where a generator makes them, lower its learning rate or "
            "renew its noise more often, else give images that differ more."
        )
        concerns.append(Concern("within", text))
    if rough is not None and rough > NOISE and retention is not None and retention <= _beyond(guess, LOOKED_AT):
        text = (
            "The images that the student learns from are noise: neighbouring pixels do not resemble each other, and "
            f"the teacher puts {percent(retention)} of them into the class they stand for; where they are synthesised, "
            "lower the rate or take more steps, else give other images."
        )
        concerns.append(Concern("noise", text))
    if sure is not None and sure < guess + LEAST_CONFIDENCE * (1 - guess):
        text = (
            f"The teacher is sure of nothing the student learns from: its largest probability is {percent(sure)} on "
            "average; check mean and std, and, where images are synthesised, raise the steps."
        )
        concerns.append(Concern("unsure", text))
    if largest is not None and classes > 2 and largest > guess + MOST_OF_ONE * (1 - guess):
        text = (
            f"Most images the student learns from are of one class: the teacher puts {percent(largest)} of them there; "
            "check mean and std, balance the labels, or give more images of other classes."
        )
        concerns.append(Concern("one class", text))
    return concerns
