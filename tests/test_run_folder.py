"""The run folder: what a start that was killed leaves, what a resume compares, how a run that fails is recorded."""

import json
import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dfkd
from crashes import settings_for
from dfkd.cli.main import main
from dfkd.data.rows import Rows
from dfkd.engine import aside
from dfkd.engine.fingerprint import fingerprint_rows, fingerprint_tensor
from dfkd.identity import layers_hash, network_bytes, weights_hash
from dfkd.nets.zoo import Classifier
from dfkd.report.files import read_run, record_line
from dfkd.runs import check_free


def go(name: str, out: Path, resume: bool = False, **changes: Any) -> dfkd.Distilled:
    """A tiny run of a row of ``settings.SETTINGS``."""
    return dfkd.distill(**{**settings_for(name), "out": out, "resume": resume, **changes})


class End(dfkd.Observer):
    """Raises after the round of this number; -1: before the first one."""

    def __init__(self, round: int, error: BaseException) -> None:
        self.round, self.error = round, error

    def started(self, info: object) -> None:
        if self.round < 0:
            raise self.error

    def rounded(self, record: Any) -> None:
        if record.round == self.round:
            raise self.error


def cut(name: str, out: Path, after: int = 1, error: BaseException | None = None, **changes: Any) -> None:
    """A run that ends after some rounds."""
    error = error or KeyboardInterrupt()
    with pytest.raises(type(error)):
        go(name, out, observers=[End(after, error)], **changes)


# ---- how a run ends -------------------------------------------------------------------------------------------------


def test_a_run_that_fails_says_so_in_its_folder_and_goes_on(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path, error=RuntimeError("the disk is <gone>\nand more"))
    stored = read_run(tmp_path)
    assert (stored.status, stored.reason) == ("failed", "RuntimeError: the disk is <gone>")
    page = (tmp_path / "report.html").read_text()
    assert "This run failed: RuntimeError: the disk is &lt;gone&gt;." in page
    assert 'class="badge failed"' in page
    go("NoiseInput", tmp_path, resume=True)
    assert (read_run(tmp_path).status, read_run(tmp_path).reason) == ("finished", None)


def test_a_run_that_is_interrupted_says_so(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path)
    assert read_run(tmp_path).status == "interrupted"
    assert [record.round for record in read_run(tmp_path).rounds] == [0, 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), SystemExit(1)])
def test_before_its_first_round_a_run_leaves_an_empty_folder(error: BaseException, tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path, -1, error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_after_the_last_round_is_recorded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise dfkd.UserError("student.safetensors needs to be written, got 'No space'; free space")

    with monkeypatch.context() as patch:
        patch.setattr("dfkd.api.save_student", full)
        with pytest.raises(dfkd.UserError, match="No space"):
            go("NoiseInput", tmp_path)
    assert read_run(tmp_path).reason == "student.safetensors needs to be written, got 'No space'; free space"
    go("NoiseInput", tmp_path, resume=True)
    assert read_run(tmp_path).status == "finished"


# ---- the first second -----------------------------------------------------------------------------------------------


def test_what_a_killed_start_leaves_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "tensorboard").mkdir()
    for name in (".lock", ".run.json.17.tmp", "checkpoint/.state-0-1.pt.17.tmp", "metrics.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.x").write_text("x")
    (tmp_path / "recipe.yaml").write_text("# written by dfkd when the run began\n")
    (tmp_path / "mlflow.db").write_text("a tracker's")
    check_free(tmp_path)
    go("NoiseInput", tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "mlflow.db").read_text() == "a tracker's"


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "metrics.jsonl", "notes.tmp", ".notes.tmp", "checkpoint/state-0-1.pt", "figures/x.png"]
)
def test_files_of_somebody_else_are_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(dfkd.UserError, match="out needs an empty or new folder"):
        go("NoiseInput", tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(tmp_path)
    with pytest.raises(dfkd.UserError, match="out needs an empty or new folder"):
        check_free(tmp_path / "run")


def command(teacher: Path) -> list[str]:
    """A tiny run of the command line."""
    words = f"""
    distill --method NoiseInput --teacher wrn16-1 --teacher.weights {teacher} --student wrn10-1 --data digits --out run
    --plan.rounds 2 --plan.steps 1 --plan.batch_size 8 --watch.quiet --watch.export false --watch.figures false
    --watch.save_every 0 --runtime.device cpu --runtime.threads 1
    """
    return words.split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_moments_leaves_a_folder_that_starts_again(
    number: signal.Signals,
    digits_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At every file that the start writes, and at the first ones of the first save."""
    monkeypatch.chdir(tmp_path)
    if number == signal.SIGINT:  # a shell's background jobs inherit that it is ignored
        signal.signal(number, signal.default_int_handler)
    real = aside._flush_folder
    for moment in range(5):
        count = [0]

        def flush(folder: Path, count: list[int] = count, moment: int = moment) -> None:
            real(folder)
            count[0] += 1
            if count[0] == moment + 1:
                os.kill(os.getpid(), number)

        with monkeypatch.context() as patch:
            patch.setattr(aside, "_flush_folder", flush)
            assert main(command(digits_weights)) == (130 if number == signal.SIGINT else 143)
        said = capsys.readouterr().err
        again = ["distill", "--resume", "run"] if "--resume run" in said else command(digits_weights)
        assert main(again) == 0, said
        assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
        assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2
        assert moment < 3 or "--resume run" in said
        for path in sorted(Path("run").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        Path("run").rmdir()


def test_a_start_killed_before_its_run_json_can_be_resumed(
    digits_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(digits_weights)) == 0
    for path in sorted(Path("run").rglob("*"), reverse=True):
        if path.name != "recipe.yaml":
            path.rmdir() if path.is_dir() else path.unlink()
    assert main(["distill", "--resume", "run"]) == 0
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    assert Path("run/recipe.yaml").exists()


# ---- what a resume compares -----------------------------------------------------------------------------------------


def other_web(settings: dict[str, Any]) -> dict[str, Any]:
    images = settings["web"].take(torch.arange(60))
    images[59, 0, 7, 7] ^= 1
    return {"web": images}


def other_real(settings: dict[str, Any]) -> dict[str, Any]:
    images, labels = settings["real"]
    return {"real": (images.flip(0), labels)}


def other_labels(settings: dict[str, Any]) -> dict[str, Any]:
    images, labels = settings["real"]
    return {"real": (images, labels.flip(0))}


def other_text(settings: dict[str, Any]) -> dict[str, Any]:
    return {"text": settings["text"] * 2}


def other_names(settings: dict[str, Any]) -> dict[str, Any]:
    return {"classes": ["a", "c", "b", "d"]}


def other_stages(settings: dict[str, Any]) -> dict[str, Any]:
    stages = ["stages.1", "stages.2"]
    return {key: Classifier(settings[key], stages=stages) for key in ("teacher", "student")}


def other_frozen(settings: dict[str, Any]) -> dict[str, Any]:
    next(settings["student"].parameters()).requires_grad_(False)
    return {}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("KD3", other_web, r"got web images = '60 of 1x8x8, [0-9a-f]{16}' instead of '60 of 1x8x8, "),
        ("VanillaKD", other_real, "got real images = "),
        ("VanillaKD", other_labels, "got real labels = "),
        ("NAYER", other_text, "got text vectors = '4x7, "),
        ("NAYER", other_names, "got the name of class 1 = 'c' instead of 'b'"),
        ("NoiseInput", other_stages, r"got teacher\.stages = \['stages\.1', 'stages\.2'\] instead of "),
        ("NoiseInput", other_frozen, "got frozen parameters of the student = '1, .*' instead of 'none'"),
    ],
)
def test_other_inputs_are_refused_by_name(
    name: str, change: Callable[[dict[str, Any]], dict[str, Any]], says: str, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"classes": ["a", "b", "c", "d"]} if change is other_names else {}
    cut(name, tmp_path, **names)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = settings_for(name)
    changes = change(settings)
    with pytest.raises(dfkd.UserError, match=f"resume needs the settings the run in .* began with, {says}"):
        dfkd.distill(**{**settings, "out": tmp_path, "resume": True, **changes})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    go(name, tmp_path, resume=True, **names)


def test_a_network_that_bears_other_changes_is_refused(tmp_path: Path) -> None:
    """Found by trying the network: a machine on which channels-last fails would train another student."""
    cut("NoiseInput", tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    row["info"]["student"]["channels_last"] ^= True
    (tmp_path / "run.json").write_text(json.dumps(row))
    with pytest.raises(dfkd.UserError, match=r"got student\.channels_last = True instead of False"):
        go("NoiseInput", tmp_path, resume=True)
    for who in ("teacher", "student"):  # a folder from before it was written down
        del row["info"][who]["channels_last"], row["info"][who]["precision"]
    (tmp_path / "run.json").write_text(json.dumps(row))
    go("NoiseInput", tmp_path, resume=True)


def with_dropout(rate: float) -> dict[str, Any]:
    return {"student": nn.Sequential(settings_for("NoiseInput")["student"], nn.Dropout(rate))}


def test_a_student_of_other_layers_is_refused_where_its_weights_are_the_same(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path, **with_dropout(0.1))
    with pytest.raises(dfkd.UserError, match=r"got student\.layers = '[0-9a-f]{16}' instead of '"):
        go("NoiseInput", tmp_path, resume=True, **with_dropout(0.9))
    row = json.loads((tmp_path / "run.json").read_text())
    for who in ("teacher", "student"):  # a folder from before it was written down
        del row["info"][who]["layers"]
    (tmp_path / "run.json").write_text(json.dumps(row))
    go("NoiseInput", tmp_path, resume=True, **with_dropout(0.1))


def test_layers_of_another_torch_are_not_compared(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    row["info"]["provenance"]["torch"], row["info"]["student"]["layers"] = "2.0.0", "as it printed then"
    (tmp_path / "run.json").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match=r"instead of 2\.0\.0"):
        go("NoiseInput", tmp_path, resume=True)


class Settled(nn.Module):
    """A layer whose settings print the address of a function."""

    def extra_repr(self) -> str:
        return f"of={object()}"


def test_layers_are_told_apart_by_their_settings_not_by_addresses() -> None:
    hashes = {
        layers_hash(nn.Sequential(layer))
        for layer in (nn.Dropout(0.1), nn.Dropout(0.9), nn.Dropout2d(0.1), nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3, 2))
    }
    assert len(hashes) == 5
    assert layers_hash(Settled()) == layers_hash(Settled())


def test_a_run_goes_on_with_another_kind_of_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def streams_of_cuda(self: dfkd.Runtime) -> dict[str, Tensor]:
        state = torch.tensor([*b"a seed + offset!"], dtype=torch.uint8)
        return {"own": state, "default": torch.get_rng_state(), "cuda": state}

    with monkeypatch.context() as patch:
        patch.setattr(dfkd.Runtime, "streams", streams_of_cuda)
        cut("NoiseInput", tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    row["info"]["provenance"]["device"] = "cuda:0"
    (tmp_path / "run.json").write_text(json.dumps(row))
    shutil.copytree(tmp_path, tmp_path.with_name("again"))
    done = []
    for folder in (tmp_path, tmp_path.with_name("again")):
        with pytest.warns(UserWarning, match="device cpu instead of cuda:0"):
            done.append(go("NoiseInput", folder, resume=True).student)
    assert "random streams are seeded anew: cpu cannot go on with those of cuda" in read_run(tmp_path).info.notes[-1]
    assert weights_hash(done[0]) == weights_hash(done[1])


def quantized(seed: int) -> nn.Module:
    """A layer whose weights are packed in a tuple, as dynamic quantization leaves them."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 3)), {nn.Linear})


def test_packed_weights_count_in_the_hash_and_the_size() -> None:
    assert weights_hash(quantized(0)) == weights_hash(quantized(0)) != weights_hash(quantized(1))
    assert network_bytes(quantized(0)) >= 8 * 3 + 3 * 4


def test_other_versions_and_threads_are_said_once_and_recorded(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    row["info"]["provenance"] |= {"torch": "2.0.0", "threads": 7}
    (tmp_path / "run.json").write_text(json.dumps(row))
    said = f"never stopped: torch {torch.__version__} instead of 2.0.0, threads {torch.get_num_threads()} instead of 7"
    with pytest.warns(UserWarning, match=re.escape(said)) as caught:
        go("NoiseInput", tmp_path, resume=True)
    assert len(caught) == 1
    notes = read_run(tmp_path).info.notes
    assert len(notes) == 1
    assert notes[0].startswith("resumed after round 1 on 20")
    assert "threads" in (tmp_path / "report.html").read_text().split("resumed after round 1")[1][:300]
    go("NoiseInput", tmp_path, resume=True)
    assert read_run(tmp_path).info.notes == notes


def test_a_fall_back_is_recorded(tmp_path: Path) -> None:
    whole = go("NoiseInput", tmp_path / "whole")
    cut("NoiseInput", tmp_path / "cut", after=2)
    newest = sorted((tmp_path / "cut" / "checkpoint").glob("state-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="the newest save is damaged"):
        done = go("NoiseInput", tmp_path / "cut", resume=True)
    notes = read_run(tmp_path / "cut").info.notes
    assert len(notes) == 1
    assert f"the newest save is damaged ({newest.name}: its SHA-256 is another)" in notes[0]
    assert [record.round for record in read_run(tmp_path / "cut").rounds] == [0, 1, 2]
    pairs = zip(whole.student.state_dict().values(), done.student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_of_before_fingerprints_resumes(tmp_path: Path) -> None:
    cut("KD3", tmp_path)
    row = json.loads((tmp_path / "run.json").read_text())
    for key in ("inputs", "notes"):
        del row["info"][key]
    del row["reason"]
    (tmp_path / "run.json").write_text(json.dumps(row))
    assert go("KD3", tmp_path, resume=True).record.info.inputs.keys() >= {"web images"}


def test_fingerprints() -> None:
    images = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8)
    first = fingerprint_rows(Rows(images))
    assert first == fingerprint_rows(Rows(images.numpy())) == fingerprint_rows(Rows(images.clone()))
    for change in (images.flip(0), images[:49], images.view(50, 1, 2, 8), images ^ 1):
        assert fingerprint_rows(Rows(change)) != first
    floats = torch.rand(3, 2)
    assert fingerprint_tensor(floats) == fingerprint_tensor(floats.t().contiguous().t())
    for value in (floats.t(), floats.double(), floats + 1e-6):
        assert fingerprint_tensor(value) != fingerprint_tensor(floats)


def test_a_large_pool_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Tensor] = []

    class Watched(Rows):
        def take(self, index: Any) -> Any:
            taken.append(index)
            return super().take(index)

    monkeypatch.setattr("dfkd.engine.fingerprint.FULL_BYTES", 100 * 16)
    rows = Watched(np.zeros((1000, 1, 4, 4), dtype=np.uint8))
    fingerprint_rows(rows)
    index = torch.cat(taken)
    assert len(index) == len(index.unique()) == 100
    assert (int(index[0]), int(index[-1])) == (0, 999)
    assert int(index.diff().max()) <= 11


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_torn_doubled_and_damaged_lines_are_mended_by_a_resume(tmp_path: Path) -> None:
    cut("NoiseInput", tmp_path)
    file = tmp_path / "metrics.jsonl"
    first, second = file.read_text().splitlines()
    records = read_run(tmp_path).rounds
    later = record_line(replace(records[1], round=2))
    file.write_text("\n".join([second, first, second, later, later[:40]]))
    assert [record.round for record in read_run(tmp_path).rounds] == [0, 1, 2]  # the last line is torn
    done = go("NoiseInput", tmp_path, resume=True)
    assert [record.round for record in done.record.rounds] == [0, 1, 2]
    assert [json.loads(line)["round"] for line in file.read_text().splitlines()] == [0, 1, 2]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-9] + "\x00", lines[2]]) + "\n")
    with pytest.raises(dfkd.UserError, match="got something else in line 2; remove that line or resume the run"):
        read_run(tmp_path)
    with pytest.warns(UserWarning, match="1 damaged lines of .*metrics.jsonl are dropped"):
        go("NoiseInput", tmp_path, resume=True)
    assert [record.round for record in read_run(tmp_path).rounds] == [0, 2]
