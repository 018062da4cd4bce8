"""What a file is, told by its first bytes: so that a stranger's file is called by its name."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["kind_of"]

_BEGINNINGS: Sequence[tuple[int, bytes, str]] = (
    (0, b"version https://git-lfs", "a git-lfs pointer"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"ggml", "a GGML file"),
    (0, b"lmgg", "a GGML file"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"ORTM", "an ONNX Runtime model"),
    (4, b"ORTM", "an ONNX Runtime model"),
    (0, b"PAR1", "a Parquet table"),
    (0, b"ARROW1", "an Arrow table"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (257, b"ustar", "a tar archive"),
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number that torch.save began with before 1.6


def kind_of(path: Path) -> str:
    """What the file is, with its article: "a torch checkpoint", "an ONNX model"; "something else" where unknown.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(1024)
    if not head:
        return "an empty file"
    if not head.strip(b"\x00"):
        return "a file of zeros"
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    if head.startswith(_LEGACY):
        return "an old torch checkpoint"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000:
        return "a safetensors file"
    for at, begins, kind in _BEGINNINGS:
        if head[at:].startswith(begins):
            return kind
    return _of_text(head) or _of_protobuf(head, path) or "something else"


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return "a truncated checkpoint or zip archive"
    inside = {name.partition("/")[2] or name for name in names}
    if "serialized_exported_program.json" in inside | set(names) or any(n.startswith("models/") for n in inside):
        return "an exported program"
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "a TorchScript archive"
    if any(name.endswith("data.pkl") for name in names):
        return "a torch checkpoint"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy .npz archive"
    if any(name.endswith((".h5", ".keras")) or name == "metadata.json" for name in names):
        return "a Keras model"
    if any(name.endswith("Manifest.json") for name in names):
        return "a Core ML package"
    return "a zip archive"


def _of_text(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    lower = text[:200].lower()
    if lower.startswith((b"<!doctype html", b"<html")) or b"<html" in lower:
        return "an HTML page"
    if text.startswith(b"<"):
        return "an XML file"
    if b'"weight_map"' in head and text.startswith(b"{"):
        return "the index of a sharded checkpoint"
    if text.startswith((b"{", b"[")) and b"\x00" not in head:
        return "a JSON file"
    printable = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head)
    return "a text file" if printable else None


def _of_protobuf(head: bytes, path: Path) -> str | None:
    """ONNX and TensorFlow models are messages without a magic number: their first fields tell."""
    if path.suffix == ".onnx" or (
        head[:1] == b"\x08" and head[1:2] < b"\x14" and head[2:3] in (b"\x12", b"\x1a", b"\x3a")
    ):
        return "an ONNX model"
    if path.suffix == ".pb" or b"saver_def" in head:
        return "a TensorFlow model"
    if path.suffix in (".ckpt", ".index") or ".data-0000" in path.name:
        return "a TensorFlow checkpoint" if ".data-0000" in path.name or path.suffix == ".index" else None
    return None
