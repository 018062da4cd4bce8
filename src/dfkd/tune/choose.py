"""Which method, which student: what fits a teacher, how small and fast students are, and short trial runs of some.

Trials are short and small: a few minutes tell what learns at all, not what wins after a paper's hours.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.api import distill
from dfkd.defaults import NOISE_METHOD
from dfkd.deploy.latency import time_in_turns
from dfkd.engine.anatomy import survey
from dfkd.engine.core import Method, unmet
from dfkd.engine.heldout import inverted_set
from dfkd.errors import UserError
from dfkd.inputs import as_classifier, facts_of, runtime_of, threads_of, with_fields
from dfkd.lent import loan_of, put_back
from dfkd.methods import METHODS
from dfkd.nets.count import count_macs, count_parameters
from dfkd.nets.zoo import Classifier, build
from dfkd.prepare import prepare
from dfkd.report.without_test import last_estimate
from dfkd.settings import Images, Machine, Stopping, Text, Watching
from dfkd.tune.advice import Advice, ShortTrial, recommend
from dfkd.tune.candidates import Candidate, one_pass, shortlist, students_for
from dfkd.tune.short import shrunk_method, trial_plan

__all__ = ["Choice", "choose"]

HELDOUT = 256  # images that trials are judged on
MOST_ROUNDS = 40


@dataclass(frozen=True)
class Choice:
    """What fits a teacher.

    Attributes:
        teacher: its size and speed.
        missing: what each method lacks; nothing where it fits.
        students: those that are smaller, the largest first.
        trials: short runs in the order they were made.
        advice: what follows.
    """

    teacher: Candidate
    missing: Mapping[str, tuple[str, ...]]
    students: tuple[Candidate, ...]
    trials: tuple[ShortTrial, ...]
    advice: Advice


def choose(
    teacher: nn.Module | Classifier,
    *,
    students: Sequence[str] | None = None,
    minutes: float = 5.0,
    latency: float | None = None,
    parameters: int | None = None,
    methods: Mapping[str, Method[Any]] | None = None,
    data: Images | None = None,
    text: Text | str = "auto",
    runtime: Machine | None = None,
    tell: Callable[[ShortTrial], None] | None = None,
    **values: Any,
) -> Choice:
    """Which methods fit ``teacher``, which students are smaller and faster, and which of them learn in short runs.

    Methods are tried with one student, then the best of them with the others; all trials take about the same time and
    are judged by agreement with the teacher on one held-out set of images made from it. Nothing is written.

    Args:
        teacher: as :func:`dfkd.distill` takes it; it is not changed.
        students: names of networks; default those of the zoo (and of timm, from 64 pixels on, where it is installed)
            that are smaller than the teacher.
        minutes: for all trials together; 0: none.
        latency: most seconds of one image; ``parameters``: most of them.
        methods: to try, by name, with their settings; default all of :data:`dfkd.METHODS`.
        data, text, runtime, values: as :func:`dfkd.distill` takes them; test images are not looked at.
        tell: hears of every trial.

    Raises:
        UserError: anything that does not fit together; no student that is small enough.
    """
    sections = with_fields("choose", {"data": data or Images(), "runtime": runtime or Machine()}, values)
    if not minutes >= 0:
        raise UserError(f"choose needs minutes of at least 0, got {minutes}; raise --minutes")
    machine: Machine = sections["runtime"]
    old = as_classifier(teacher)
    with threads_of(machine):
        facts = facts_of(sections["data"], who="choose", spared=("classes",))
        classes = survey(old.net, facts.image_size, facts.classes or None, "teacher", **old.layers).classes
        settings = {"image_size": facts.image_size, "mean": facts.mean, "std": facts.std}
        data = replace(sections["data"], **settings, classes=facts.names or classes, test=None)
        room = _Room(old, data, facts.image_size, classes, text, machine)
        candidates_by_name = methods or {name: kind() for name, kind in METHODS.items()}
        ready = {name: shrunk_method(method, min(room.shape[1:])) for name, method in candidates_by_name.items()}
        with torch.random.fork_rng(devices=[]):
            reference, candidates = room.students(students, latency, parameters)
            short = shortlist(candidates, reference)
            missing, images = room.survey(short[len(short) // 2].name, ready, minutes > 0)
        fitting = {name: method for name, method in ready.items() if not missing[name]}
        trials = room.try_all(fitting, short, images, 60 * minutes, tell) if minutes and fitting else []
    return Choice(reference, missing, tuple(candidates), tuple(trials), recommend(trials, candidates, reference))


@dataclass(frozen=True)
class _Room:
    """A teacher with its images, in which students are measured and tried."""

    teacher: Classifier
    data: Images
    shape: tuple[int, int, int]
    classes: int
    text: Text | str
    machine: Machine

    def students(
        self, names: Sequence[str] | None, latency: float | None, parameters: int | None
    ) -> tuple[Candidate, list[Candidate]]:
        """The teacher and the students within the limits, each measured beside the others."""
        runtime = runtime_of(self.machine)
        image = torch.zeros(1, *self.shape, device=runtime.device)
        loan = loan_of(self.teacher.net)
        net = self.teacher.net.to(runtime.device).eval()
        try:
            smaller = students_for(net, self.shape, self.classes, names)
            within = {
                name: one for name, one in smaller.items() if parameters is None or count_parameters(one) <= parameters
            }
            nets = {"": net, **within}
            calls = {name: one_pass(one.to(runtime.device), image) for name, one in nets.items()}
            times = time_in_turns(calls, "")
            rows = [
                Candidate(
                    name,
                    count_parameters(one),
                    count_macs(one, self.shape),
                    times[name].seconds,
                    times[name].speedup,
                )
                for name, one in nets.items()
            ]
        finally:
            put_back(loan)
        students_within = [row for row in rows[1:] if latency is None or row.seconds <= latency]
        if not students_within:
            limits = {"--latency": latency, "--parameters": parameters}
            raised = " or ".join(name for name, limit in limits.items() if limit is not None)
            raise UserError(
                f"choose needs a student within the limits, got none of {len(smaller)} that are smaller than the "
                f"teacher; {f'raise {raised}, or ' if raised else ''}name some with --students"
            )
        reference = replace(rows[0], name=self.teacher.name or type(self.teacher.net).__name__)
        return reference, sorted(students_within, key=lambda row: -row.work_share(reference))

    def survey(
        self, student: str, methods: Mapping[str, Method[Any]], trials: bool
    ) -> tuple[dict[str, tuple[str, ...]], Tensor]:
        """What each method lacks with this student, and the images that ``trials`` are judged on."""
        loan = loan_of(self.teacher.net)
        pair = self.teacher, self._student(student)
        task = prepare(*pair, runtime_of(self.machine).launch(), self.data, self.text).task
        try:
            missing = {name: tuple(need.what for need in unmet(task, method)) for name, method in methods.items()}
            return missing, inverted_set(task, HELDOUT).cpu() if trials else torch.empty(0)
        finally:
            task.teacher.release()
            put_back(loan)

    def try_all(
        self,
        methods: Mapping[str, Method[Any]],
        students: Sequence[Candidate],
        images: Tensor,
        seconds: float,
        tell: Callable[[ShortTrial], None] | None,
    ) -> list[ShortTrial]:
        """Every method with the middle student, then the best of them with the others, in equal parts of the time."""
        middle = students[len(students) // 2].name
        others = [student.name for student in students if student.name != middle]
        share = seconds / (len(methods) + len(others))
        trials: list[ShortTrial] = []

        def try_pair(name: str, student: str) -> None:
            trials.append(self._try(name, methods[name], student, images, share))
            if tell is not None:
                tell(trials[-1])

        for name in methods:
            try_pair(name, middle)
        rated = [run for run in trials if run.score is not None and run.method != NOISE_METHOD]
        if rated:
            best = max(rated, key=lambda run: run.score.agreement if run.score else 0.0)
            for student in others:
                try_pair(best.method, student)
        return trials

    def _try(self, name: str, method: Method[Any], student: str, images: Tensor, seconds: float) -> ShortTrial:
        """A run of as many rounds as fit: one is timed, then all of them are run from the start."""
        began = time.monotonic()
        try:
            outcome = self._run(method, student, images, 1)
            one = time.monotonic() - began
            each = outcome.rounds[-1].seconds  # the rest is the beginning and the warm-up, which come once
            rounds = min(MOST_ROUNDS, int((seconds - one - max(one - each, 0)) / max(each, 1e-3)))
            if rounds > 1:
                outcome = self._run(method, student, images, rounds)
        except UserError as error:
            return ShortTrial(name, student, None, seconds=time.monotonic() - began, reason=str(error))
        estimate = last_estimate(outcome.rounds)
        score = None if estimate is None else estimate.sets["inverted"]
        return ShortTrial(name, student, score, len(outcome.rounds), time.monotonic() - began)

    def _run(self, method: Method[Any], student: str, images: Tensor, rounds: int) -> Any:
        return distill(
            self.teacher,
            self._student(student),
            method,
            data=self.data,
            text=self.text,
            plan=trial_plan(method.budget(), rounds),
            runtime=self.machine,
            watch=Watching(estimate=images, samples_every=0, figures=False, export=False, quiet=True, overlap=False),
            stop=Stopping(picked=False),
        ).record

    def _student(self, name: str) -> Classifier:
        """The same fresh weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.machine.seed)
            return build(name, self.classes, self.shape[0])
