"""When a run may end before its plan, and which of its rounds was best: by agreement on held-out images.

Both follow from what has been measured so far (:class:`Judge`), which goes into every checkpoint: a run that was killed
ends after the same round, with the same best student, as one that never was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.engine.records import Picked, RoundRecord

__all__ = ["Judge"]


@dataclass
class Judge:
    """Follows the agreement of student and teacher on one kind of held-out images, round by round.

    Attributes:
        held_out: the kind of images (:class:`~dfkd.engine.heldout.Gauge`).
        patience: end once so many rounds have passed since the best one; None: never.
        until: end once this agreement is reached; None: never.
        keep: whether the student of the best round is kept.
        best: the highest agreement so far, and the first round that reached it.
        latest: the newest agreement, and its round.
        weights: of the best round's student, on the CPU; None without ``keep``.
    """

    held_out: str = "inverted"
    patience: int | None = None
    until: float | None = None
    keep: bool = True
    best: Picked | None = field(default=None, init=False)
    latest: Picked | None = field(default=None, init=False)
    weights: dict[str, Tensor] | None = field(default=None, init=False)

    @property
    def best_round(self) -> Picked | None:
        """The best round, where its student was kept."""
        return None if self.weights is None else self.best

    def look(self, record: RoundRecord, student: nn.Module) -> None:
        """Take note of a round; one without an estimate changes nothing."""
        if record.estimate is None or self.held_out not in record.estimate.sets:
            return
        agreement = record.estimate.sets[self.held_out].agreement
        self.latest = Picked(record.round, agreement, self.held_out)
        if self.best is None or agreement > self.best.agreement:
            self.best = self.latest
            self.weights = _copy_weights(student) if self.keep else None

    def reason(self) -> str | None:
        """Why the run should end after the newest measurement, to follow "stopped after round 7 of 20: "; or None."""
        if self.best is None or self.latest is None:
            return None
        images = f"held-out images ({self.held_out})"
        if self.until is not None and self.latest.agreement >= self.until:
            reached, threshold = _percent(self.latest.agreement), _percent(self.until)
            return f"agreement on {images} reached {reached}; {threshold} was asked for"
        waited = self.latest.round - self.best.round
        if self.patience is not None and waited >= self.patience:
            then, now = _percent(self.best.agreement), _percent(self.latest.agreement)
            rounds = "round" if waited == 1 else "rounds"
            return (
                f"agreement on {images} has not risen for {waited} {rounds}: {then} after round {self.best.round + 1}, "
                f"{now} now"
            )
        return None

    def state(self) -> dict[str, Any]:
        """What a resume needs, as plain values and tensors."""
        rows = [None if row is None else [row.round, row.agreement] for row in (self.best, self.latest)]
        return {"held_out": self.held_out, "best": rows[0], "latest": rows[1], "weights": self.weights}

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """The inverse of :meth:`state`; what was measured on images of another kind, or not at all, is forgotten."""
        self.best = self.latest = self.weights = None
        if saved is None or saved["held_out"] != self.held_out:
            return
        rows = (saved["best"], saved["latest"])
        self.best, self.latest = (None if row is None else Picked(row[0], row[1], self.held_out) for row in rows)
        self.weights = saved["weights"] if self.keep else None


def _copy_weights(student: nn.Module) -> dict[str, Tensor]:
    """The state dict as it now is, laid out as in plain PyTorch."""
    tensors = {name: t for name, t in student.state_dict().items() if isinstance(t, Tensor)}
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
