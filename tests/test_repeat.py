"""`dfkd repeat`: a run for every seed, mean and deviation, and going on where it stopped."""

import json
import shlex
import statistics
from pathlib import Path

import pytest

from dfkd.cli.main import main
from dfkd.report.files import read_run
from test_cli import TINY


@pytest.fixture
def words(digits_weights: Path, tmp_path: Path) -> list[str]:
    """`repeat` with everything but the seeds."""
    plan = shlex.split("--plan.rounds 1 --plan.warmup 0 --plan.steps 1")
    return ["repeat", "--teacher", "wrn16-1", "--teacher.weights", str(digits_weights), *TINY, *plan]


def test_every_seed_is_run_once_and_what_is_finished_is_passed_over(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert main([*words, "--seeds", "3,5", "--out", str(out)]) == 0
    told = json.loads((out / "repeat.json").read_text())
    found = [read_run(out / f"seed{seed}") for seed in (3, 5)]
    accuracies = [run.result.final.accuracy for run in found if run.result and run.result.final]
    assert [run["accuracy"] for run in told["runs"]] == accuracies
    assert told["accuracy"] == {
        "mean": pytest.approx(statistics.fmean(accuracies)),
        "std": pytest.approx(statistics.stdev(accuracies)),
        "seeds": 2,
    }
    shown = capsys.readouterr().out
    assert "seed 3: accuracy" in shown
    assert "standard deviation" in shown
    before = (out / "seed3" / "metrics.jsonl").stat().st_mtime_ns
    assert main([*words, "--seeds", "3", "--out", str(out)]) == 0
    assert (out / "seed3" / "metrics.jsonl").stat().st_mtime_ns == before
    assert json.loads((out / "repeat.json").read_text())["accuracy"]["std"] is None


def test_a_seed_is_the_run_of_distill_with_it(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert main([*words, "--seeds", "4", "--out", str(out)]) == 0
    again = tmp_path / "single"
    assert main(["distill", *words[1:], "--runtime.seed", "4", "--out", str(again)]) == 0
    student = "student.safetensors"
    assert (out / "seed4" / student).read_bytes() == (again / student).read_bytes()


@pytest.mark.parametrize(("seeds", "word"), [("1,1", "different seeds"), ("0", "--out")])
def test_what_cannot_be_is_refused(words: list[str], seeds: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--seeds", seeds]) == 2
    assert word in capsys.readouterr().err
