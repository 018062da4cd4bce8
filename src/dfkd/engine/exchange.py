"""Spaceship-Net's channel-wise feature exchange (CFE) with the generator of another method."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, final, runtime_checkable

import torch
from torch import Tensor

from dfkd.data.pool import Pool
from dfkd.engine.around import Around
from dfkd.engine.core import Clock, Method, Metrics, State, Task
from dfkd.engine.limits import Count, Share
from dfkd.engine.plan import Plan
from dfkd.errors import UserError
from dfkd.nets.generators import ConvGenerator
from dfkd.ops.augment import crop_flip
from dfkd.ops.exchange import exchange_channels
from dfkd.types import Batch

__all__ = ["Exchange", "ExchangeState", "Staged"]


@runtime_checkable
class Staged(Protocol):
    """A state whose newest images can be made again in stages, so that there are features in between.

    Attributes:
        pool: images with ``labels``; the newest are those that ``codes`` belong to.
        G: the generator.
        codes: what has to enter it, as it is now, for the newest batch (n, r).
        born: the round in which it was last made anew; features of an older one mean nothing to it.
    """

    pool: Pool
    G: ConvGenerator
    codes: Tensor
    born: int


@dataclass
class ExchangeState(State):
    """The method's own state, and features of its generator. ``pool`` is the method's, so that it is saved and shown.

    ``choices`` are this round's draws for every student step: the tap whose features are exchanged, or None for a
    batch of the method's own.
    """

    images: State
    pool: Pool
    features: Pool  # columns tap0, tap1, tap2 (float16) and labels
    first: int = 0  # features added before this one were made by a generator that is gone
    choices: list[int | None] = field(default_factory=list)


@final
@dataclass(frozen=True)
class Exchange(Around[ExchangeState]):
    """``of``, with a share of its batches decoded from exchanged features.

    ``Exchange(NAYER())`` trains on NAYER's images and, with probability ``p``, on a batch that its generator decodes
    from stored features of which pairs of samples exchanged channels. After every synthesis the features of the newest
    batch are stored: those of the generator as it stands, for that is the one that decodes. It decodes in eval mode,
    and only features that it made itself: where the method makes its generator anew, the older ones are passed over.

    The method's state has to be :class:`Staged`. Exchanged images are cropped and mirrored as ``pad`` and ``flip`` of
    the method say, or not at all where it has none.
    """

    of: Method[Any]  # the method whose images these are, with its own settings
    p: Share = 0.7  # p, probability per batch of exchanging (Spaceship-Net's code)
    fraction: Share = 0.5  # share of the channels that are exchanged
    pairs: Literal["complementary", "independent"] = "complementary"  # independent: each row its own channels (code)
    taps: tuple[int, ...] = (0, 1, 2)  # which layers of G are stored; one is chosen per student step
    memory: Count = 4096  # samples kept, the newest: 0.9 GB of CIFAR-10's size with 64 channels
    limit_bytes: Count | None = None  # above it the features are memory-mapped; None: 60 % of the device's free memory

    def check_values(self) -> None:
        """Taps that exist, each once."""
        if not self.taps or not set(self.taps) <= {0, 1, 2} or len(set(self.taps)) < len(self.taps):
            raise UserError(f"Exchange needs different taps among 0, 1 and 2, got {self.taps}; for example (0, 2)")

    @property
    def inner(self) -> Method[Any]:
        """The method whose images these are."""
        return self.of

    def inner_state(self, state: ExchangeState) -> State:
        """That of ``of``."""
        return state.images

    def setup(self, task: Task, plan: Plan) -> ExchangeState:
        """The method's, and an empty pool of features.

        Raises:
            UserError: the method has no generator that decodes in stages, or does not remember what entered it.
        """
        images: State = self.of.setup(task, plan)
        G = getattr(images, "G", None)
        if not isinstance(images, Staged) or not isinstance(G, ConvGenerator):
            kind = type(self.of).__name__ + ("" if G is None else f" with a {type(G).__name__}")
            raise UserError(
                f"Exchange needs a method that keeps a generator in stages and its codes, got {kind}; choose one "
                "whose state has them, with generator conv"
            )
        capacity = min(self.memory, images.pool.capacity)
        features = Pool(capacity, _columns(G, self.taps), task.runtime.device, self.limit_bytes)
        shared = {"joint": images.joint, "fixed_parameters": images.fixed_parameters, "optimizers": images.optimizers}
        return ExchangeState(cast(State, images), images.pool, features, **shared)  # type: ignore[arg-type]

    def synthesize(self, task: Task, state: ExchangeState, clock: Clock) -> Metrics:
        """The method's; then its newest features, and the choices of the whole round: the device is asked once."""
        metrics = self.of.synthesize(task, state.images, clock)
        images = cast(Staged, state.images)
        if images.born == clock.round and clock.turn == 0:
            state.first = state.features.added
        images.G.eval()
        task.runtime.level(images.G)
        with torch.no_grad(), task.runtime.autocast():
            taps = images.G.features(images.codes)
        labels = images.pool.newest(len(images.codes))["labels"]  # fewer than codes where its memory is that small
        columns = {f"tap{i}": taps[i][-len(labels) :].half() for i in self.taps}
        state.features.add(**columns, labels=labels)
        state.choices = _choose(self, clock.plan.steps, task.runtime.generator)
        return metrics

    def batch(self, task: Task, state: ExchangeState, clock: Clock) -> Batch:
        """The method's, or one decoded from exchanged features, with the labels of the rows that were drawn."""
        tap = state.choices[clock.step]
        if tap is None:
            return self.of.batch(task, state.images, clock)
        rng = task.runtime.generator
        rows = _draw(state, clock.plan.batch_size, [f"tap{tap}", "labels"], rng)
        features = exchange_channels(rows[f"tap{tap}"], self.fraction, rng, self.pairs)
        with task.runtime.autocast():
            x = cast(Staged, state.images).G.decode(features, tap).float()
        pad, flip = getattr(self.of, "pad", 0), getattr(self.of, "flip", False)
        return Batch(crop_flip(x, rng, pad, flip), rows["labels"])


def _columns(G: ConvGenerator, taps: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Columns of the feature pool; shapes as a code of zeros gives them."""
    weight = G.project.weight
    with torch.no_grad():
        features = G.eval().features(weight.new_zeros(1, weight.shape[1]))
    return {**{f"tap{i}": (tuple(features[i].shape[1:]), torch.float16) for i in taps}, "labels": ((), torch.int64)}


def _choose(method: Exchange, steps: int, generator: torch.Generator) -> list[int | None]:
    """For every student step of a round: a uniform tap, or, with probability 1 - p, none. One wait for the device."""
    taps = torch.randint(len(method.taps), (steps,), generator=generator, device=generator.device)
    exchanged = torch.rand(steps, generator=generator, device=generator.device) >= method.p
    return [None if i < 0 else method.taps[i] for i in taps.masked_fill(exchanged, -1).tolist()]


def _draw(state: ExchangeState, n: int, names: list[str], generator: torch.Generator) -> dict[str, Tensor]:
    """``n`` rows of features, uniform with replacement, among those that the present generator made."""
    pool = state.features
    first = max(state.first, pool.added - len(pool))
    index = torch.randint(first, pool.added, (n,), generator=generator, device=generator.device)
    return pool.take(index % pool.capacity, names)
