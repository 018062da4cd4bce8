"""Runs that end early: the round is that of a plain loop over what was measured, and a kill changes nothing."""

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.data.readers import STATISTICS
from dfkd.engine import heldout
from dfkd.engine.checkpoint import Checkpoint
from dfkd.engine.core import Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.records import Agreement, Estimate, Keep, Observer, Picked, RoundRecord
from dfkd.engine.stopping import Judge
from dfkd.methods.noise import NoiseInput
from dfkd.report.files import read_rounds, read_run
from dfkd.settings import Stopping
from settings import SETTINGS, tiny_plan, tiny_task

ROW = SETTINGS["NoiseInput"]
MEAN, STD = STATISTICS["digits"]


def measured(agreement: float) -> Estimate:
    held = Agreement(agreement, 0.0, 1.0, 100, 0.0)
    return Estimate({"inverted": held, "own": replace(held, agreement=1 - agreement)}, {}, 0.0)


def gauge(task: Task, shown: Any) -> Estimate:
    """An agreement that follows from the student's weights alone, and goes up and down."""
    return measured(float(next(task.student.net.parameters()).detach().double().sum() * 1e4) % 1)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor] | None, b: dict[str, Tensor] | None) -> bool:
    assert a is not None
    assert b is not None
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def oracle(agreements: list[float | None], patience: int | None, until: float | None) -> tuple[int, int | None]:
    """(last round, best round) by hand; rounds without a number were not measured."""
    best, best_round = -1.0, None
    for round, agreement in enumerate(agreements):
        if agreement is None:
            continue
        if agreement > best:
            best, best_round = agreement, round
        assert best_round is not None
        ends = until is not None and agreement >= until
        ends = ends or (patience is not None and round - best_round >= patience)
        if ends:
            return round, best_round
    return len(agreements) - 1, best_round


@given(
    st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.9]), min_size=1, max_size=12),
    st.none() | st.integers(1, 4),
    st.none() | st.sampled_from([0.3, 0.9, 1.0]),
    st.integers(0, 12),
)
def test_a_judge_decides_as_a_loop_does_also_when_it_is_made_again(
    agreements: list[float | None], patience: int | None, until: float | None, again: int
) -> None:
    judge, net, last = Judge("inverted", patience, until), nn.Linear(1, 1), len(agreements) - 1
    for round, agreement in enumerate(agreements):
        if round == again:
            saved, judge = judge.state(), Judge("inverted", patience, until)
            judge.restore(saved)
        nn.init.constant_(net.weight, round)
        estimate = None if agreement is None else measured(agreement)
        judge.look(RoundRecord(round, 99, False, 1.0, {}, estimate=estimate), net)
        if estimate is not None and judge.reason():
            last = round
            break
    wanted, best = oracle(agreements, patience, until)
    assert last == wanted
    assert (None if judge.best is None else judge.best.round) == best
    if best is not None:
        assert judge.weights is not None
        assert float(judge.weights["weight"]) == best


def test_what_was_measured_on_other_images_is_forgotten() -> None:
    judge, net = Judge("own"), nn.Linear(1, 1)
    judge.look(RoundRecord(3, 9, False, 1.0, {}, estimate=measured(0.25)), net)
    assert judge.best_round == Picked(3, 0.75, "own")
    other = Judge("inverted")
    other.restore(judge.state())
    assert (other.best, other.weights, other.reason()) == (None, None, None)
    without = Judge("own", keep=False)
    without.restore(judge.state())
    assert without.best == judge.best
    assert without.best_round is None


class Killed(Observer):
    """Ends the process, as far as the run can tell, after a round and before its save."""

    def __init__(self, round: int) -> None:
        self.round = round

    def rounded(self, record: RoundRecord) -> str | None:
        if record.round == self.round:
            raise KeyboardInterrupt
        return None


def judged(rules: dict[str, Any], folder: Path, resume: bool = False, kill: int = 99) -> tuple[Task, Watch, Keep]:
    """A run of eight rounds, measured in every one after the warm-up."""
    task, keep = tiny_task(ROW), Keep()
    watch = Watch([keep, Killed(kill)], gauge=gauge, judge=Judge(**rules), checkpoint=Checkpoint(folder), save_every=0)
    try:
        run(task, NoiseInput(), tiny_plan(rounds=8, warmup=1), watch, resume)
    except KeyboardInterrupt:
        assert kill < 99
    return task, watch, keep


RULES: list[dict[str, Any]] = [{}, {"patience": 1}, {"patience": 2}, {"patience": 3}, {"until": 0.8}, {"until": 1.0}]


@dataclass(frozen=True)
class Whole:
    """A run without a rule: the agreement after each round, and the student as it then was."""

    agreements: list[float | None]
    students: list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def whole() -> Whole:
    task, keep, students = tiny_task(ROW), Keep(), []

    class Copy(Observer):
        def rounded(self, record: RoundRecord) -> None:
            students.append(weights_of(task.student.net))

    run(task, NoiseInput(), tiny_plan(rounds=8, warmup=1), Watch([keep, Copy()], gauge=gauge))
    agreements = [None if r.estimate is None else r.estimate.sets["inverted"].agreement for r in keep.records]
    assert agreements[0] is None  # the warm-up
    return Whole(agreements, students)


def check_end(whole: Whole, rules: dict[str, Any], task: Task, watch: Watch, folder: Path) -> int:
    """The run ended where the loop says, with the students of the run without a rule; the last round."""
    last, best = oracle(whole.agreements, rules.get("patience"), rules.get("until"))
    assert best is not None
    assert (watch.stopped is None) == (last == 8)
    assert Checkpoint(folder).rounds() == last + 1
    assert same(weights_of(task.student.net), whole.students[last])
    assert watch.judge is not None
    assert watch.judge.best_round == Picked(best, whole.agreements[best] or 0.0, "inverted")
    assert same(watch.judge.weights, whole.students[best])
    return last


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_run_ends_after_the_round_of_the_loop_and_keeps_its_best(
    rules: dict[str, Any], whole: Whole, tmp_path: Path
) -> None:
    task, watch, keep = judged(rules, tmp_path)
    last = check_end(whole, rules, task, watch, tmp_path)
    assert [record.stopped for record in keep.records] == [*[None] * last, watch.stopped]


@pytest.mark.parametrize(("patience", "kill"), [(None, 6), (2, 1), (2, 3), (3, 4)])
def test_a_kill_changes_neither_the_end_nor_the_students(
    patience: int | None, kill: int, whole: Whole, tmp_path: Path
) -> None:
    rules = {"patience": patience}
    assert kill <= oracle(whole.agreements, patience, None)[0]
    judged(rules, tmp_path, kill=kill)
    task, watch, _ = judged(rules, tmp_path, resume=True)
    check_end(whole, rules, task, watch, tmp_path)


def test_a_run_that_a_rule_ended_goes_on_only_without_it(whole: Whole, tmp_path: Path) -> None:
    rules = {"patience": 2}
    _, first, keep = judged(rules, tmp_path)
    task, watch, kept = judged(rules, tmp_path, resume=True)
    assert kept.records == []
    assert watch.stopped == first.stopped
    assert check_end(whole, rules, task, watch, tmp_path) + 1 == len(keep.records) < 9
    task, watch, kept = judged({}, tmp_path, resume=True)
    check_end(whole, {}, task, watch, tmp_path)
    assert len(keep.records) + len(kept.records) == 9


def test_a_checkpoint_without_a_judge_is_gone_on_with(tmp_path: Path) -> None:
    watch = Watch(checkpoint=Checkpoint(tmp_path), save_every=0)
    run(tiny_task(ROW), NoiseInput(), tiny_plan(rounds=4), watch)
    judge = Judge(patience=1)
    judge.look(RoundRecord(0, 9, False, 1.0, {}, estimate=measured(0.5)), nn.Linear(1, 1))
    run(tiny_task(ROW), NoiseInput(), tiny_plan(rounds=4), replace(watch, judge=judge), resume=True)
    assert judge.best is None


# ---- the front door --------------------------------------------------------------------------------------------------

METHOD = dfkd.NAYER(steps=2, synthesis_batch=20, batches=1, warmup_batches=1, width=8, channels=4, pad=1, flip=False)
PLAN = replace(METHOD.budget(), rounds=5, warmup=1, steps=2, batch_size=16)
LINE = (
    "distill --student wrn10-1 --data digits --text index --method.steps 2 --method.synthesis_batch 20"
    " --method.batches 1 --method.warmup_batches 1 --method.width 8 --method.channels 4 --method.pad 1"
    " --method.flip false"
    " --plan.rounds 5 --plan.warmup 1 --plan.steps 2 --plan.batch_size 16 --watch.export false --watch.figures false"
    " --watch.samples_every 0 --runtime.device cpu --runtime.threads 1"
)


@pytest.fixture
def _quick_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out images that are hardly optimised: these tests look at rounds, not at pixels."""
    monkeypatch.setattr(heldout, "STEPS", 2)


def distilled(teacher: nn.Module, **values: Any) -> dfkd.Distilled:
    torch.manual_seed(0)
    student = dfkd.build("wrn10-1", classes=10, channels=1)
    more = {"image_size": (1, 8, 8), "mean": MEAN, "std": STD, "classes": 10, "text": "index"}
    more |= {"export": False, "figures": False}
    return dfkd.distill(teacher, student, METHOD, plan=PLAN, progress=False, **more, **values)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("_quick_images")
def test_python_and_shell_end_alike(
    digits_teacher: nn.Module, digits_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = distilled(digits_teacher, picked=True, out=tmp_path / "free")
    agreements = [None if r.estimate is None else r.estimate.sets["inverted"].agreement for r in free.record.rounds]
    last, best = oracle(agreements, 1, None)
    assert last < 5
    ruled = distilled(digits_teacher, patience=1, out=tmp_path / "python")
    assert ruled.record.stopped is not None
    assert len(ruled.record.rounds) == last + 1
    assert ruled.record.picked is not None
    assert ruled.record.picked.round == best
    shell = shlex.split(f"{LINE} --teacher wrn16-1 --teacher.weights {digits_weights} --out {tmp_path / 'shell'}")
    capsys.readouterr()
    assert main([*shell, "--stop.patience", "1"]) == 0
    said = capsys.readouterr().out
    stopped, picked = ruled.record.stopped, f"was highest after round {(best or 0) + 1}, "
    assert f"stopped after round {last + 1} of 6: {stopped}" in said
    assert picked in said
    for name in ("python", "shell"):
        folder = tmp_path / name
        stored = read_run(folder)
        assert stored.status == "stopped"
        assert stored.result is not None
        assert stored.result.stopped == stopped
        assert stored.result.picked == ruled.record.picked
        assert read_rounds(folder / "metrics.jsonl")[-1].stopped == stopped
        page = (folder / "report.html").read_text()
        assert f"stopped after round {last + 1} of 6: {stopped}" in page
        assert picked in page
        assert same(load_file(folder / "picked.safetensors"), load_file(tmp_path / "python/picked.safetensors"))
        assert same(load_file(folder / "student.safetensors"), load_file(tmp_path / "python/student.safetensors"))
    assert same(ruled.picked, load_file(tmp_path / "python/picked.safetensors"))
    net = dfkd.load(tmp_path / "shell/picked.safetensors")
    assert json.loads((tmp_path / "shell/picked.json").read_text())["picked"]["round"] == best
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    before = (tmp_path / "shell/picked.safetensors").read_bytes()
    assert main(["distill", "--resume", str(tmp_path / "shell"), "--watch.quiet"]) == 0  # ends where it ended
    assert read_run(tmp_path / "shell").status == "stopped"
    assert (tmp_path / "shell/picked.safetensors").read_bytes() == before
    rest = shlex.split("--watch.quiet --stop.patience null --stop.picked true")
    assert main(["distill", "--resume", str(tmp_path / "shell"), *rest]) == 0
    stored = read_run(tmp_path / "shell")
    assert stored.status == "finished"
    assert stored.result is not None
    assert stored.result.picked == free.record.picked
    for file in ("student.safetensors", "picked.safetensors"):
        assert same(load_file(tmp_path / "shell" / file), load_file(tmp_path / "free" / file))


@pytest.mark.usefixtures("_quick_images")
def test_the_agreement_asked_for_ends_a_run_and_nothing_is_kept_unasked(
    digits_teacher: nn.Module, tmp_path: Path
) -> None:
    done = distilled(digits_teacher, until_agreement=0.01, held_out="own", picked=False, out=tmp_path / "run")
    assert done.record.stopped is not None
    assert done.record.stopped.startswith("agreement on held-out images (own) reached ")
    assert done.record.stopped.endswith("; 1.00 % was asked for")
    assert (done.record.picked, done.picked) == (None, None)
    assert not list(tmp_path.glob("run/picked*"))


def test_short_runs_without_a_rule_are_not_measured(digits_teacher: nn.Module) -> None:
    done = distilled(digits_teacher)
    assert done.record.picked is None
    assert all(not record.estimate.sets for record in done.record.rounds if record.estimate is not None)


BAD = [
    ("patience", 0, "of at least 1, got 0"),
    ("patience", 2.5, "to be a whole number, got 2.5"),
    ("until_agreement", 1.5, "above 0 and up to 1, got 1.5"),
    ("until_agreement", 0.0, "above 0 and up to 1, got 0.0"),
]


@pytest.mark.parametrize(("name", "value", "told"), BAD)
def test_bad_values_are_one_sentence(
    name: str, value: float, told: str, digits_teacher: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(dfkd.UserError, match=f"^stop needs {name} {told}; change {name}$"):
        Stopping(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(dfkd.UserError, match=f"^stop needs {name} {told}"):
        distilled(digits_teacher, **{name: value})
    assert main([*shlex.split(LINE), f"--stop.{name}", str(value)]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert str(value) in said
    assert said.count("\n") == 1


def test_what_contradicts_itself_is_refused(digits_teacher: nn.Module, tmp_path: Path) -> None:
    for rule in ({"patience": 3}, {"until_agreement": 0.9}, {"picked": True}):
        name = next(iter(rule))
        with pytest.raises(dfkd.UserError, match=f"stop.{name} needs the agreement on held-out images, got watch.esti"):
            distilled(digits_teacher, estimate=False, out=tmp_path / "x", **rule)
    task = tiny_task(ROW)
    with pytest.raises(dfkd.UserError, match=r"stop.held_out needs images that the run makes of its own, got 'own' wi"):
        dfkd.distill(
            task.teacher.release(), task.student.release(), NoiseInput(), image_size=(1, 8, 8), mean=[0.4], std=[0.3],
            classes=4, plan=tiny_plan(), progress=False, stop=Stopping(patience=1, held_out="own"),
        )  # fmt: skip
    assert not (tmp_path / "x").exists()


def test_recipes_with_rules_serve_other_commands(digits_weights: Path, tmp_path: Path) -> None:
    from dfkd.cli.config import Bench, Distill
    from dfkd.cli.setup import resolve

    tree = {"teacher": {"name": "wrn16-1"}, "stop": {"patience": 4}}
    assert resolve(Distill, tree)[0].stop == Stopping(patience=4)
    assert not hasattr(resolve(Bench, tree)[0], "stop")


def test_a_stored_run_from_before_there_were_rules_is_read(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    page = json.loads((folder / "run.json").read_text())
    del page["result"]["picked"]
    (folder / "run.json").write_text(json.dumps(page))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["stopped"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = read_run(folder)
    assert stored.result is not None
    assert stored.result.picked is None
    assert stored.rounds[-1].stopped is None
