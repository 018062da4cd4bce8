"""`dfkd repeat`: a run for every seed, mean and deviation, and going on where it stopped."""

import json
import re
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from dfkd.cli.main import main
from dfkd.report.files import read_run, record_line, write_run
from dfkd.report.repeat_page import write_repeat_page
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
    assert json.loads((out / "repeat.json").read_text()) == told  # seed 5 is there still
    assert "seed 5: accuracy" in capsys.readouterr().out


def test_all_finished_seeds_of_the_folder_count_and_no_others(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert main([*words, "--seeds", "3", "--out", str(out)]) == 0
    assert re.search(r"accuracy: [\d.]+ %, 1 seed\n", capsys.readouterr().out)
    assert json.loads((out / "repeat.json").read_text())["accuracy"]["std"] is None
    for seed in (4, 5):
        shutil.copytree(out / "seed3", out / f"seed{seed}")
        recipe = out / f"seed{seed}" / "recipe.yaml"
        recipe.write_text(re.sub(r"seed: 3\b", f"seed: {seed}", recipe.read_text()))
    shutil.copytree(out / "seed3", out / "seed3-before")  # somebody's copy is no seed
    stored = json.loads((out / "seed5" / "run.json").read_text())
    (out / "seed5" / "run.json").write_text(json.dumps({**stored, "status": "interrupted", "result": None}))
    assert main([*words, "--seeds", "3", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert ", 2 seeds\n1 of 3 seeds is not finished\n" in shown.partition("agreement:")[2]
    assert [run["seed"] for run in json.loads((out / "repeat.json").read_text())["runs"]] == [3, 4]
    text = (out / "repeat.html").read_text()
    assert "3 seeds of one run" in text
    assert re.search(r"over 2 seeds, from [\d.]+ % to [\d.]+ %; 1 of 3 seeds is not finished\.", text)
    for seed in (3, 4):
        (out / f"seed{seed}" / "run.json").write_text((out / "seed5" / "run.json").read_text())
    assert "No seed is finished yet." in write_repeat_page(out).read_text()


def test_runs_without_test_images_are_judged_on_held_out_ones(tmp_path: Path) -> None:
    from dfkd.engine.records import RunResult
    from test_report import a_record, an_estimate, an_info

    info = replace(an_info(), test_images=0)
    for seed, kinds in ((0, ["inverted"]), (1, ["inverted"])):
        rounds = [replace(a_record(0, 1), estimate=an_estimate(*kinds))]
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "metrics.jsonl").write_text(record_line(rounds[0]) + "\n")
        write_run(tmp_path / f"seed{seed}", info, RunResult(info, rounds, None, None, 1.0), "finished")
    said = "Agreement on held-out synthetic images 87.50 % ± 0.00 % (standard deviation) over 2 seeds"
    assert said in write_repeat_page(tmp_path).read_text()
    for seed in (0, 1):
        (tmp_path / f"seed{seed}" / "metrics.jsonl").write_text("")
    text = write_repeat_page(tmp_path).read_text()
    assert "Nothing says how good the students are: no test images were given." in text


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
    assert main([*words, "--plan.steps", "2", "--seeds", "4", "--out", str(out)]) == 2  # seed 3 would count too
    assert f"the run in {out / 'seed3'} began with, got plan.steps = 2" in capsys.readouterr().err
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
