"""Whether a run went well, in one or two sentences."""

from collections.abc import Sequence

from dfkd.engine.records import RoundRecord, RunInfo, RunResult
from dfkd.report.summary import Number, Verdict, last_evaluation, number, percent, rows_of
from dfkd.report.without_test import last_estimate, main_agreement

__all__ = ["verdict_of"]


def verdict_of(info: RunInfo, rounds: Sequence[RoundRecord], result: RunResult | None) -> Verdict:
    """Did it work? Judged by the share of the teacher's accuracy that the student keeps, else by agreement.

    From 97 % on that is "good", from 90 % on "fair", below "poor".
    """
    teacher, student = rows_of(info, rounds, result)
    accuracy, agreement = number(student.accuracy), number(student.agreement)
    reference = number(teacher.accuracy)
    share = accuracy / reference if accuracy is not None and reference else agreement
    size = _size(teacher.parameters, student.parameters)
    level = _level(share)
    if level == "open":
        text = f"Nothing says yet how good the student{size} is on real images: {_reason(info)}."
        return Verdict(level, f"{text}{_held_out(rounds)}")
    evaluation = last_evaluation(rounds) if result is None else result.final
    images = "" if evaluation is None else f"of {evaluation.images:,} test images"
    opening = {"good": "This went well", "fair": "This went fairly well", "poor": "This fell short"}[level]
    if accuracy is None:
        comparison = f"chooses the same class as the teacher on {percent(agreement)} {images}"
        return Verdict(level, f"{opening}: the student{size} {comparison}.")
    text = f"{opening}: the student{size} gets {percent(accuracy)} {images} right."
    if not reference:
        return Verdict(level, f"{text} It agrees with the teacher on {percent(agreement)}.")
    conclusion = f"so the student keeps {100 * accuracy / reference:.1f} % of its accuracy"
    return Verdict(level, f"{text} The teacher gets {percent(reference)}, {conclusion}.")


def _reason(info: RunInfo) -> str:
    """Why nothing is known of a student on test images; ``info`` of older runs does not say whether there are any."""
    if info.test_images == 0:
        return "no test images were given"
    return "it has not been evaluated" + (" yet" if info.test_images else " on test images")


def _held_out(rounds: Sequence[RoundRecord]) -> str:
    """What held-out synthetic images say instead, as a further sentence; "" where that was not measured."""
    estimate = last_estimate(rounds)
    agreement = None if estimate is None else main_agreement(estimate)
    if agreement is None:
        return ""
    return f" On held-out synthetic ones it chooses the teacher's class for {percent(agreement.agreement)}."


def _size(teacher: Number, student: Number) -> str:
    if not teacher or student is None or student >= teacher:
        return ""
    return f", with {100 * student / teacher:.3g} % of the teacher's parameters,"


def _level(share: Number) -> str:
    if share is None:
        return "open"
    return "good" if share >= 0.97 else "fair" if share >= 0.9 else "poor"
