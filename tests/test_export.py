"""Students as files: what is written agrees with PyTorch, says what it is, and what cannot be converted is named."""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.deploy import export as exporting
from dfkd.deploy import int8
from dfkd.deploy.folders import replacing
from dfkd.deploy.latency import time_in_turns
from dfkd.deploy.programs import check_onnx, write_onnx, write_program
from dfkd.deploy.stored import stored_images
from dfkd.ops.pixels import as_images

ABSENT = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(ABSENT), reason=f"the extra onnx is not installed: {', '.join(ABSENT)}")

CALIBRATION = 64


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return dfkd.export(finished_run, calibration=CALIBRATION, out=tmp_path_factory.mktemp("export") / "files")


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_onnx(path: Path, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@needs_onnx
def test_every_file_gives_the_logits_of_pytorch_for_any_number_of_images(exported: Any, finished_run: Path) -> None:
    net, images = dfkd.load(finished_run), as_images(dfkd.read_images("digits").images[:37])
    wanted = net(images)
    program = torch.export.load(exported.folder / "student.pt2").module()
    for n in (1, 3, 37):
        torch.testing.assert_close(program(images[:n]), wanted[:n], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            run_onnx(exported.folder / "student.onnx", images[:n]), wanted[:n], rtol=1e-3, atol=1e-3
        )
    rough = run_onnx(exported.folder / "student-int8.onnx", images)
    assert 0 < float((rough - wanted).abs().max()) < float(wanted.abs().max())


@needs_onnx
@pytest.mark.parametrize("batch", [None, 50])
def test_accuracy_of_every_file_on_labelled_images(finished_run: Path, tmp_path: Path, batch: int | None) -> None:
    digits = dfkd.read_images("digits")
    some = dfkd.ImageSet(digits.images[:130], digits.labels[:130], digits.names, "some digits")
    done = dfkd.export(finished_run, calibration=CALIBRATION, batch=batch, out=tmp_path / "files", test=some)
    assert done.tested == 130
    images = as_images(some.images)
    hits = {"pytorch": dfkd.load(finished_run)(images)}
    for name in ("student.onnx", "student-int8.onnx"):
        padded = torch.cat([images, images[:20]])
        hits[name] = torch.cat([run_onnx(done.folder / name, part) for part in padded.split(50)])[:130]
    by_file = {row.file or row.format: row.accuracy for row in done.artefacts}
    for name, logits in hits.items():
        assert by_file[name] == pytest.approx(float((logits.argmax(dim=1) == some.labels).double().mean()))
    record = json.loads((done.folder / "export.json").read_text())
    assert record["tested"] == 130
    assert [row["accuracy"] for row in record["artefacts"]] == [row.accuracy for row in done.artefacts]


@needs_onnx
def test_the_record_holds_what_a_second_look_finds(exported: Any, finished_run: Path) -> None:
    record = json.loads((exported.folder / "export.json").read_text())
    assert [row["format"] for row in record["artefacts"]] == ["pytorch", "pt2", "onnx", "int8"]
    net = dfkd.load(finished_run)
    compared = as_images(stored_images(finished_run, 2 * CALIBRATION)[0][1::2])
    wanted = net(compared)
    for row in record["artefacts"][2:]:
        path = exported.folder / row["file"]
        found = run_onnx(path, compared)
        assert row["bytes"] == path.stat().st_size
        assert row["difference"] == pytest.approx(float((found - wanted).abs().max()), rel=1e-3, abs=1e-5)
        assert row["agreement"] == pytest.approx(float((found.argmax(1) == wanted.argmax(1)).float().mean()))
        assert row["milliseconds"].keys() == row["speedup"].keys() == {"1", "32"}
    assert record["images"] == record["calibration"] == CALIBRATION
    assert record["provenance"]["torch"] == torch.__version__


@needs_onnx
def test_weights_of_int8_are_scaled_per_channel_by_their_largest(exported: Any, finished_run: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(exported.folder / "student-int8.onnx"))
    assert exported.artefacts[-1].in_float == ()
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [
        (held[node.input[0]], held[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held and held[node.input[0]].ndim == 4
    ]
    dense = onnx.load(str(exported.folder / "student.onnx"))
    kernels = [numpy_helper.to_array(t) for t in dense.graph.initializer]
    assert pairs
    for codes, scales in pairs:
        assert codes.dtype == np.int8
        assert scales.shape == (codes.shape[0],)
        near = [k for k in kernels if k.shape == codes.shape]
        errors = [np.abs(codes * scales[:, None, None, None] - k).max() for k in near]
        own = near[int(np.argmin(errors))]
        assert min(errors) <= scales.max() / 2 * 1.01
        np.testing.assert_allclose(scales, np.abs(own).max(axis=(1, 2, 3)) / 127, rtol=1e-4)


@needs_onnx
def test_the_file_says_what_it_is_and_not_where_it_was_made(exported: Any) -> None:
    import onnxruntime

    for name in ("student.onnx", "student-int8.onnx"):
        session = onnxruntime.InferenceSession(str(exported.folder / name), providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["labels"]) == [str(k) for k in range(10)]
        assert json.loads(about["mean"]) == pytest.approx([0.3053], abs=1e-4)
        assert json.loads(about["std"]) == pytest.approx([0.3759], abs=1e-4)
        assert json.loads(about["input_size"]) == [1, 8, 8]
        assert about["normalisation"] == "inside"
        content = (exported.folder / name).read_bytes()
        assert b"site-packages" not in content
        assert b"dfkd/" not in content


FORMATS = ["pt2", pytest.param("onnx", marks=[needs_onnx, pytest.mark.slow])]


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "time_in_turns", partial(time_in_turns, budget=0.01))


@pytest.mark.parametrize("form", FORMATS)
def test_normalisation_outside_takes_normalised_images(finished_run: Path, tmp_path: Path, form: Any) -> None:
    done = dfkd.export(
        finished_run, formats=[form], normalisation="outside", calibration=CALIBRATION, out=tmp_path / "files"
    )
    images = as_images(dfkd.read_images("digits").images[:5])
    (mean,), (std,) = dfkd.STATISTICS["digits"]
    logits = dfkd.load(finished_run)(images)
    normalised = (images - mean) / std
    path = done.folder / done.artefacts[-1].file
    found = run_onnx(path, normalised) if form == "onnx" else torch.export.load(path).module()(normalised)
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
    assert [row.format for row in done.artefacts] == ["pytorch", form]


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_of_ones_own_is_exported_from_its_program(copied: Path, form: Any) -> None:
    about = json.loads((copied / "student.json").read_text())
    (copied / "student.json").write_text(json.dumps({**about, "network": {"class": "__main__.Small"}}))
    with pytest.raises(dfkd.UserError, match=r"export needs the name of the network.*or student.pt2 for the program"):
        dfkd.export(copied, formats=[form], calibration=CALIBRATION)
    done = dfkd.export(copied, formats=[form], calibration=CALIBRATION, network="student.pt2")
    assert done.folder == copied / "export"
    assert done.artefacts[-1].difference < 1e-3
    with pytest.raises(dfkd.UserError, match=r"normalisation outside needs the network itself.*--network"):
        dfkd.export(copied, formats=[form], normalisation="outside", network="student.pt2")


class Branch(nn.Module):
    """Depends on the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x


class Rank(nn.Module):
    """An operation that ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.special.modified_bessel_i0(x.mean())


class Pairs(nn.Module):
    """Knows only batches of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 1, 8, 8)


def around(layer: nn.Module) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer)
    return nn.Sequential(body, nn.Flatten(), nn.Linear(64, 10)).eval()


def test_a_layer_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    example = torch.rand(2, 1, 8, 8)
    with pytest.raises(dfkd.UserError, match=r"torch.export needs.*the layer '0.1' \(Branch\)"):
        write_program(around(Branch()), example, tmp_path / "x.pt2")
    with pytest.raises(dfkd.UserError, match=r"the layer '0.1' \(Pairs\).*fixed number of images a call: --batch"):
        write_program(around(Pairs()), example, tmp_path / "x.pt2")
    write_program(around(Pairs()), example, tmp_path / "y.pt2", dynamic=False)
    assert [path.name for path in tmp_path.iterdir()] == ["y.pt2"]


@needs_onnx
@pytest.mark.slow
def test_an_operator_that_onnx_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(dfkd.UserError, match=r"ONNX needs.*the layer '0.1' \(Rank\).*bessel"):
        write_onnx(around(Rank()), torch.rand(2, 1, 8, 8), tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


def test_what_fails_leaves_the_folder_as_it_was(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dfkd.export(copied, formats=("pt2",), calibration=CALIBRATION)
    before = snapshot(copied)

    def fails(*_: object) -> None:
        raise dfkd.UserError("export needs luck, got none; try again")

    monkeypatch.setattr(exporting, "_compare", fails)
    assert main(["export", str(copied), "--formats", "pt2", "--calibration", "64"]) == 2
    assert "needs luck" in capsys.readouterr().err
    assert snapshot(copied) == before
    assert sorted(path.name for path in copied.iterdir() if path.name.startswith(".")) == []


def test_without_the_packages_pt2_is_written_and_the_command_is_told(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else find(name, *a))
    with pytest.raises(dfkd.UserError, match=r"onnx, got none installed; run `pip install .*onnx.*torch=="):
        check_onnx()
    with pytest.raises(dfkd.UserError, match="got none installed"):
        dfkd.export(finished_run, formats=("int8",), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert main(["export", str(finished_run), "--calibration", "64", "--out", str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "int8 was not written: export to ONNX needs the package onnx," in told
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["export.json", "student.pt2"]


def test_bad_input_is_one_sentence(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine.txt").write_text("")
    faults: dict[str, dict[str, Any]] = {
        "not there": {"source": tmp_path / "nothing"},
        "student.safetensors in": {"source": tmp_path / "x"},
        "got a new folder|needs a new folder": {"source": finished_run, "out": tmp_path / "x"},
        "formats among": {"source": finished_run, "formats": ("tflite",)},
        "at least 64 images": {"source": finished_run, "calibration": 10},
        "got 0|at least 1 image": {"source": finished_run, "batch": 0},
        "folder of images": {"source": finished_run, "images": tmp_path / "x"},
        "uint8 images": {"source": finished_run, "images": torch.zeros(3, 1, 8, 8)},
    }
    for problem, arguments in faults.items():
        with pytest.raises(dfkd.UserError, match=problem):
            dfkd.export(**{"out": tmp_path / "new", **arguments})
    assert not (tmp_path / "new").exists()


def test_too_few_images_are_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "check_onnx", lambda: None)
    with pytest.raises(dfkd.UserError, match="at least 64 images to calibrate on, got 20"):
        dfkd.export(copied, images=torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8))
    assert not (copied / "export").exists()


def write_export(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "export.json").write_text(text)
    return folder


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("kill_at", [1, 2])
def test_an_export_outlives_a_kill_at_either_rename(tmp_path: Path, kill_at: int) -> None:
    folder = write_export(tmp_path / "export", "old")
    child = os.fork()
    if child == 0:  # its memory is its own: nothing is patched here
        renames, rename = itertools.count(1), Path.rename

        def rename_or_die(path: Path, target: Path) -> Path:
            if next(renames) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = rename_or_die  # type: ignore[method-assign, assignment]
        with replacing(folder) as aside:
            (aside / "export.json").write_text("new")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert folder.exists() == (kill_at == 1)
    with pytest.raises(dfkd.UserError), replacing(folder):
        raise OSError("no space")
    assert snapshot(tmp_path) == {"export/export.json": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_dead_processes_left_is_swept_and_the_newest_comes_back(tmp_path: Path, gone: int) -> None:
    for at, number in enumerate((gone, os.getpid(), 10**12)):  # a new process may have the old one's number
        old = write_export(tmp_path / f".export.{number}.old", f"old {at}")
        os.utime(old, (at, at))
        write_export(tmp_path / f".export.{number}.tmp", "half")
    other = write_export(tmp_path / f".exports.{gone}.tmp", "of another folder")
    with pytest.raises(dfkd.UserError), replacing(tmp_path / "export"):
        raise OSError("no space")
    assert snapshot(tmp_path) == {"export/export.json": b"old 2", f"{other.name}/export.json": b"of another folder"}
    write_export(tmp_path / f".export.{gone}.old", "older")
    with replacing(tmp_path / "export") as aside:
        (aside / "export.json").write_text("new")
    assert snapshot(tmp_path) == {"export/export.json": b"new", f"{other.name}/export.json": b"of another folder"}


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_folder_one_stands_in_is_not_moved_away(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(dfkd.UserError, match=r"^export needs a folder below the one you are in, or elsewhere, got "):
        dfkd.export(finished_run, out=out, formats=["pt2"])


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    parent = os.getppid()
    for suffix in ("old", "tmp"):
        write_export(tmp_path / f".export.{parent}.{suffix}", "theirs")
    with replacing(tmp_path / "export") as aside:
        (aside / "export.json").write_text("ours")
    assert {path.name for path in tmp_path.iterdir()} == {"export", f".export.{parent}.old", f".export.{parent}.tmp"}


def some_images(count: int) -> Tensor:
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("count", "batch", "sentence"),
    [
        (0, None, "export needs at least 2 images, one of them to compare on, got 0; give more with --images"),
        (1, None, "export needs at least 2 images, one of them to compare on, got 1; give more with --images"),
        (100, 128, "export with a batch of 128 needs at least 256 images, half of them to compare on, got 100; give"),
        (63, 32, "export with a batch of 32 needs at least 64 images, half of them to compare on, got 63; give"),
    ],
)
def test_fewer_images_than_a_call_needs_are_refused(copied: Path, count: int, batch: int | None, sentence: str) -> None:
    with pytest.raises(dfkd.UserError, match=sentence):
        dfkd.export(copied, formats=["pt2"], images=some_images(count), batch=batch)
    assert not (copied / "export").exists()


@pytest.mark.parametrize(
    ("count", "batch", "timed", "compared"),
    [(2, None, [1, 32], 1), (10, None, [1, 32], 5), (70, 32, [32], 32), (600, 300, [300], 300)],
)
def test_calls_are_timed_with_as_many_images_as_they_say(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    batch: int | None,
    timed: list[int],
    compared: int,
) -> None:
    sizes: list[set[int]] = []

    def note_sizes(calls: Any, reference: str) -> Any:
        sizes.append({len(call()) for call in calls.values()})
        return time_in_turns(calls, reference, budget=0.0)

    monkeypatch.setattr(exporting, "time_in_turns", note_sizes)
    images = some_images(count)
    done = dfkd.export(finished_run, formats=["pt2"], images=images, batch=batch, out=tmp_path / "files")
    assert sizes == [{n} for n in timed]
    assert list(done.artefacts[1].milliseconds) == timed
    assert done.images == compared
    assert done.artefacts[1].difference < 1e-3


@needs_onnx
def test_calibration_reads_all_images_or_full_batches() -> None:
    def sizes(batch: int | None) -> list[int]:
        reader = int8._reader(torch.zeros(100, 1, 8, 8), batch)
        return [len(part["images"]) for part in iter(reader.get_next, None)]

    assert sizes(None) == [32, 32, 32, 4]
    assert sizes(32) == [32, 32, 32]
    assert sizes(31) == [31, 31, 31]


@needs_onnx
def test_int8_for_a_fixed_batch_of_32(finished_run: Path, tmp_path: Path) -> None:
    done = dfkd.export(finished_run, formats=["int8"], images=some_images(200), batch=32, out=tmp_path / "files")
    assert [row.format for row in done.artefacts] == ["pytorch", "int8"]
    assert (done.images, done.calibration) == (96, 96)
    assert run_onnx(done.folder / "student-int8.onnx", torch.rand(32, 1, 8, 8)).shape == (32, 10)


def test_every_call_is_timed_as_often_as_the_others() -> None:
    calls: Counter[str] = Counter()
    work = {name: (lambda name=name: calls.update([name])) for name in ("a", "b", "c")}
    found = time_in_turns(work, "a", budget=0.01)
    assert len(set(calls.values())) == 1
    assert found["a"].speedup == 1
    slow = time_in_turns({"a": lambda: sum(range(20_000)), "b": lambda: sum(range(80_000))}, "a", budget=0.2)
    assert 0.1 < slow["b"].speedup < 0.6
    assert slow["b"].seconds > slow["a"].seconds


@needs_onnx
def test_the_example_of_the_documentation_classifies_a_picture(
    exported: Any,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    page = (Path(__file__).parent.parent / "docs/deploy.md").read_text("utf-8")
    code = page.partition('```python title="classify.py"\n')[2].partition("```")[0]
    assert len(code[code.index("session") :].strip().splitlines()) <= 10
    digits = dfkd.read_images("digits")
    logits = run_onnx(exported.folder / "student-int8.onnx", as_images(digits.images))
    monkeypatch.chdir(exported.folder)
    for row in (3, 7):
        Image.fromarray(digits.images[row, 0].numpy()).save(tmp_path / "picture.png")
        monkeypatch.setattr("sys.argv", ["classify.py", str(tmp_path / "picture.png")])
        exec(compile(code, "classify.py", "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out.strip() == str(int(logits[row].argmax()))


@needs_onnx
@pytest.mark.slow
def test_a_run_exports_when_it_ends(
    digits_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"""distill --teacher wrn16-1 --teacher.weights {digits_weights} --student wrn10-1 --data digits
        --method.steps 1 --method.synthesis_batch 128 --method.batches 4 --method.width 8 --method.channels 4
        --plan.rounds 1 --plan.warmup 0 --plan.steps 1 --watch.quiet --watch.figures false --runtime.device cpu
        --watch.onnx int8 --out {tmp_path / "run"}""".split()
    assert main(words) == 0
    assert "student-int8.onnx" in capsys.readouterr().out
    assert (tmp_path / "run/export/student-int8.onnx").is_file()
