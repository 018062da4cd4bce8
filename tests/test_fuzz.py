"""Every parser of files and words, fed valid input with something changed: it works, or one sentence says why not.

The changes know the structure: a value of a JSON or YAML tree, an opcode of a pickle within its zip archive, a number
of a header. `test_hostile_files.py` has the inputs that were made by hand.
"""

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dfkd.cli.config import Distill
from dfkd.cli.main import main
from dfkd.cli.parse import flags
from dfkd.cli.setup import resolve, with_recipe
from dfkd.data.readers import read_images
from dfkd.data.rows import open_rows
from dfkd.data.text import embed
from dfkd.engine.checkpoint import Checkpoint
from dfkd.errors import UserError
from dfkd.report.files import read_run
from dfkd.report.gallery import read_gallery
from dfkd.weights import load_weights, read_sidecar

# Cases of each kind in the default suite; the slow test takes many times as many.
CASES = 60
SECONDS = 10.0
pytestmark = pytest.mark.filterwarnings("ignore")

HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, -(2**63) - 1, 1e308, float("inf"), float("nan"), 0.5, "", "x", "1e400",
    "\x1b[31m", "\u202e", "\x00", "../..", "a:b", "hf:", ":", "é", "x" * 5000, [], {}, [[]], [None], {"": None},
    [1, "a", None], {"name": 3}, [1e308] * 3, [-1, 2, 3], "null", "[", "{", "~", "0x10", "1_000", "2024-13-45",
    "=", "<<",
]  # fmt: skip


def survives(run: Callable[[], object]) -> bool:
    """Whether ``run`` worked; otherwise it was refused in one sentence. Anything else fails the test."""
    began = time.monotonic()
    try:
        run()
        worked = True
    except UserError as error:
        said = str(error)
        assert "\n" not in said.rstrip("\n"), said
        assert " need" in said, said
        worked = False
    assert time.monotonic() - began < SECONDS
    return worked


# ---- changes --------------------------------------------------------------------------------------------------------


def bent(data: bytes) -> SearchStrategy[bytes]:
    """``data`` with a few bytes changed, cut off, doubled or put in."""

    def change(draw: Any) -> bytes:
        held = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, max(0, len(held) - 1)))
            match draw(st.sampled_from(("flip", "set", "big", "cut", "drop", "double", "insert"))):
                case "flip":
                    held[at : at + 1] = bytes([held[at] ^ 1 << draw(st.integers(0, 7))]) if held else b""
                case "set":
                    held[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
                case "big":
                    held[at : at + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4))))
                case "cut":
                    del held[at:]
                case "drop":
                    del held[at : at + draw(st.integers(1, 16))]
                case "double":
                    held[at:at] = held[at : at + draw(st.integers(1, 64))]
                case "insert":
                    held[at:at] = draw(st.binary(max_size=8))
        return bytes(held)

    return st.composite(change)()


def changed(tree: Any) -> SearchStrategy[Any]:
    """A nested value with something in it replaced, removed or wrapped."""

    def change(draw: Any) -> Any:
        held = json.loads(json.dumps(tree))
        for _ in range(draw(st.integers(1, 3))):
            held = _changed_once(draw, held)
        return held

    return st.composite(change)()


def _changed_once(draw: Any, held: Any) -> Any:
    node: Any = held
    parent: Any = None
    key: Any = None
    while isinstance(node, dict | list) and node and draw(st.integers(0, 3)):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        parent, key = node, draw(st.sampled_from(keys))
        node = parent[key]
    if parent is None:
        return deepcopy(draw(st.sampled_from(HOSTILE))) if not draw(st.integers(0, 9)) else held
    what = draw(st.integers(0, 5))
    if what == 0:
        del parent[key]
    elif what == 1:
        parent[key] = [node] if draw(st.booleans()) else {"x": node}
    elif what == 2 and isinstance(parent, dict):
        parent[draw(st.sampled_from(("", "name", "x.y", "\x00", "é")))] = node
    else:
        parent[key] = deepcopy(draw(st.sampled_from(HOSTILE)))  # a later change may reach into it
    return held


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).replace("Infinity", "1e400").encode()


def documents(tree: Any) -> SearchStrategy[bytes]:
    """Mostly sound JSON of something else, sometimes damaged."""
    return st.one_of(changed(tree).map(as_json), changed(tree).map(as_json), bent(as_json(tree)))


def fuzz(name: str, strategy: SearchStrategy[bytes], read: Callable[[Path], object], folder: Path, cases: int) -> None:
    """Write each case to ``folder / name`` and read it."""
    seen = []

    @settings(max_examples=cases)
    @given(strategy)
    def check(content: bytes) -> None:
        (folder / name).write_bytes(content)
        seen.append(survives(lambda: read(folder / name)))

    check()
    assert len(seen) >= cases / 2, f"few different cases of {name}"


# ---- files of weights -----------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def checkpoint(**settings: Any) -> bytes:
    out = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": network().state_dict(), "args": np.float64(0.5)}, out, **settings)
    return out.getvalue()


def inside_zip(data: bytes) -> SearchStrategy[bytes]:
    """One member of a zip archive changed, and the archive packed anew, so that the change is reached."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {item.filename: archive.read(item.filename) for item in archive.infolist()}

    def pack(told: tuple[str, bytes]) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in {**members, told[0]: told[1]}.items():
                archive.writestr(name, content)
        return out.getvalue()

    first = next((name for name in members if name.endswith("data.pkl")), next(iter(members)))
    names = st.sampled_from([first] * 6 + list(members))
    return names.flatmap(lambda name: bent(members[name]).map(lambda content: (name, content))).map(pack)


def safetensors(folder: Path) -> SearchStrategy[bytes]:
    save_file(network().state_dict(), folder / "seed.safetensors")
    data = (folder / "seed.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def pack(tree: Any) -> bytes:
        told = as_json(tree)
        return struct.pack("<Q", len(told)) + told + body

    return st.one_of(changed(header).map(pack), bent(data[: 8 + length]).map(lambda head: head + body))


SIDECAR = {
    "network": {"name": "wrn16-1", "classes": 10, "channels": 1, "projector": {"features": 64, "side": [8, 8]}},
    "image_shape": [1, 8, 8], "classes": 10, "names": list("0123456789"), "mean": [0.3], "std": [0.4], "seconds": 3.5,
}  # fmt: skip


def weights_cases(folder: Path, cases: int) -> None:
    net = network()
    whole, old = checkpoint(), checkpoint(_use_new_zipfile_serialization=False)
    fuzz("zip.pt", inside_zip(whole), lambda path: load_weights(net, path), folder, 2 * cases)
    fuzz("raw.pt", bent(whole), lambda path: load_weights(net, path), folder, cases)
    fuzz("old.pt", bent(old), lambda path: load_weights(net, path), folder, cases)
    fuzz("a.safetensors", safetensors(folder), lambda path: load_weights(net, path), folder, cases)
    fuzz("side.json", documents(SIDECAR), lambda path: read_sidecar(path.with_suffix(".pt")), folder, cases)


# ---- images ---------------------------------------------------------------------------------------------------------


def cifar_cases(folder: Path, cases: int) -> None:
    pixels = np.arange(2 * 3072, dtype=np.uint64).astype(np.uint8).reshape(2, 3072)
    held = {b"data": pixels, b"labels": [3, 4], b"filenames": [b"a.png", b"b.png"], b"batch_label": b"test"}
    whole = pickle.dumps(held, protocol=2)
    at = whole.index(pixels.tobytes()[:20].decode("latin1").encode("utf-8"))
    frame = st.one_of(
        bent(whole[:at]).map(lambda head: head + whole[at:]), bent(whole[-120:]).map(lambda t: whole[:-120] + t)
    )
    fuzz("test_batch", frame, lambda path: read_images(f"cifar10:{path.parent}"), folder, 2 * cases)


def idx_cases(folder: Path, cases: int) -> None:
    images = struct.pack(">4I", 0x803, 2, 3, 3) + bytes(18)
    labels = struct.pack(">2I", 0x801, 2) + b"\x01\x02"
    (folder / "t10k-labels-idx1-ubyte").write_bytes(labels)
    name = "t10k-images-idx3-ubyte"
    fuzz(name, bent(images), lambda path: read_images(f"mnist:{path.parent}"), folder, cases)
    (folder / name).unlink()
    packed = bent(images).map(lambda data: gzip.compress(data, 1)) | bent(gzip.compress(images, 1))
    fuzz(f"{name}.gz", packed, lambda path: read_images(f"mnist:{path.parent}"), folder, cases)


def array_cases(folder: Path, cases: int) -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    out = io.BytesIO()
    np.savez(out, images=images, labels=np.array([0, 1]))
    fuzz("a.npz", inside_zip(out.getvalue()) | bent(out.getvalue()), read_images, folder, 2 * cases)
    out = io.BytesIO()
    np.save(out, images)
    head = out.getvalue()[:128]
    fuzz("a.npy", bent(head).map(lambda h: h + bytes(96)), lambda path: open_rows(path, (3, 4, 4)), folder, 2 * cases)
    vectors = io.BytesIO()
    np.save(vectors, np.ones((3, 4), np.float32))
    file = bent(vectors.getvalue())
    fuzz("t.npy", file, lambda path: embed(None, 3, "file", "P2", path), folder, cases)


def tar_cases(folder: Path, cases: int) -> None:
    picture, out = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (5, 4)).save(picture, "PNG")
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("a.png", "b" * 120 + ".png"):
            item = tarfile.TarInfo(name)
            item.size = len(picture.getvalue())
            archive.addfile(item, io.BytesIO(picture.getvalue()))
    whole = out.getvalue()[:6144]
    fuzz("a.tar", bent(whole), lambda path: open_rows(path, (3, 4, 4)), folder, cases)
    packed = bent(whole).map(lambda data: gzip.compress(data, 1)) | bent(gzip.compress(whole, 1))
    fuzz("a.tar.gz", packed, lambda path: open_rows(path, (3, 4, 4)), folder, cases)
    pictures = folder / "pictures" / "cat"
    pictures.mkdir(parents=True)
    fuzz("a.png", bent(picture.getvalue()), lambda path: read_images(path.parent.parent), pictures, cases)


# ---- run folders ----------------------------------------------------------------------------------------------------

EVALUATION = {
    "accuracy": 0.5, "agreement": 0.6, "loss": 1.5, "images": 10, "class_accuracy": [0.5, 0.5],
    "class_agreement": [0.5, None],
}  # fmt: skip
INFO = {
    "method": "NAYER", "settings": {"steps": 3}, "plan": {"rounds": 3}, "teacher": {"name": "a", "parameters": 3},
    "student": {"name": "b"}, "image_shape": [1, 8, 8], "classes": 2, "names": ["a", "b"], "text": {"encoder": "index"},
    "provenance": {"seed": 0},
    "overlap": {"web": 3, "images": 3, "found": 0, "alike": 0, "at_most": 2, "pairs": [[1, 2, 3, 0.5]]},
}  # fmt: skip
RUN = {
    "info": INFO, "status": "finished",
    "result": {"final": EVALUATION, "teacher_evaluation": None, "seconds": 3.0, "files": {"weights": "x"}},
}  # fmt: skip
ROUND = {
    "round": 0, "rounds": 3, "warmup": False, "seconds": 0.5, "metrics": {"loss/student": 1.0},
    "evaluation": EVALUATION,
}  # fmt: skip
GALLERY = {
    "figures": [{"name": "a", "file": "a.svg", "caption": "A", "alt": "a", "numbers": {"x": 1.0}}],
    "skipped": {"b": "why"},
}  # fmt: skip


def run_folder_cases(folder: Path, cases: int) -> None:
    (folder / "metrics.jsonl").write_bytes(as_json(ROUND) + b"\n")
    fuzz("run.json", documents(RUN), lambda path: read_run(path.parent), folder, 2 * cases)
    (folder / "run.json").write_bytes(as_json(RUN))
    lines = st.lists(documents(ROUND), min_size=1, max_size=3).map(b"\n".join)
    fuzz("metrics.jsonl", lines, lambda path: read_run(path.parent), folder, cases)
    commit = {"rounds": 3, "world": 1, "files": {"state-0-3.pt": "a" * 64}, "format": 2}
    fuzz("commit.json", documents(commit), lambda _: Checkpoint(folder).newest(), folder, cases)
    (folder / "a.svg").write_text("<svg/>")
    fuzz("index.json", documents(GALLERY), lambda path: read_gallery(path.parent), folder, cases)


# ---- recipes and words ----------------------------------------------------------------------------------------------

RECIPE = {
    "teacher": {"name": "wrn16-1", "weights": "w.pt", "head": "head", "stages": ["a", "b"]}, "student": "wrn10-1",
    "data": {"preset": "digits", "image_size": [1, 8, 8], "mean": [0.3], "classes": ["a", "b"], "test": "digits"},
    "method": {"name": "Recombine", "images": {"name": "NAYER", "steps": 3}, "student": {"name": "STTS"}},
    "plan": {"rounds": 3, "lr": 0.1, "optimizer": "sgd"}, "runtime": {"seed": 3, "threads": 1},
    "watch": {"quiet": True}, "text": {"encoder": "index"}, "out": "runs/x",
}  # fmt: skip


def as_yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")


def recipe_cases(folder: Path, cases: int) -> None:
    text = as_yaml(RECIPE)
    written = st.one_of(changed(RECIPE).map(as_yaml), changed(RECIPE).map(as_json), bent(text))
    fuzz("r.yaml", written, lambda path: resolve(Distill, with_recipe({"recipe": str(path)})), folder, 2 * cases)


WORDS = [
    "--teacher", "--teacher.name", "--student", "--data", "--data.classes", "--data.mean", "--data.image_size",
    "--method", "--method.steps", "--method.betas", "--method.images", "--method.images.steps", "--plan.rounds",
    "--plan.lr", "--plan", "--runtime.seed", "--watch.quiet", "--watch", "--out", "--text", "--data.preset", "--x",
    "-x", "--", "--plan.rounds=3", "--=", "--method.=3", "--teacher.=", "word", "--teacher.stages",
]  # fmt: skip
VALUES = [
    "wrn16-1", "digits", "3", "-1", "1e400", "nan", "[1,2", "[", "{", "1,8,8", "true", "null", "NAYER", "Recombine",
    "", "a:b", "timm:x", "\x00", "é", "[[[[", "{a: b}", "&a [*a]", "99999999999999999999", "'", '"', "a,b,'c", "!!x",
]  # fmt: skip


def word_cases(folder: Path, cases: int) -> None:
    pairs = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(VALUES)), min_size=1, max_size=5)
    lines = pairs.map(lambda told: [word for pair in told for word in pair])

    @settings(max_examples=cases)
    @given(lines)
    def settle(words: list[str]) -> None:
        survives(lambda: resolve(Distill, with_recipe(flags(words, Distill, "recipe", ("method",)))))

    @settings(max_examples=cases)
    @given(st.sampled_from(("embed", "report", "evaluate", "synthesize", "plot", "x")), lines)
    def command(name: str, words: list[str]) -> None:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert main([name, *words]) in (0, 2)

    settle()
    command()


KINDS: dict[str, tuple[Callable[[Path, int], None], int]] = {  # and how many times CASES it tries
    "weights": (weights_cases, 6),
    "cifar": (cifar_cases, 2),
    "idx": (idx_cases, 2),
    "arrays": (array_cases, 5),
    "tar": (tar_cases, 3),
    "run folder": (run_folder_cases, 5),
    "recipe": (recipe_cases, 2),
    "words": (word_cases, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parsers_work_or_say_why_not(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind][0](tmp_path, CASES)


def test_a_thousand_cases() -> None:
    assert CASES * sum(times for _, times in KINDS.values()) >= 1000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_more_cases(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind][0](tmp_path, 15 * CASES)
    shutil.rmtree(tmp_path)
