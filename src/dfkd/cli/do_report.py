"""`dfkd report`."""

from pathlib import Path

from dfkd.cli.config import Report
from dfkd.errors import UserError
from dfkd.report.page import write_page

__all__ = ["run"]


def run(settings: Report) -> int:
    """Write the page of a run anew, also of one that still goes on."""
    if settings.run is None:
        raise UserError("report needs a run folder, got none; for example `dfkd report runs/x`")
    page = write_page(Path(settings.run), None if settings.out is None else Path(settings.out))
    print(f"report  {page}")
    return 0
