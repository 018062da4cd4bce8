"""What a run comes to, in numbers and sentences, and as table rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dfkd.data.overlap import ALIKE, BITS, NearDuplicates
from dfkd.engine.measures import RUN_MEASURES, Measure, is_loss
from dfkd.engine.records import Evaluation, RoundRecord, RunInfo, RunResult
from dfkd.visible import visible

Number = int | float | None


@dataclass(frozen=True)
class Row:
    """One line of the comparison. Fractions in [0, 1], sizes in bytes; None or NaN where it is not known."""

    name: str
    accuracy: Number = None
    agreement: Number = None
    parameters: Number = None
    macs: Number = None
    bytes: Number = None
    seconds: Number = None


@dataclass(frozen=True)
class Verdict:
    """``level`` is "good", "fair", "poor" or "open" (nothing to judge by); ``text`` one or two sentences."""

    level: str
    text: str


def number(value: object) -> float | None:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: Number) -> str:
    """A fraction as ``97.25 %``."""
    value = number(value)
    return "–" if value is None else f"{100 * value:.2f} %"


def count(value: Number) -> str:
    """A whole number with thousands apart."""
    value = number(value)
    return "–" if value is None else f"{value:,.0f}"


def operations(value: Number) -> str:
    """A number of operations in three digits: ``3.81 M``."""
    value = number(value)
    if value is None:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f}"


def file_size(value: Number) -> str:
    """Bytes as ``712 kB`` (powers of 1000)."""
    value = number(value)
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f} B"


def _three(value: float) -> str:
    """Three digits, and more before the point where there are more."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def duration(value: Number) -> str:
    """Seconds as ``48 s``, ``3 min 12 s`` or ``2 h 05 min``."""
    value = number(value)
    if value is None:
        return "–"
    if value < 9.95:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def finished_rounds(record: RoundRecord) -> int:
    """How many rounds are done after this one: rounds count from 0 inside, from 1 for people."""
    return record.round + 1


def sentence(words: str) -> str:
    """With a capital letter at its beginning."""
    return words[:1].upper() + words[1:]


def stop_sentence(records: Sequence[RoundRecord], reason: str) -> str:
    """Where and why a run ended before its last round: ``stopped after round 7 of 20: reason``.

    Copies of a run may have no records.
    """
    progress = f" after round {finished_rounds(records[-1])} of {records[-1].rounds}" if records else ""
    return f"stopped{progress}: {reason}"


def fitted_sentence(info: RunInfo) -> str:
    """How the plan came about, where it was made for a time; "" otherwise."""
    if info.fitted is None:
        return ""
    parts = [f"{info.plan.get('rounds')} of {info.fitted.asked.get('rounds')} rounds"]
    if info.plan.get("warmup"):
        parts.append(f"{info.plan.get('warmup')} of {info.fitted.asked.get('warmup')} warm-up rounds")
    hours = f"{info.fitted.hours:g} {'hour' if info.fitted.hours == 1 else 'hours'}"
    return f"planned for {hours}: {' and '.join(parts)}, about {duration(info.fitted.seconds)}"


def losses_of(record: RoundRecord) -> dict[str, float]:
    """The losses among the metrics of one round."""
    return {name: value for name, value in record.metrics.items() if is_loss(name)}


def known_measures(info: RunInfo) -> dict[str, Measure]:
    """What is known of the metrics of a run, by name: those of every run, and those of its method."""
    return {**RUN_MEASURES, **info.measures}


def measure_names(records: Sequence[RoundRecord], measures: Mapping[str, Measure] = RUN_MEASURES) -> list[str]:
    """What a run measured beside losses and times: what is known first, in its order, then the rest as it occurs."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    unnamed = [name for name in names if name not in measures and not is_loss(name) and not name.startswith("seconds/")]
    return [*(name for name in measures if name in names), *unnamed]


def images_per_second(records: Sequence[RoundRecord]) -> float | None:
    """Synthetic images per second in the newest round: as measured, else from the count of the round before."""
    if not records:
        return None
    rate = number(records[-1].metrics.get("images_per_second"))
    if rate is not None or len(records) < 2:
        return rate
    now, before = (number(record.metrics.get("images")) for record in (records[-1], records[-2]))
    seconds = number(records[-1].metrics.get("seconds/synthesis"))
    return None if now is None or before is None or not seconds else (now - before) / seconds


def class_names(info: RunInfo) -> tuple[str, ...]:
    """The names of the classes as they can be shown, or their numbers."""
    names = info.names if len(info.names) == info.classes else tuple(str(k) for k in range(info.classes))
    return tuple(map(visible, names))


def last_evaluation(records: Sequence[RoundRecord]) -> Evaluation | None:
    """The newest evaluation of the student."""
    return next((record.evaluation for record in reversed(records) if record.evaluation is not None), None)


def overlap_sentence(overlap: NearDuplicates) -> str:
    """One sentence about near-duplicates of the evaluation images among the web images."""
    bits = "bit" if overlap.at_most == 1 else "bits"
    within = (
        f"within {overlap.at_most} {bits} of {BITS} (difference hash) of one of {overlap.images:,} evaluation images"
    )
    many = f"{overlap.found:,}" if overlap.found else "none"
    sentence = f"{many} of {overlap.web:,} web images {'is' if overlap.found == 1 else 'are'} {within}"
    identical = f"{overlap.alike:,}" if overlap.alike else "none"
    return (
        f"{sentence}, {identical} of them alike pixel by pixel (correlation {ALIKE:g} or more)"
        if overlap.found
        else sentence
    )


def notes_of(info: RunInfo) -> list[str]:
    """What is done otherwise than asked to run the two networks, one sentence each."""
    lists = [network.get("notes") for network in (info.teacher, info.student)]
    return [str(note) for notes in lists if isinstance(notes, list | tuple) for note in notes]


def rows_of(info: RunInfo, rounds: Sequence[RoundRecord], result: RunResult | None) -> list[Row]:
    """Teacher and student as table rows; of an unfinished run, the student as it was evaluated last."""
    teacher = None if result is None else result.teacher_evaluation
    student = last_evaluation(rounds) if result is None else result.final
    seconds = math.fsum(record.seconds for record in rounds) if result is None else result.seconds
    return [
        _row("teacher", info.teacher, teacher, None),
        _row("student", info.student, student, seconds),
    ]


def _row(role: str, net: dict[str, object], evaluation: Evaluation | None, seconds: float | None) -> Row:
    name = f"{role} ({net['name']})" if net.get("name") else role
    return Row(
        name=name,
        accuracy=None if evaluation is None else evaluation.accuracy,
        agreement=None if evaluation is None else evaluation.agreement,
        parameters=number(net.get("parameters")),
        macs=number(net.get("macs")),
        bytes=number(net.get("bytes")),
        seconds=seconds,
    )
