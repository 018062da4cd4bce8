"""How much a file may unpack to: a file of a few megabytes can ask for any number of gigabytes.

Photographs and weights hardly shrink, drawings and digits to a tenth, a constant image to a thousandth. A file may
unpack to 64 times its size, and to 256 MiB whatever its size.
"""

import zipfile
from pathlib import Path
from typing import IO

__all__ = ["MOST_SMALL", "RATIO", "Bounded", "most_bytes", "zip_members"]

RATIO = 64
MOST_SMALL = 2**28  # bytes that even the smallest file may unpack to: no machine runs out of them


def most_bytes(size: int) -> int:
    """To how many bytes a packed file of ``size`` bytes may unpack."""
    return MOST_SMALL + RATIO * size


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip file.

    Raises:
        ValueError: they unpack to more than a file of this size may.
        zipfile.BadZipFile, OSError and others: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    total, most = sum(member.file_size for member in members), most_bytes(path.stat().st_size)
    if total > most:
        raise ValueError(f"it unpacks to {total:,} bytes, more than the {most:,} that a file of its size may")
    return members


class Bounded:
    """A stream that ends in an error after so many bytes, and where someone goes on reading at its end."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most
        self._given = 0
        self._ends = 0

    def read(self, size: int = -1) -> bytes:
        """As a stream does.

        Raises:
            EOFError: the end was met a hundred times, or there is more than there may be.
        """
        part = self._stream.read(min(size, self._most + 1) if size >= 0 else self._most + 1)
        self._given += len(part)
        self._ends += not part
        if self._given > self._most or self._ends > 100:
            raise EOFError("more than there may be" if part else "the end")
        return part

    def close(self) -> None:
        """Close the stream below."""
        self._stream.close()
