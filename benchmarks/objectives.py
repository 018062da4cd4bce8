"""One step of every method on given images: losses and gradients, compiled as in a run.

:class:`Steps` holds what the methods need beside the pair; two of them on equal pairs compute the same numbers, up to
precision and compilation. Nothing is cropped or mirrored: both sides see the images they are given.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import dfkd
from benchmarks.experiments import DIGITS_D3K, DIGITS_NAYER, DIGITS_SPACESHIP, DIGITS_STTS
from dfkd.engine.core import Method, State, Task
from dfkd.engine.plan import Plan
from dfkd.methods import d3k, nayer, spaceship, stts
from dfkd.methods.kd3 import KD3
from dfkd.ops.hashing import dhash_codes
from dfkd.ops.mixing import draw_mix_distribution
from dfkd.ops.pixels import as_bytes
from dfkd.types import Batch, Scalar

__all__ = ["OBJECTIVES", "Steps"]

# What is compared: the students' losses, by the student's weights; what images are made with, by the pixels of real
# images (which all variants see alike); the same through a fresh generator, by its weights.
OBJECTIVES = (
    "student",
    "Spaceship-Net, student",
    "KD3, student",
    "generator",
    "Spaceship-Net, pixels",
    "D3K, pixels",
    "STTS, pixels",
    "NAYER, weights of G",
    "Spaceship-Net, weights of G",
    "D3K, weights of G",
)
PLAN = Plan(rounds=1, warmup=1, steps=1, batch_size=2, lr=0.1)
ONE_SHAPE: dict[str, Any] = {"widths": (64, 64), "kernels": (3,)}  # D3K compiles a generator whose shape stays


@dataclass(frozen=True)
class Learner:
    """A student with its method: what the driver compiles, and what it differentiates by."""

    task: Task
    state: State
    loss: Callable[[Batch], Scalar]
    weights: Sequence[Tensor]


class Steps:
    """The methods on one pair.

    Args:
        task: the pair, on a runtime of the variant; trained by nobody, but its student's BatchNorm layers see images.
        n: images in a batch.
    """

    def __init__(self, task: Task, n: int) -> None:
        self.task = task
        self.nayer = replace(DIGITS_NAYER, synthesis_batch=n)
        self.spaceship = replace(DIGITS_SPACESHIP, synthesis_batch=n, memory=n)
        self.d3k = replace(DIGITS_D3K, synthesis_batch=n, **ONE_SHAPE)
        self.stts = replace(DIGITS_STTS, synthesis_batch=n)
        self.learners = {
            "student": self._learner(task, self.nayer),
            "Spaceship-Net, student": self._learner(task, self.spaceship),
            "KD3, student": self._learner(_with_teachers_head(task), KD3()),
        }
        with stts._tools(self.stts, task, self._setup(task, self.stts)) as tools:
            self.tools = tools

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Every objective's loss and gradient, flattened."""
        found = {}
        for name, learner in self.learners.items():
            found[name] = self._student_gradient(learner, images, labels)
        self.task.student.freeze()
        for name, made in (*self._pixels(images, labels), *self._weights(images, labels)):
            found[name] = made
        return found

    def _student_gradient(self, learner: Learner, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        learner.task.student.train()
        for weight in learner.weights:
            weight.requires_grad_(True)
        extra = {"perturbed": draw_mix_distribution(images, 0.1, self._fresh())}  # only KD3 looks at it
        return _gradient(learner.loss(Batch(images, labels, None, extra)), learner.weights)

    def _pixels(self, images: Tensor, labels: Tensor) -> list[tuple[str, tuple[float, Tensor]]]:
        T, S, compile = self.task.teacher, self.task.student, self.task.runtime.compile
        x, bank = images.clone().requires_grad_(True), dhash_codes(images.flip(0), self.d3k.hash_pool)
        made = [
            ("generator", compile(nayer.objective)(self.nayer, T, S, x, labels, [], True).loss),
            ("Spaceship-Net, pixels", compile(spaceship.objective)(self.spaceship, T, x, labels).loss),
            ("D3K, pixels", compile(d3k.objective)(self.d3k, T, S, x, x, labels, bank, True).loss),
        ]
        found = [(name, _gradient(loss, [x])) for name, loss in made]
        rest, eye = self.tools
        self._fresh()
        y = stts._draw(self.stts, self.task, rest)
        x = T.normalise(images).detach().requires_grad_(True)
        return [*found, ("STTS, pixels", _gradient(compile(stts.objective)(self.stts, eye, x, y).loss, [x]))]

    def _weights(self, images: Tensor, labels: Tensor) -> list[tuple[str, tuple[float, Tensor]]]:
        task, T, S, compile = self.task, self.task.teacher, self.task.student, self.task.runtime.compile
        state = self._setup(task, self.nayer)
        state.G.train()
        e = nayer._embed(self.nayer, task, labels)
        with task.runtime.autocast():
            x = compile(nayer.generate)(state.G, state.Z, e).float()
        loss = compile(nayer.objective)(self.nayer, T, S, x, labels, [], True).loss
        first = _gradient(loss, [*state.G.parameters(), *state.Z.parameters()])

        G = self._setup(task, self.spaceship).G.train()
        with task.runtime.autocast():
            _, x = compile(spaceship.generate)(G, self._codes(images, self.spaceship.width))
        loss = compile(spaceship.objective)(self.spaceship, T, x.float(), labels).loss
        second = _gradient(loss, list(G.parameters()))

        torch.manual_seed(0)
        bank = dhash_codes(images, self.d3k.hash_pool)
        G = d3k._generator(self.d3k, task)
        with task.runtime.autocast():
            x = compile(d3k.generate)(G, self._codes(images, self.d3k.width), None).float()
        loss = compile(d3k.objective)(self.d3k, T, S, x, x, labels, bank, True).loss
        third = _gradient(loss, list(G.parameters()))
        return [
            (f"{name}, weights of G", made)
            for name, made in (("NAYER", first), ("Spaceship-Net", second), ("D3K", third))
        ]

    def _codes(self, images: Tensor, width: int) -> Tensor:
        return torch.randn(len(images), width, generator=self._fresh(), device=images.device)

    def _setup(self, task: Task, method: Method[Any]) -> Any:
        """A fresh state, the same every time."""
        torch.manual_seed(0)
        self._fresh()
        state = method.setup(task, PLAN)
        task.runtime.place(state.joint)
        return state

    def _learner(self, task: Task, method: Method[Any]) -> Learner:
        state = self._setup(task, method)
        own = [p for name, p in task.student.net.named_parameters() if name not in state.fixed_parameters]
        task.student.freeze()
        loss = task.runtime.compile(lambda batch: method.loss(task, state, batch))
        return Learner(task, state, loss, [*own, *state.joint.parameters()])

    def _fresh(self) -> torch.Generator:
        return self.task.runtime.generator.manual_seed(0)


def _gradient(loss: Tensor, by: Sequence[Tensor]) -> tuple[float, Tensor]:
    gradients = torch.autograd.grad(loss, by)
    return float(loss.detach()), torch.cat([g.flatten() for g in gradients])


def _with_teachers_head(task: Task) -> Task:
    """KD3's pair: a copy of the student with the teacher's classifier, and a few web images that nobody looks at."""
    torch.manual_seed(0)
    teacher = task.teacher
    student = copy.deepcopy(task.student.net)  # hooks of the other probe come along, but read nothing while it sleeps
    dfkd.share_head(teacher.net, student, task.image_shape)
    return dfkd.build_task(
        teacher.net,
        student,
        image_size=task.image_shape,
        mean=teacher.mean.flatten().tolist(),
        std=(1 / teacher.scale).flatten().tolist(),
        classes=task.classes,
        text="auto" if task.text is None else task.text,
        web=as_bytes(torch.rand(4, *task.image_shape)),
        runtime=task.runtime,
    )
