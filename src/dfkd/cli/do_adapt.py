"""`dfkd adapt`."""

import json
from pathlib import Path

from dfkd.cli.config import Adapt
from dfkd.cli.job import RECIPE_FILE
from dfkd.cli.parse import read_yaml
from dfkd.deploy.adapt import adapt
from dfkd.errors import UserError
from dfkd.report.summary import percent

__all__ = ["run"]


def run(settings: Adapt) -> int:
    """Estimate BatchNorm anew on a few real images, and keep it where it helps."""
    if settings.run is None or settings.images is None:
        raise UserError("adapt needs a run and images, got none; for example `dfkd adapt runs/x --images pictures`")
    folder = Path(settings.run)
    result = adapt(
        folder,
        settings.images,
        settings.teacher or _teacher(folder),
        count=settings.count,
        network=settings.network,
        out=settings.out,
    )
    if settings.json:
        about = {"images": result.images, "before": result.before, "after": result.after, "kept": result.kept}
        print(json.dumps({**about, "folder": str(result.folder) if result.folder else None}))
        return 0
    print(f"agreement with the teacher on {result.images} images: {percent(result.before)} as it is, ", end="")
    print(f"{percent(result.after)} with statistics from images it is not measured on")
    print(f"kept: {result.folder} (no longer data-free)" if result.kept else "not kept: the student stays as it is")
    return 0


def _teacher(folder: Path) -> str:
    """Where the run's recipe says the teacher's weights are."""
    file = folder / RECIPE_FILE
    weights = read_yaml(file).get("teacher", {}).get("weights") if file.is_file() else None
    if weights is None:
        raise UserError(f"adapt needs the teacher of the run, got none in {file}; give --teacher FOLDER")
    return str(weights)
