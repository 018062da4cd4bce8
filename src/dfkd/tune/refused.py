"""Trials of a search that were refused before their first round."""

from contextlib import ExitStack

from dfkd.errors import UserError
from dfkd.tune.study import Ledger

__all__ = ["RefusedTrials"]


class RefusedTrials:
    """Trials whose runs could not begin, and which this process holds until it is known why.

    Where the run of another trial begins, their settings are to blame and they have failed. Where none does, something
    else may be wrong (a full disk, a busy GPU): they are let go and tried again by the next call, once.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.in_a_row = ledger, 0
        self.trials: list[tuple[int, UserError, ExitStack]] = []

    def add(self, number: int, refusal: UserError, hold: ExitStack) -> list[int]:
        """Hold a trial, or let it fail where it was refused before; the numbers of those that failed."""
        self.in_a_row += 1
        if self.ledger.count_refusal(number) == 1:
            self.trials.append((number, refusal, hold))
            return []
        self.ledger.tell(number, None, "failed", str(refusal))
        hold.close()
        return [number]

    def blame_settings(self) -> list[int]:
        """Let all of them fail; their numbers."""
        for number, refusal, _ in self.trials:
            self.ledger.tell(number, None, "failed", str(refusal))
        numbers = [number for number, _, _ in self.trials]
        self.close()
        return numbers

    def close(self) -> None:
        """Let go of all of them."""
        for _, _, hold in self.trials:
            hold.close()
        self.trials, self.in_a_row = [], 0
