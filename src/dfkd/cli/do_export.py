"""`dfkd export`."""

import json

from dfkd.cli.config import Export
from dfkd.cli.exported import show_exported
from dfkd.deploy.export import export
from dfkd.errors import UserError
from dfkd.report.files import plain

__all__ = ["run"]


def run(settings: Export) -> int:
    """Write the student for deployment, compared with PyTorch."""
    if settings.run is None:
        raise UserError("export needs a run folder, got none; for example `dfkd export runs/x`")
    result = export(
        settings.run,
        formats=settings.formats,
        normalisation=settings.normalisation,
        images=settings.images,
        calibration=settings.calibration,
        batch=settings.batch,
        network=settings.network,
        out=settings.out,
        test=settings.test,
    )
    if settings.json:
        print(json.dumps(plain(result), indent=1))
    else:
        show_exported(result)
    return 0
