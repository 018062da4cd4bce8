"""What an export wrote, as a table; for `dfkd export` and for runs that export at their end."""

from dfkd.cli.setup import wide_console
from dfkd.deploy.export import Artefact, Exported
from dfkd.report.summary import file_size, percent

__all__ = ["show_exported"]


def show_exported(exported: Exported) -> None:
    """One row for every file, PyTorch first."""
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    counts = list(exported.artefacts[0].milliseconds)
    accuracies = ("accuracy",) if exported.tested else ()
    for title in ("format", "file", "size", "difference", "agreement", *accuracies):
        sheet.add_column(title, justify="left" if title in ("format", "file") else "right")
    for n in counts:
        sheet.add_column(f"ms for {n}", justify="right")
        sheet.add_column("speed", justify="right")
    for row in exported.artefacts:
        sheet.add_row(*_cells(row, counts))
    console = wide_console()
    console.print(sheet)
    console.print(
        f"\nOn {exported.images:,} images: largest difference of a logit, same class as PyTorch. Speed: times as fast "
        "as PyTorch,\nmeasured in turns."
        + (f" Accuracy: on {exported.tested:,} labelled images." if exported.tested else ""),
        highlight=False,
    )
    for row in exported.artefacts:
        if row.in_float:
            console.print(f"left in float: {', '.join(row.in_float)}", highlight=False)
    for name, why in exported.skipped.items():
        console.print(f"{name} was not written: {why}", highlight=False)
    console.print(f"files in {exported.folder}", highlight=False)


def _cells(row: Artefact, counts: list[int]) -> list[str]:
    cells = [row.format, row.file or "–", file_size(row.bytes), f"{row.difference:.2g}", percent(row.agreement)]
    cells += [percent(row.accuracy)] if row.accuracy is not None else []
    for n in counts:
        cells += [f"{row.milliseconds[n]:.2f}", f"{row.speedup[n]:.2f}x"]
    return cells
