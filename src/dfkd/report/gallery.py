"""The figures of a run as files: one picture each, and an index that says what they show."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.errors import UserError
from dfkd.report.files import DAMAGE, is_inside, plain, write_whole

__all__ = ["CURVES", "FIGURES_FOLDER", "Figure", "Gallery", "read_gallery", "write_gallery"]

FIGURES_FOLDER = "figures"
INDEX_FILE = "index.json"
CURVES = ("accuracy", "losses", "measures")  # figures that the page draws itself

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: of the file, without its ending.
        caption: what it shows, one or two sentences.
        data: a PNG or SVG file.
        alt: what is said to those who do not see it.
        numbers: what can be read from it, or belongs beside it.
    """

    name: str
    caption: str
    data: bytes
    alt: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def png(self) -> bool:
        """Pixels, not lines?"""
        return self.data.startswith(_PNG)

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.name}.{'png' if self.png else 'svg'}"

    @property
    def media(self) -> str:
        """The media type."""
        return "image/png" if self.png else "image/svg+xml"

    @property
    def wide(self) -> bool:
        """Is it too wide for half a page?"""
        if self.png:
            return int.from_bytes(self.data[16:20], "big") > 560
        width = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', self.data)
        return width is not None and float(width[1]) > 400


@dataclass(frozen=True)
class Gallery:
    """The figures that were drawn, and of the others why not."""

    figures: Sequence[Figure] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def write_gallery(folder: Path, gallery: Gallery) -> Path:
    """Write every figure and ``index.json`` into ``folder``; figures of an older index that are gone are removed.

    Returns:
        The index.

    Raises:
        UserError: the folder cannot be written.
    """
    index, names = folder / INDEX_FILE, {figure.file for figure in gallery.figures}
    for figure in gallery.figures:
        write_whole(folder / figure.file, figure.data)
        sibling = folder / f"{figure.name}.{'svg' if figure.png else 'png'}"
        sibling.unlink(missing_ok=True)
    entries = [
        {
            "name": figure.name,
            "file": figure.file,
            "caption": figure.caption,
            "alt": figure.alt,
            "numbers": figure.numbers,
        }
        for figure in gallery.figures
    ]
    for old in _file_names_in(index) - names:
        (folder / old).unlink(missing_ok=True)
    page = plain({"figures": entries, "skipped": gallery.skipped})
    write_whole(index, json.dumps(page, allow_nan=False, ensure_ascii=False, indent=1).encode() + b"\n")
    return index


def read_gallery(folder: Path) -> Gallery:
    """The figures that ``folder`` holds; none where it has no index.

    Raises:
        UserError: an index that cannot be read, or a figure of it that is not there.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        return Gallery()
    try:
        entries = json.loads(index.read_text("utf-8"))
        figures = [_figure(folder, row) for row in entries["figures"]]
        return Gallery(figures, {str(name): str(why) for name, why in entries["skipped"].items()})
    except (OSError, *DAMAGE) as error:
        reason = error.strerror if isinstance(error, OSError) else "something else"
        raise UserError(
            f"the report needs a list of figures in {index}, got {reason!r}; draw them again with `dfkd plot` "
            f"or remove {folder}"
        ) from error


def _figure(folder: Path, row: Mapping[str, object]) -> Figure:
    numbers = row["numbers"]
    if not isinstance(numbers, Mapping):
        raise TypeError("numbers")
    values = {str(name): math.nan if value is None else float(value) for name, value in numbers.items()}
    file = _bare(row["file"])
    if not is_inside(folder / file, folder.parent):
        raise ValueError("a link that leads out of the folder")
    return Figure(str(row["name"]), str(row["caption"]), (folder / file).read_bytes(), str(row["alt"]), values)


def _bare(name: object) -> str:
    """A file name that leads nowhere else."""
    if not isinstance(name, str) or Path(name).name != name or Path(name).suffix not in (".png", ".svg"):
        raise ValueError("file")
    return name


def _file_names_in(index: Path) -> set[str]:
    """The files that an index names; none where it is missing or damaged."""
    try:
        return {_bare(row["file"]) for row in json.loads(index.read_text("utf-8"))["figures"]}
    except (OSError, *DAMAGE):
        return set()
