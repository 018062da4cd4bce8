"""`dfkd report`."""

from pathlib import Path

from dfkd.cli.config import Report
from dfkd.errors import UserError
from dfkd.report.comparison import COMPARISON_FILE, write_comparison
from dfkd.report.page import write_page
from dfkd.report.repeat_page import REPEAT_FILE, write_repeat_page
from dfkd.report.trial_page import write_search_page
from dfkd.report.trials import SEARCH_FILE

__all__ = ["run"]


def run(settings: Report) -> int:
    """Write the page of a run anew, also of one that still goes on; of several runs, one that compares them."""
    if settings.run is None:
        raise UserError("report needs a run folder, got none; for example `dfkd report runs/x`")
    folder, out = Path(settings.run), None if settings.out is None else Path(settings.out)
    if settings.compare:
        page = write_comparison([folder, *map(Path, settings.compare)], out or Path(COMPARISON_FILE))
    elif (folder / SEARCH_FILE).is_file():
        page = write_search_page(folder, out)
    elif (folder / REPEAT_FILE).is_file():
        page = write_repeat_page(folder, out)
    else:
        page = write_page(folder, out)
    print(f"report  {page}")
    return 0
