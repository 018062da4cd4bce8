"""`dfkd report`."""

from pathlib import Path

from dfkd.cli.config import Report
from dfkd.errors import UserError
from dfkd.report.comparison import COMPARISON_FILE, write_comparison
from dfkd.report.page import write_page

__all__ = ["run"]


def run(settings: Report) -> int:
    """Write the page of a run anew, also of one that still goes on; of several runs, one that compares them."""
    if settings.run is None:
        raise UserError("report needs a run folder, got none; for example `dfkd report runs/x`")
    if settings.compare:
        folders = [Path(folder) for folder in (settings.run, *settings.compare)]
        page = write_comparison(folders, Path(settings.out or COMPARISON_FILE))
        print(f"report  {page}")
        return 0
    page = write_page(Path(settings.run), None if settings.out is None else Path(settings.out))
    print(f"report  {page}")
    return 0
