"""How sure a share is: confidence intervals of proportions and of the area under a ROC curve."""

import math
from typing import NamedTuple

__all__ = ["Z95", "Interval", "auc_interval", "wilson"]

Z95 = 1.959963984540054  # of the normal distribution, two-sided 95 %


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def wilson(successes: float, trials: int, z: float = Z95) -> Interval:
    """The score interval of a proportion (Wilson 1927); (0, 1) without trials.

    Unlike the share plus and minus its standard error it stays within [0, 1], and has a width at shares of 0 and 1.

    Args:
        successes: how many of the trials, 0 to ``trials``.
        trials: how many there were.
        z: quantile of the normal distribution.
    """
    if trials < 1:
        return Interval(0.0, 1.0)
    share, z2 = successes / trials, z * z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, middle - half)  # rounding would leave 1e-19
    return Interval(low, 1.0 if successes == trials else min(1.0, middle + half))


def auc_interval(auc: float, positives: int, negatives: int, z: float = Z95) -> Interval:
    """Interval of the area under a ROC curve by the standard error of Hanley and McNeil (1982), within [0, 1]."""
    if min(positives, negatives) < 1:
        return Interval(0.0, 1.0)
    both_positive, both_negative = auc / (2 - auc), 2 * auc * auc / (1 + auc)
    variance = (
        auc * (1 - auc) + (positives - 1) * (both_positive - auc * auc) + (negatives - 1) * (both_negative - auc * auc)
    ) / (positives * negatives)
    half = z * math.sqrt(max(variance, 0.0))
    return Interval(max(0.0, auc - half), min(1.0, auc + half))
