"""`dfkd predict`."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dfkd.cli.config import Predict
from dfkd.data._sources import image_files
from dfkd.deploy.loading import load
from dfkd.deploy.predictor import Predictor
from dfkd.errors import UserError
from dfkd.report.files import write_whole

__all__ = ["run"]

BATCH = 64

Row = tuple[str, list[tuple[str, float]]]


def run(settings: Predict) -> int:
    """Classify image files; files that cannot be read are named on the error output and left out."""
    if settings.run is None or not settings.images:
        raise UserError("predict needs a run and images, got none; for example `dfkd predict runs/x pictures`")
    files = _files(settings.images)
    net = load(settings.run, settings.network)
    if not 1 <= settings.top <= len(net.names):
        raise UserError(f"predict needs --top from 1 to {len(net.names)}, got {settings.top}; change it")
    rows, unread = [], 0
    for row in _rows(net, files, settings.top):
        if row is None:
            unread += 1
        else:
            rows.append(row)
    if not rows:
        raise UserError(f"predict needs images that can be read, got none among {len(files)}; check {files[0]}")
    text = _json(rows) if settings.format == "json" else _csv(rows, settings.top)
    if settings.out is None:
        print(text, end="")
    else:
        write_whole(Path(settings.out), text.encode())
        print(f"{len(rows):,} images in {settings.out}", file=sys.stderr)
    return 0


def _files(paths: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if not path.exists():
            raise UserError(f"predict needs image files or folders, got {name}, which is not there; check the path")
        files += image_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"predict needs image files, got none in {', '.join(paths)}; give others")
    return files


def _rows(net: Predictor, files: Sequence[Path], top: int) -> Iterator[Row | None]:
    """The likeliest classes of every file; None for one that cannot be read."""
    import torch

    from dfkd.deploy.predictor import batch_of

    for start in range(0, len(files), BATCH):
        images, names = [], []
        for file in files[start : start + BATCH]:
            try:
                images.append(batch_of(file, net.image_size))
                names.append(str(file))
            except UserError as error:
                print(f"warning: {error}", file=sys.stderr)
                yield None
        if images:
            best = net.predict(torch.cat(images)).probabilities.topk(top, dim=1)
            for name, values, labels in zip(names, best.values.tolist(), best.indices.tolist(), strict=True):
                yield name, [(net.names[k], value) for k, value in zip(labels, values, strict=True)]


def _csv(rows: Sequence[Row], top: int) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = [f"{word}_{place}" for place in range(2, top + 1) for word in ("class", "probability")]
    writer.writerow(["file", "class", "probability", *more])
    for file, classes in rows:
        writer.writerow([file, *(cell for name, value in classes for cell in (name, f"{value:.6f}"))])
    return text.getvalue()


def _json(rows: Sequence[Row]) -> str:
    content: list[dict[str, Any]] = [
        {"file": file, "classes": [{"class": name, "probability": round(value, 6)} for name, value in classes]}
        for file, classes in rows
    ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
