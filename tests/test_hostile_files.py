"""Small files that ask for gigabytes, hours or the interpreter's stack: one sentence within ten seconds and 2 GB.

All are opened in one process of their own, whose peak memory is measured.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.data._limits import MOST_SMALL, RATIO, most_bytes
from dfkd.data.readers import read_images

SECONDS = 10.0
MEMORY = 2 * 2**30

READER = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import torch
from torch import nn
from pathlib import Path
from dfkd.cli.parse import read_yaml
from dfkd.data import _limits
from dfkd.data.readers import read_images
from dfkd.data.rows import open_rows
from dfkd.errors import UserError
from dfkd.report.files import read_run
from dfkd.weights import load_weights, read_sidecar

_limits.MOST_SMALL = 2**25  # so that the files of these tests are quick to write
net = nn.Linear(2, 2)
READ = {
    "weights": lambda path: load_weights(net, path),
    "sidecar": lambda path: read_sidecar(path),
    "images": lambda path: read_images(path),
    "cifar": lambda path: read_images(f"cifar10:{path.parent}"),
    "mnist": lambda path: read_images(f"mnist:{path.parent}"),
    "folder": lambda path: read_images(f"folder:{path.parent.parent}"),
    "rows": lambda path: open_rows(path, (3, 8, 8)),
    "recipe": read_yaml,
    "run": lambda path: read_run(path.parent),
}
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind, path in json.load(sys.stdin):
    began = time.monotonic()
    try:
        READ[kind](Path(path))
        said = "worked"
    except UserError as error:
        said = str(error)
    except Exception as error:
        said = f"UNCAUGHT {type(error).__name__}: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([said, time.monotonic() - began, peak]), flush=True)
"""


def zeros(opener: Callable[..., Any], path: Path, head: bytes, size: int) -> None:
    """A packed file of ``head`` and ``size`` bytes of zeros."""
    settings = {"preset": 0} if opener is lzma.open else {"compresslevel": 1}
    with opener(path, "wb", **settings) as stream:
        stream.write(head)
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))


def bomb(path: Path, member: str, head: bytes, size: int) -> None:
    """A zip archive with such a member."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(member, "w", force_zip64=True) as stream,
    ):
        stream.write(head)
        for _ in range(size // 2**20):
            stream.write(bytes(2**20))


def npy(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def tuples(times: int) -> bytes:
    """A dict whose key is a tuple of twice a tuple of twice ..."""
    twice = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))
    return b"\x80\x02}K\x01" + twice + b"K\x01s."


def shard(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.png") -> bytes:
    """The header of a tar member that claims ``size`` bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def pax(size: str) -> bytes:
    """A tar whose pax header says how large the next member is."""
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"size": size}
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def idx(*shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)


def labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(1) + b"\x01")


def old_pickle(data: bytes) -> bytes:
    """A checkpoint of the old format around a pickle."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return magic + data + pickle.dumps([], 2)


def packed_pickle(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")


def picture(path: Path, side: int) -> None:
    """A PNG of a few kilobytes with side * side pixels."""
    path.parent.mkdir(parents=True)
    Image.new("1", (side, side)).save(path, "PNG")


def yaml_bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    return "\n".join(lines)


BIG = 80 * 2**20  # above what READER lets a small file unpack to
INFO = '{"info": {"method": "a", "settings": {}, "plan": {}, "teacher": {}, "student": {}, "image_shape": [%s], '
RUN = INFO + '"classes": %s, "names": [], "text": null, "provenance": {}}, "result": null, "status": "finished"}'

# fmt: off
# name: (reader, file, how it is written, what the sentence says)
CASES: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "cifar: endless key": ("cifar", "test_batch", lambda p: p.write_bytes(tuples(60)), "without measure"),
    "cifar: deep tuples": (
        "cifar",
        "test_batch",
        lambda p: p.write_bytes(b"\x80\x02}K\x01" + b"\x85" * 400_000 + b"K\x01s."),
        "without measure",
    ),
    "cifar: deep lists": ("cifar", "test_batch", lambda p: p.write_bytes(b"\x80\x02" + b"]" * 10**5 + b"."), "CIFAR"),
    "cifar: many opcodes": (
        "cifar",
        "test_batch",
        lambda p: p.write_bytes(b"\x80\x02" + b"N0" * 300_000 + b"N."),
        "more than 500000 opcodes",
    ),
    "cifar: long text": ("cifar", "test_batch", lambda p: p.write_bytes(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0f"), "CIFAR"),  # noqa: E501
    "idx: claims 2**40": ("mnist", "t10k-images-idx3-ubyte", lambda p: p.write_bytes(idx(2**20, 2**10, 2**10)), "at most"),  # noqa: E501
    "idx: claims beyond int64": (
        "mnist",
        "t10k-images-idx3-ubyte",
        lambda p: p.write_bytes(idx(2**32 - 1, 2**32 - 1, 2**32 - 1)),
        "at most",
    ),
    "idx.gz: inflates": (
        "mnist",
        "t10k-images-idx3-ubyte.gz",
        lambda p: zeros(gzip.open, p, idx(80, 1024, 1024), BIG),
        "at most",
    ),
    "npz: inflates": ("images", "a.npz", lambda p: bomb(p, "images.npy", npy((80, 1024, 1024)), BIG), "it unpacks to"),
    "npz: claims 2**60": ("images", "a.npz", lambda p: bomb(p, "images.npy", npy((2**30, 2**30)), 2**20), "sound .npz"),
    "npz: claims beyond int64": ("images", "a.npz", lambda p: bomb(p, "images.npy", npy((2**70,)), 0), "sound .npz"),
    "npy: damaged header": (
        "rows",
        "a.npy",
        lambda p: p.write_bytes(npy((2, 3, 8, 8)).replace(b"'|u1'", b"'|u1\n(")),
        "sound .npy",
    ),
    "npy: nested header": (
        "rows",
        "a.npy",
        lambda p: p.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000),
        "sound .npy",
    ),
    "npy: claims beyond int64": ("rows", "a.npy", lambda p: p.write_bytes(npy((2**70, 3, 8, 8))), "sound .npy"),
    "tar: claims 2**40": ("rows", "a.tar", lambda p: p.write_bytes(shard(2**40)), "sound tar shards"),
    "tar: claims 2**40, other name": ("rows", "a.tar", lambda p: p.write_bytes(shard(2**40, name="a.txt")), "sound tar"),  # noqa: E501
    "tar: pax header claims": ("rows", "a.tar", lambda p: p.write_bytes(pax(str(2**60))), "sound tar shards"),
    "tar: negative size": ("rows", "a.tar", lambda p: p.write_bytes(pax("-512")), "needs"),
    "tar: long name": (
        "rows",
        "a.tar",
        lambda p: p.write_bytes(shard(2**40, tarfile.GNUTYPE_LONGNAME)),
        "sound tar shards",
    ),
    "tar.gz: inflates": ("rows", "a.tar.gz", lambda p: zeros(gzip.open, p, shard(BIG)[:512], BIG), "sound tar shards"),
    "tar.gz: long name inflates": (
        "rows",
        "a.tar.gz",
        lambda p: zeros(gzip.open, p, shard(BIG, tarfile.GNUTYPE_LONGNAME)[:512], BIG),
        "sound tar shards",
    ),
    "tar, bzip2": ("rows", "a.tar", lambda p: zeros(bz2.open, p, shard(BIG)[:512], BIG), "sound tar shards"),
    "tar, xz": ("rows", "a.tar", lambda p: zeros(lzma.open, p, shard(BIG)[:512], BIG), "sound tar shards"),
    "picture: 400 megapixels": ("folder", "test/cat/a.png", lambda p: picture(p, 20_000), "sound image"),
    "picture: 64 megapixels": ("folder", "test/cat/a.png", lambda p: picture(p, 8000), "sound image"),
    "weights: endless key": ("weights", "a.pt", lambda p: packed_pickle(p, tuples(60)), "without measure"),
    "weights: endless key, old": ("weights", "a.pt", lambda p: p.write_bytes(old_pickle(tuples(60))), "without measure"),  # noqa: E501
    "weights: inflates": ("weights", "a.pt", lambda p: bomb(p, "a/data.pkl", b"", BIG), "it unpacks to"),
    "weights: many members": (
        "weights",
        "a.pt",
        lambda p: p.write_bytes(b"PK\x03\x04" + b"PK\x01\x02" * 10**6),
        "truncated",
    ),
    "weights: counts bytes": (
        "weights",
        "a.pt",
        lambda p: packed_pickle(
            p, b"\x80\x02ccollections\nCounter\ncbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R\x85R."
        ),
        "asks to run code (builtins.bytearray)",
    ),
    "safetensors: header of 2**60": ("weights", "a.safetensors", lambda p: p.write_bytes(b"\xff" * 7 + b"\x0f{"), "needs"),  # noqa: E501
    "safetensors: tensor beyond the file": (
        "weights",
        "a.safetensors",
        lambda p: p.write_bytes(
            struct.pack("<Q", 70)
            + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999]}}'.ljust(70)
        ),
        "whole .safetensors",
    ),
    "sidecar: deep": ("sidecar", "a.json", lambda p: p.write_text("[" * 500_000), "sound description"),
    "sidecar: long number": ("sidecar", "a.json", lambda p: p.write_text('{"classes": ' + "9" * 10**6 + "}"), "sound"),
    "recipe: aliases": ("recipe", "r.yaml", lambda p: p.write_text(yaml_bomb()), "the alias *a"),
    "recipe: recursive": ("recipe", "r.yaml", lambda p: p.write_text("a: &a\n  b: *a\n"), "the alias *a"),
    "recipe: deep": ("recipe", "r.yaml", lambda p: p.write_text("a: " + "[" * 5000 + "]" * 5000), "recipe needs"),
    "recipe: deep maps": ("recipe", "r.yaml", lambda p: p.write_text("{a: " * 5000 + "}" * 5000), "recipe needs"),
    "recipe: 60 levels": ("recipe", "r.yaml", lambda p: p.write_text("a: " + "[" * 60 + "]" * 60), "at most 50 levels"),
    "recipe: large": ("recipe", "r.yaml", lambda p: p.write_text("a: " + "x" * 2**21), "at most 1048576 bytes"),
    "recipe: long number": ("recipe", "r.yaml", lambda p: p.write_text("a: " + "9" * 10**5), "needs YAML"),
    "recipe: no date": ("recipe", "r.yaml", lambda p: p.write_text("a: 2024-13-45"), "needs YAML"),
    "recipe: code": ("recipe", "r.yaml", lambda p: p.write_text("a: !!python/object/apply:os.getcwd []"), "needs YAML"),
    "run: 1e400": ("run", "run.json", lambda p: p.write_text(RUN % ("1, 8, 8", "1e400")), "needs a run description"),
    "run: infinite image": ("run", "run.json", lambda p: p.write_text(RUN % ("1, 1e400, 8", "3")), "a run description"),
    "run: deep": ("run", "run.json", lambda p: p.write_text('{"info": ' * 10**5), "needs a run description"),
}
# fmt: on


@pytest.mark.slow
def test_small_files_cannot_hang_or_fill_memory(tmp_path: Path) -> None:
    asked = []
    for number, (reader, name, write, _) in enumerate(CASES.values()):
        path = tmp_path / str(number) / name
        path.parent.mkdir(parents=True, exist_ok=name.count("/") == 0) if "/" not in name else None
        write(path)
        if reader == "mnist":
            labels(path.parent)
        if reader == "sidecar":
            path = path.with_suffix(".pt")
        asked.append((reader, str(path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER], input=json.dumps(asked), capture_output=True, text=True, timeout=200,
        check=False, env=environment,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(CASES), done.stderr[-2000:]
    wrong = {}
    for (name, case), (said, seconds, peak) in zip(CASES.items(), rows, strict=True):
        if case[3] not in said or "\n" in said or seconds > SECONDS or peak > MEMORY:
            wrong[name] = (said[:300], round(seconds, 1), peak // 2**20)
    assert wrong == {}


def test_honest_files_that_shrink_well_are_read(tmp_path: Path) -> None:
    """A constant image set packs a thousand to one, and is below what any file may unpack to."""
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.zeros(2000, np.int64))
    assert images.nbytes > 500 * (tmp_path / "a.npz").stat().st_size
    assert read_images(tmp_path / "a.npz").images.shape == (2000, 3, 32, 32)
    assert most_bytes(10) == MOST_SMALL + 10 * RATIO


@pytest.mark.parametrize("size", [10, 10**9])
def test_the_limit_grows_with_the_file(size: int) -> None:
    assert most_bytes(size) == 2**28 + 64 * size


def test_a_checkpoint_of_many_tensors_is_within_the_limits(tmp_path: Path) -> None:
    from dfkd.weights import read_weights

    state = {f"layers.{i}.weight": torch.zeros(1) for i in range(3000)}
    torch.save({"model": state, "optimizer": {"state": dict(enumerate(state.values()))}}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").keys() == state.keys()
