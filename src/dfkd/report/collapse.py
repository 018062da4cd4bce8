"""Signs that a run goes wrong: a run can collapse (one class, all images equal) while its losses look fine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfkd.engine.measures import RUN_MEASURES, Measure
from dfkd.engine.records import RoundRecord
from dfkd.report.summary import finished_rounds, losses_of, number, percent

CHANCE_MARGIN = 0.05  # of the way from chance to perfect
WINDOW = 3  # rounds that are averaged, so that one odd batch is no alarm


@dataclass(frozen=True)
class Concern:
    """A sign that a run goes wrong: ``kind`` tells them apart, ``text`` is one sentence for a person."""

    kind: str
    text: str


def warnings_of(
    records: Sequence[RoundRecord], classes: int, known: Mapping[str, Measure] = RUN_MEASURES
) -> list[Concern]:
    """Signs of collapse in the rounds so far, as of the last one; an empty list where there are none.

    * ``nonfinite``: a loss was NaN or infinite in some round.
    * The alarms of the ``known`` measures, averaged over the last three rounds that have them: ``entropy`` (the
      images show few of the K classes) and ``distance`` (they look all the same), and those of the method's own.
    * ``chance``: after the first quarter of the rounds, the student agrees with the teacher hardly more often
      than guessing would: at most 1/K + 0.05 (1 - 1/K) plus three standard errors.
    """
    alarms = [_alarm(records, name, measure, classes) for name, measure in known.items()]
    found = [_nonfinite(records), *alarms, _chance(records, classes)]
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


def _alarm(records: Sequence[RoundRecord], name: str, measure: Measure, classes: int) -> Concern | None:
    """The alarm of one measure."""
    value, level, alarm = _recent(records, name), measure.height(classes), measure.alarm
    if alarm is None or value is None:
        return None
    if value >= alarm.below * (level or 0.0 if alarm.of_level else 1.0):
        return None
    return Concern(alarm.kind, alarm.text.format(value=value, level=level, classes=classes))


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
