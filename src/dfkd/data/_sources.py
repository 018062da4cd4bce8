"""Where images come from: files below a folder, members of tar shards. Decoded in bounded blocks."""

import bz2
import glob
import gzip
import hashlib
import itertools
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dfkd.data._limits import Bounded, most_bytes
from dfkd.data._pixels import SUFFIXES, UNREAD, ByteArray, decode, warn_of_left_out
from dfkd.errors import UserError

Blocks = Iterator[tuple[ByteArray, int]]  # images N C H W, and how many among them were unreadable

Encoded = Iterator[Path | BytesIO | None]  # images as they are stored; None: one that is too large to be an image

_BLOCK = 256
_BLOCK_BYTES = 2**28  # of archive members that wait to be decoded
_LARGEST_MEMBER = 2**28  # bytes; a larger "image" in an archive counts as damaged
_LARGEST_NAME = 2**20  # bytes of what stands in an archive about the next member
_THREADS = 16  # that decode, at most; Pillow lets go of the interpreter's lock


def image_files(folder: Path, unread: Counter[str] | None = None) -> list[Path]:
    """All image files below ``folder``, sorted; links to folders are not followed.

    ``unread``, if given, gets the endings of pictures of kinds that are not read, with their numbers.
    """
    files = []
    for root, _, names in os.walk(folder):
        for path in (Path(root) / name for name in names):
            ending = path.suffix.lower()
            if ending in SUFFIXES and path.is_file():
                files.append(path)
            elif ending in UNREAD and unread is not None:
                unread[ending] += 1
    return sorted(files)


def archives(pattern: str) -> list[Path]:
    """The shards a name stands for: {a..b} and {a,b} are expanded, then * and ? matched; sorted.

    Raises:
        UserError: no such file.
    """
    names = {
        Path(hit) for name in _braces(pattern) for hit in (glob.glob(name) or ([name] if os.path.isfile(name) else []))
    }
    if not names:
        raise UserError(f"open_rows needs tar shards, got none for {pattern!r}; check the pattern")
    return sorted(names)


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds is None:
        middle = match[1].split(",")
    else:
        digits = len(bounds[1])
        middle = [f"{number:0{digits}d}" for number in range(int(bounds[1]), int(bounds[2]) + 1)]
    endings = _braces(pattern[match.end() :])
    return [pattern[: match.start()] + part + tail for part, tail in itertools.product(middle, endings)]


def fingerprint(name: str, files: list[Path]) -> str:
    """Twelve hex digits that change with the source's name and with the name, size or time of any file."""
    total = hashlib.sha256(os.path.abspath(name).encode())
    for file in files:
        status = file.stat()
        total.update(f"\n{file}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return total.hexdigest()[:12]


def decoded_files(files: list[Path], image_shape: tuple[int, int, int]) -> Blocks:
    """The images of ``files``."""
    return _blocks(iter(files), image_shape)


def decoded_archives(shards: list[Path], image_shape: tuple[int, int, int]) -> Blocks:
    """The image members of tar files, in the order of the archives. Nothing is unpacked to disk.

    Raises:
        UserError: a shard is no tar file, or damaged.
    """
    return _blocks(itertools.chain.from_iterable(map(_members, shards)), image_shape)


def _members(shard: Path) -> Encoded:
    try:
        with ExitStack() as stack:
            stream, most = _open_shard(shard, stack)
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header))
            for body in _bodies(archive, most):
                yield None if body is None else BytesIO(body)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        kind = type(error).__name__
        raise UserError(f"open_rows needs sound tar shards, got {shard} ({kind}); fetch it again") from error


def _open_shard(shard: Path, stack: ExitStack) -> tuple[Any, int]:
    """The archive unpacked, and how many bytes it may have."""
    size = shard.stat().st_size
    with shard.open("rb") as file:
        opener = next((opener for magic, opener in _PACKED.items() if file.peek().startswith(magic)), None)
    most = size if opener is None else most_bytes(size)
    return Bounded(stack.enter_context((opener or open)(shard, "rb")), most), most


class _Header(tarfile.TarInfo):
    """A header that cannot make the reader keep a name of gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _ABOUT_THE_NEXT and header.size > _LARGEST_NAME):
            raise tarfile.ReadError("no header of a member")
        return header


_ABOUT_THE_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_PACKED: Mapping[bytes, Callable[..., Any]] = MappingProxyType(
    {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
)


def _bodies(archive: tarfile.TarFile, most: int) -> Iterator[bytes | None]:
    """The bytes of each image member; None for one that is too large to be an image, or has holes."""
    for member in archive:
        if member.isfile() and not 0 <= member.offset_data + member.size <= most and not member.issparse():
            raise tarfile.ReadError("a member that is larger than its archive")
        if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
            small = member.size <= _LARGEST_MEMBER and not member.issparse()
            stream = archive.extractfile(member) if small else None
            yield None if stream is None else stream.read()


def _try(source: Path | BytesIO | None, image_shape: tuple[int, int, int]) -> ByteArray | None:
    channels, height, width = image_shape
    try:
        return None if source is None else decode(source, channels, (height, width))
    except UserError:
        return None


def _blocks(sources: Encoded, image_shape: tuple[int, int, int]) -> Blocks:
    """Decoded by several threads, in the order of ``sources``."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as threads:
        while part := _next(sources):
            good = [image for image in threads.map(_try, part, itertools.repeat(image_shape)) if image is not None]
            block = np.stack(good) if good else np.empty((0, *image_shape), dtype=np.uint8)
            yield block, len(part) - len(good)


def _next(sources: Encoded) -> list[Path | BytesIO | None]:
    """The next images, as many as fit a block."""
    part: list[Path | BytesIO | None] = []
    block_bytes = 0
    for source in sources:
        part.append(source)
        block_bytes += source.getbuffer().nbytes if isinstance(source, BytesIO) else 0
        if len(part) == _BLOCK or block_bytes >= _BLOCK_BYTES:
            break
    return part


def labelled_folder(
    root: Path, split: str, size: tuple[int, int] | None, channels: int | None
) -> tuple[ByteArray, list[int], tuple[str, ...]]:
    """Images N C H W, labels and class names of ``root`` (or its part for ``split``), one folder per class.

    Raises:
        UserError: no images, unreadable ones, or several sizes without ``size``.
    """
    folder = _part(root, split)
    classes = _natural_order([path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."])
    unread: Counter[str] = Counter()
    files = [(path, label) for label, name in enumerate(classes) for path in image_files(folder / name, unread)]
    warn_of_left_out(folder, unread)
    if not files:
        raise UserError(f"read_images needs images in {folder}/<class>/, got none; give a folder of classes")
    first = decode(files[0][0], channels, size)
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for row, (path, _) in enumerate(files):
        image = decode(path, first.shape[0], size)
        if image.shape != first.shape:
            raise UserError(f"read_images needs images of one size, got {image.shape[1:]} in {path}; give a side")
        images[row] = image
    return (
        images,
        [label for _, label in files],
        tuple(os.fsencode(name).decode("utf-8", "replace") for name in classes),
    )


def _natural_order(names: list[str]) -> list[str]:
    """By the alphabet; numbers by their value, so that 10 does not stand before 2."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _part(root: Path, split: str) -> Path:
    """DIR/train, DIR/test or DIR/val where that holds class folders (and is not a class of that name)."""
    for name in ("train",) if split == "train" else ("test", "val"):
        part = root / name
        if part.is_dir() and not any(path.suffix.lower() in SUFFIXES for path in part.iterdir()):
            return part
    return root
