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


def test_runs_with_other_settings_are_not_averaged(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert main([*words, "--seeds", "3", "--out", str(out)]) == 0
    before = (out / "repeat.json").read_bytes()
    for changes, sentence in (
        (["--plan.steps", "2"], "got plan.steps = 2 instead of 1; set it back"),
        (["--method.steps", "3"], "got method.steps = 3 instead of 2"),
        (["--stop.until_agreement", "0.9"], "got stop.until_agreement = 0.9 instead of None"),
        (["--data.test", "null"], "got data.test = None instead of 'digits'"),
    ):
        assert main([*words, *changes, "--seeds", "3,4", "--out", str(out)]) == 2
        assert f"repeat needs the settings the run in {out / 'seed3'} began with, {sentence}" in capsys.readouterr().err
    assert (out / "repeat.json").read_bytes() == before
    assert not (out / "seed4").exists()
    assert main([*words, "--watch.quiet", "--runtime.threads", "1", "--seeds", "3", "--out", str(out)]) == 0


def test_a_folder_of_something_else_is_left_alone(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, notes, file = tmp_path / "run", tmp_path / "notes", tmp_path / "file"
    for folder in (run, notes):
        folder.mkdir()
    (run / "run.json").write_text("{}")
    (notes / "notes.txt").write_text("mine")
    file.write_text("mine")
    for out in (run, notes, file):
        assert main([*words, "--seeds", "3", "--out", str(out)]) == 2
        assert f"repeat needs a new or empty folder, or that of a repeat, got {out}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "notes", "notes.txt", "run", "run.json"]


BLANKS = """
from dfkd.methods import NoiseInput
class Blanks(NoiseInput):
    pass
"""


def test_a_method_of_ones_own_goes_on_by_the_same_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "blanks.py").write_text(BLANKS)
    own = [word for word, before in zip(words, ["", *words], strict=False) if "--method" not in word + before]
    command = [*own, "--method", "blanks:Blanks", "--seeds", "3", "--out", "runs"]
    assert main(command) == 0
    record = json.loads(Path("runs/seed3/run.json").read_text())
    Path("runs/seed3/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert main(command) == 0
    assert read_run(Path("runs/seed3")).status == "finished"


@pytest.mark.parametrize(("seeds", "word"), [("1,1", "different seeds"), ("0", "--out")])
def test_what_cannot_be_is_refused(words: list[str], seeds: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--seeds", seeds]) == 2
    assert word in capsys.readouterr().err
