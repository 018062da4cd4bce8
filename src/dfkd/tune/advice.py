"""From trials to a recommendation, with its reasons."""

from collections.abc import Sequence
from dataclasses import dataclass

from dfkd.defaults import NOISE_METHOD
from dfkd.engine.records import Agreement
from dfkd.report.summary import percent
from dfkd.tune.candidates import Candidate

__all__ = ["Advice", "ShortTrial", "recommend"]


@dataclass(frozen=True)
class ShortTrial:
    """A short run: ``score`` on the held-out images, or None with the ``reason`` why there is none."""

    method: str
    student: str
    score: Agreement | None
    rounds: int = 0
    seconds: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class Advice:
    """What to run next, and why, one sentence a reason."""

    method: str | None
    student: str | None
    reasons: tuple[str, ...]


def recommend(trials: Sequence[ShortTrial], students: Sequence[Candidate], teacher: Candidate) -> Advice:
    """The method that agreed most, and the smallest student that chance does not tell from the best one with it."""
    judged = [(run, run.score) for run in trials if run.score is not None]
    rated = [(run, score) for run, score in judged if run.method != NOISE_METHOD]
    if not rated:
        return Advice(None, None, ("no trial was judged: give more --minutes",))
    first = rated[0][0].student
    level = [pair for pair in rated if pair[0].student == first]
    run, top = max(level, key=lambda pair: pair[1].agreement)
    reasons = [f"{run.method} agreed with the teacher on {_sentence(top)} of {top.images} held-out images with {first}"]
    close = [other.method for other, score in level if other.method != run.method and score.high >= top.low]
    if close:
        reasons.append(f"so few images and minutes do not tell it from {', '.join(close)}")
    noise = next((score for other, score in judged if other.method == NOISE_METHOD), None)
    if noise is not None and noise.high >= top.low:
        reasons.append(
            f"noise did as well ({_sentence(noise)}): these trials were too short to tell, give more --minutes"
        )
    of_method = [(other.student, score) for other, score in rated if other.method == run.method]
    best = max(of_method, key=lambda pair: pair[1].agreement)[1]
    sizes = {student.name: student for student in students}
    level_with_best = [(name, score) for name, score in of_method if score.high >= best.low]
    name, score = min(level_with_best, key=lambda pair: sizes[pair[0]].work_share(teacher))
    pick = sizes[name]
    counted = pick.macs is not None and bool(teacher.macs)
    reasons.append(
        f"{name} has {pick.parameters / max(teacher.parameters, 1):.1%} of the teacher's parameters, "
        f"{f'{pick.work_share(teacher):.1%} of its FLOPs, ' if counted else ''}"
        f"and takes {1 / pick.speedup:.0%} of its time an image"
    )
    if len(of_method) > 1:
        reasons.append(
            f"it agreed on {_sentence(score)}, the best of {len(of_method)} students on {percent(best.agreement)}"
        )
    return Advice(run.method, name, tuple(reasons))


def _sentence(score: Agreement) -> str:
    return f"{percent(score.agreement)} ({percent(score.low)} to {percent(score.high)})"
