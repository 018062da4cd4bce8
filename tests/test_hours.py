"""Plans for a time: the longest that fits by hand, decided once, and the run is that of the plan."""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import dfkd
from dfkd.cli.main import main
from dfkd.data.readers import STATISTICS
from dfkd.engine import driver, hours, laps
from dfkd.engine import estimate as module
from dfkd.engine.driver import Watch, run
from dfkd.engine.estimate import Estimate
from dfkd.engine.hours import RESERVE, fit_plan, most_rounds, shorten
from dfkd.engine.plan import Plan
from dfkd.engine.records import Observer, RoundRecord
from dfkd.report.files import read_run
from settings import SETTINGS, tiny_plan, tiny_task
from test_estimate import Hand, Paced

MEAN, STD = STATISTICS["digits"]


@given(st.integers(1, 300), st.integers(0, 30), st.integers(0, 40), st.floats(0, 4000))
def test_the_most_rounds_are_those_of_trying_all(rounds: int, warmup: int, start: int, seconds: float) -> None:
    plan = Plan(rounds=rounds, warmup=warmup)

    def total(shorter: Plan) -> float:
        return start + 11.0 * shorter.rounds + 3.0 * shorter.warmup

    fits = [n for n in range(1, rounds + 1) if total(shorten(plan, n)) <= seconds]
    assert most_rounds(plan, seconds, total) == max(fits, default=0)


def test_what_a_shorter_plan_keeps() -> None:
    plan = Plan(rounds=200, warmup=20, schedule="step", milestones=(100, 150), steps=7)
    half = shorten(plan, 100)
    assert (half.rounds, half.warmup, half.milestones, half.steps) == (100, 10, (50, 75), 7)
    assert [plan.rate(20 + 2 * n) for n in range(100)] == [half.rate(10 + n) for n in range(100)]
    least = shorten(plan, 1)
    assert (least.rounds, least.warmup, least.milestones) == (1, 1, (1, 1))
    assert least.rate(1) == plan.lr
    assert shorten(plan, 200) is plan
    cosine = shorten(Plan(rounds=200), 50)
    assert [Plan(rounds=200).rate(4 * n) for n in range(50)] == [cosine.rate(n) for n in range(50)]


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    clock = Hand()
    for place in (driver, laps, module, hours):
        monkeypatch.setattr(place, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.mark.parametrize(("given", "rounds"), [(1.0, 6), (0.06, 3), (0.056, 1)])
def test_a_run_takes_no_longer_than_it_was_given(hand: Hand, given: float, rounds: int) -> None:
    """A paced round takes 3 + 30 / 8 seconds, one of the warm-up 7, beginning 20 + 50, measuring 96.25."""
    task, plan = tiny_task(SETTINGS["NoiseInput"]), tiny_plan(rounds=6, warmup=2, steps=30)
    before = hand.now
    fit = fit_plan(task, Paced(hand), plan, Watch(), given)
    began = hand.now
    run(task, Paced(hand), fit.plan)
    left = (1 - RESERVE) * 3600 * given - (began - before)
    assert hand.now - began == pytest.approx(fit.estimate.total)
    assert fit.estimate.total <= left
    assert (fit.hours, fit.asked) == (given, plan)
    if rounds < 6:
        began = hand.now
        run(task, Paced(hand), shorten(plan, rounds + 1))
        assert hand.now - began > left
    assert fit.plan.rounds == rounds


def test_no_round_fits(hand: Hand) -> None:
    with pytest.raises(
        dfkd.UserError, match=r"^stop.hours needs time for at least one round, got 0.01, of which 0 are"
    ):
        fit_plan(tiny_task(SETTINGS["NoiseInput"]), Paced(hand), tiny_plan(rounds=12), Watch(), 0.01)


# ---- the front door --------------------------------------------------------------------------------------------------

METHOD = dfkd.NAYER(steps=2, synthesis_batch=20, batches=1, warmup_batches=1, width=8, channels=4, pad=1, flip=False)
PLAN = replace(METHOD.budget(), rounds=20, warmup=2, steps=2, batch_size=16)
LINE = (
    "distill --student wrn10-1 --data digits --text index --method.steps 2 --method.synthesis_batch 20"
    " --method.batches 1 --method.warmup_batches 1 --method.width 8 --method.channels 4 --method.pad 1"
    " --method.flip false --plan.rounds 20 --plan.warmup 2 --plan.steps 2 --plan.batch_size 16 --watch.export false"
    " --watch.figures false --watch.samples_every 0 --runtime.device cpu --runtime.threads 1"
)
SHORT = replace(PLAN, rounds=3, warmup=1)


def pace(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Every round takes so long, as far as anything measures; counts the measurements."""
    measured: list[int] = []

    def estimator(*given: Any) -> Callable[[Plan], Estimate]:
        measured.append(1)
        return lambda plan: Estimate({"student": seconds * plan.rounds}, 0, 0, 0, 9, 0, 9)

    monkeypatch.setattr(hours, "estimator", estimator)
    return measured


class Killed(Observer):
    """Ctrl-C after the second round."""

    def rounded(self, record: RoundRecord) -> str | None:
        if record.round == 1:
            raise KeyboardInterrupt
        return None


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A teacher that was never trained: these tests look at plans."""
    torch.save(dfkd.build("wrn10-1", classes=10, channels=1).net.state_dict(), tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


def distilled(weights: Path, **values: Any) -> dfkd.Distilled:
    teacher = dfkd.build("wrn10-1", classes=10, channels=1)
    teacher.net.load_state_dict(torch.load(weights, weights_only=True))
    torch.manual_seed(0)
    student = dfkd.build("wrn10-1", classes=10, channels=1)
    more = {"image_size": (1, 8, 8), "mean": MEAN, "std": STD, "classes": 10, "text": "index"}
    more |= {"export": False, "figures": False, "plan": PLAN, "progress": False}
    return dfkd.distill(teacher, student, METHOD, **{**more, **values})


def same(a: Path, b: Path) -> bool:
    x, y = load_file(a / "student.safetensors"), load_file(b / "student.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


@pytest.mark.slow
def test_the_plan_is_decided_once(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    distilled(weights, plan=SHORT, out=Path("plain"))
    measured = pace(monkeypatch, 1000.0)  # three fit 3240 seconds
    with pytest.raises(KeyboardInterrupt):
        distilled(weights, hours=1, out=Path("python"), observers=[Killed()])
    assert measured == [1]
    pace(monkeypatch, 1.0)  # the machine is idle now: the run keeps its plan
    done = distilled(weights, hours=1, out=Path("python"), resume=True)
    assert done.record.info.plan == asdict(SHORT)
    assert done.record.info.fitted is not None
    assert (done.record.info.fitted.hours, done.record.info.fitted.seconds) == (1, 3000.0)
    assert done.record.info.fitted.asked == {**asdict(PLAN), "milestones": []}
    assert same(Path("python"), Path("plain"))
    pace(monkeypatch, 1000.0)
    shell = shlex.split(f"{LINE} --teacher wrn10-1 --teacher.weights {weights} --hours 1")
    assert main([*shell, "--dry-run"]) == 0
    assert "3 rounds, 1 of warm-up before" in capsys.readouterr().out
    assert main([*shell, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == {**asdict(SHORT), "milestones": []}
    assert main([*shell, "--out", "shell"]) == 0
    said = capsys.readouterr().out
    assert "measuring the first rounds, to plan for 1 hours" in said
    assert "planned for 1 hour: 3 of 20 rounds and 1 of 2 warm-up rounds, about 50 min 00 s" in said
    assert "Planned for 1 hour: 3 of 20 rounds" in Path("shell/report.html").read_text()
    assert same(Path("shell"), Path("plain"))
    pace(monkeypatch, 1.0)
    assert main(["distill", "shell/recipe.yaml", "--out", "again", "--watch.quiet"]) == 0  # the plan, not the hours
    assert same(Path("again"), Path("plain"))
    assert main(["distill", "--resume", "shell", "--watch.quiet"]) == 0
    assert read_run(Path("shell")).info.fitted is not None
    assert main(["distill", "--resume", "shell", "--stop.hours", "3"]) == 2
    told = capsys.readouterr().err
    assert (
        "resume needs the settings the run in shell began with, got stop.hours = 3.0 instead of 1.0; leave it" in told
    )


@pytest.mark.parametrize(("value", "told"), [(-1, "above 0 and finite, got -1"), ("x", "to be a number, got 'x'")])
def test_bad_hours_are_one_sentence(value: Any, told: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(dfkd.UserError, match=f"^stop needs hours {told}; change hours$"):
        distilled(weights, hours=value)
    assert main([*shlex.split(LINE), "--stop.hours", str(value)]) == 2
    said = capsys.readouterr().err
    assert "hours" in said
    assert said.count("\n") == 1


def test_runs_that_are_repeated_have_one_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = LINE.replace("distill", "repeat", 1)
    assert main([*shlex.split(line), "--stop.hours", "1", "--out", str(tmp_path / "x")]) == 2
    assert "repeat needs one plan for all of its runs, got stop.hours 1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_occupied_folder_is_found_before_anything_is_measured(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/other.txt").write_text("mine")
    measured = pace(monkeypatch, 1.0)
    with pytest.raises(dfkd.UserError, match="out needs an empty or new folder"):
        distilled(weights, hours=1, out=tmp_path / "x")
    assert measured == []
