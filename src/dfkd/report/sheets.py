"""The image grids of a run: drawn from a round's samples, found in a run folder, chosen for the page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from dfkd.engine.records import RoundRecord, RunInfo, RunResult
from dfkd.errors import UserError
from dfkd.report.files import SAMPLES_FOLDER, is_inside
from dfkd.report.grid import Layout, image_grid, layout, row_height
from dfkd.report.summary import class_names, finished_rounds

T = TypeVar("T")

SHEETS = 6  # image grids on the page, evenly spread over the run
SHEET_BYTES = 12_000_000  # of all image grids together; beyond it, fewer are shown


@dataclass(frozen=True)
class Sheet:
    """One image grid: after how many rounds, as a PNG file, and the names of its rows ("" where unknown)."""

    rounds: int
    png: bytes
    names: tuple[str, ...]


def sheet_of(record: RoundRecord, chosen: Layout) -> Image.Image | None:
    """The sheet of a round's samples, or None where it has none."""
    if record.samples is None or len(record.samples[0]) == 0:
        return None
    images, labels = record.samples
    return image_grid(images, labels, chosen.columns, chosen.classes)


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def sheets_of(result: RunResult) -> list[tuple[int, bytes]]:
    """The grids of the samples that a result still holds: (rounds done, PNG file), oldest first."""
    sheet_layout = layout(result.info.image_shape, result.info.classes)
    sheets = [(finished_rounds(record), sheet_of(record, sheet_layout)) for record in result.rounds]
    return [(rounds, png(sheet)) for rounds, sheet in sheets if sheet is not None]


def sheets_in(folder: Path) -> list[tuple[int, bytes]]:
    """The image grids of a run folder, oldest first. Only the chosen ones are read."""
    sheets = []
    for path in (folder / SAMPLES_FOLDER).glob("round_*.png"):
        digits = path.stem.removeprefix("round_")
        if digits.isdecimal() and path.is_file() and is_inside(path, folder):
            sheets.append((int(digits), path))
    return [(rounds, path.read_bytes()) for rounds, path in spread(sorted(sheets), SHEETS)]


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` items, evenly spread, always with the last and, of two or more, the first."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[-1:])
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def sheets_within_limits(sheets: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """As many grids as the page can carry."""
    most = SHEETS
    selection = spread(sheets, most)
    while most > 1 and sum(len(data) for _, data in selection) > SHEET_BYTES:
        most -= 1
        selection = spread(sheets, most)
    return selection


def name_rows(info: RunInfo, rounds: int, data: bytes) -> Sheet:
    """Name the rows of a grid, if it is one of this run's layout. Raises UserError where it is no PNG file."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            height = image.height
    except (OSError, ValueError) as error:
        raise UserError(
            f"the report needs a PNG file for the samples of round {rounds}, got something else; "
            "remove that file from the run folder"
        ) from error
    classes = layout(info.image_shape, info.classes).classes
    names = class_names(info)
    fits = height == len(classes) * row_height(info.image_shape)
    return Sheet(rounds, data, tuple(names[k] for k in classes) if fits else ())
