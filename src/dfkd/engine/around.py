"""A method made around another: everything that is not overridden is the other's."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from dfkd.engine.core import Clock, Method, Metrics, Need, S, State, Task
from dfkd.engine.measures import Measure
from dfkd.engine.plan import Plan
from dfkd.engine.views import View
from dfkd.types import Batch, Bytes, Scalar

__all__ = ["Around"]


class Around(Method[S]):
    """Forwards every verb to :attr:`inner`, whose state is :meth:`inner_state`. Override what differs."""

    default_plan: ClassVar[Plan] = Plan()

    @property
    @abstractmethod
    def inner(self) -> Method[Any]:
        """The method that makes the images."""

    def inner_state(self, state: S) -> State:
        """Its state within this one's; the state itself where nothing is added."""
        return state

    def needs(self) -> frozenset[Need]:
        """What the inner method needs."""
        return self.inner.needs()

    def period(self) -> int:
        """That of the inner method."""
        return self.inner.period()

    def least_warmup(self) -> int:
        """That of the inner method."""
        return self.inner.least_warmup()

    def budget(self) -> Plan:
        """That of the inner method."""
        return self.inner.budget()

    def fit(self, teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> nn.Module:
        """As the inner method does."""
        return self.inner.fit(teacher, student, image_size)

    def all_measures(self) -> Mapping[str, Measure]:
        """Those of the inner method, and its own."""
        return {**self.inner.all_measures(), **self.measures}

    def views(self, task: Task, state: S | None, real: Bytes | None) -> Mapping[str, Callable[[], View]]:
        """Those of the inner method."""
        return self.inner.views(task, None if state is None else self.inner_state(state), real)

    def setup(self, task: Task, plan: Plan) -> S:
        """The inner method's state."""
        state: S = self.inner.setup(task, plan)
        return state

    def synthesize(self, task: Task, state: S, clock: Clock) -> Metrics:
        """As the inner method does."""
        return self.inner.synthesize(task, self.inner_state(state), clock)

    def student_steps(self, task: Task, state: S, clock: Clock) -> int:
        """As many as the inner method says."""
        return self.inner.student_steps(task, self.inner_state(state), clock)

    def batch(self, task: Task, state: S, clock: Clock) -> Batch:
        """Of the inner method."""
        return self.inner.batch(task, self.inner_state(state), clock)

    def loss(self, task: Task, state: S, batch: Batch) -> Scalar:
        """Of the inner method."""
        return self.inner.loss(task, self.inner_state(state), batch)
