"""What the numbers of a round mean, for whoever shows them: title, unit, dashed level, and when they are a bad sign."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["RUN_MEASURES", "Alarm", "Measure", "class_entropy_measure", "is_loss"]


@dataclass(frozen=True)
class Alarm:
    """A low value that means a run goes wrong.

    Attributes:
        kind: tells alarms apart; each is raised once.
        below: the mean of the last rounds should not be lower.
        text: one sentence for a person; ``{value}``, ``{level}`` and ``{classes}`` stand for numbers.
        of_level: ``below`` is a share of the measure's level.
    """

    kind: str
    below: float
    text: str
    of_level: bool = False


@dataclass(frozen=True)
class Measure:
    """What a metric is that is no loss (losses are called ``loss/...`` and explain themselves).

    Attributes:
        title: a few words, as above a chart.
        unit: such as ``nats``.
        meaning: what the title leaves open, in a few words.
        level: height of a dashed line: a number, the number of classes K, or log K.
        level_name: what the dashed line means; ``{level}`` stands for its height.
        minor: only among the curves of all measures, not on the page.
        alarm: when it is a bad sign.
    """

    title: str
    unit: str = ""
    meaning: str = ""
    level: float | Literal["classes", "log classes"] | None = None
    level_name: str = ""
    minor: bool = False
    alarm: Alarm | None = None

    def height(self, classes: int) -> float | None:
        """Where the dashed line is for K classes; None without one."""
        if isinstance(self.level, str):
            return float(classes) if self.level == "classes" else math.log(classes)
        return self.level

    @property
    def heading(self) -> str:
        """The title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def note(self, classes: int) -> str:
        """What stands beside a chart: the meaning, and what the dashed line is."""
        level = self.height(classes)
        dashed = "" if level is None else f"dashed: {self.level_name.format(level=level)}"
        return "; ".join(part for part in (self.meaning, dashed) if part)


def is_loss(name: str) -> bool:
    """Is the metric of this name a loss?"""
    return name.startswith("loss/")


def class_entropy_measure(
    remedy: str,
    title: str = "class entropy of a batch",
    finding: str = "The synthetic images show few of the {classes} classes: the entropy of a batch",
) -> Measure:
    """The measure ``class_entropy``, of synthetic images unless ``title`` and ``finding`` say otherwise.

    Its alarm begins with the ``finding`` and ends in the ``remedy``, what to change.
    """
    return Measure(
        title,
        "nats",
        level="log classes",
        level_name="balanced classes, {level:.2f}",
        alarm=Alarm(
            "entropy",
            0.5,
            f"{finding} is {{value:.2f}} nats, balanced classes have {{level:.2f}}; {remedy}.",
            of_level=True,
        ),
    )


RUN_MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "class_entropy": class_entropy_measure("raise the weight of the class loss or the synthesis steps"),
        "pairwise_distance": Measure(
            "distance between two images",
            meaning="root mean square of pixels",
            level=0.0,
            level_name="all images equal",
            alarm=Alarm(
                "distance",
                0.02,  # five steps of 255: images closer than that look the same
                "The images that the student learns from look all the same: the mean distance between two of them is "
                "{value:.4f} on a scale of 0 to 1; where a generator makes them, lower its learning rate or renew its "
                "noise more often.",
            ),
        ),
        "within_class_distance": Measure(
            "distance between two images of a class",
            meaning="root mean square of pixels",
            level=0.0,
            level_name="one image a class",
            alarm=Alarm(
                "class",
                0.02,
                "Every class has one image: the mean distance between two images of a class is {value:.4f} on a scale "
                "of 0 to 1; give the generator more noise, or draw it anew more often.",
            ),
        ),
        "pool": Measure("images stored"),
        "images": Measure("images made", minor=True),
        "images_per_second": Measure("images made per second", minor=True),
        "graphs": Measure("compiled graphs", minor=True),
        "lr": Measure("learning rate of the student"),
    }
)
"""Of every run, and of what many methods return (``class_entropy``, ``within_class_distance``)."""
