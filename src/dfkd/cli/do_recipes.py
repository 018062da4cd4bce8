"""`dfkd recipes`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfkd.cli.config import Recipes
from dfkd.cli.setup import wide_console
from dfkd.recipes import Row, find, reached, recipe, rows, yaml_of
from dfkd.report.summary import duration, percent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["head", "run"]


def run(settings: Recipes) -> int:
    """List the recipes, or print one as YAML."""
    if settings.name is not None:
        row = find(settings.name)
        print(yaml_of(recipe(row.name), head(row)), end="")
        return 0
    console = wide_console()
    main = [row for row in rows() if not row.variant]
    console.print(_table(main, notes=True))
    console.print("\nAblations: the recipe before the plus sign with something changed\n", style="bold")
    console.print(_table([row for row in rows() if row.variant]))
    console.print(
        "\nThe paper's numbers are from its own teachers and hardware. `dfkd recipes NAME` prints one as YAML."
    )
    return 0


def _table(shown: Sequence[Row], notes: bool = False) -> "Table":
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    sheet.add_column("recipe", no_wrap=True)
    sheet.add_column("the paper's", justify="right", no_wrap=True)
    sheet.add_column("here", no_wrap=True)
    if notes:
        sheet.add_column("note", style="dim", overflow="fold")
    for row in shown:
        paper = "–" if row.paper is None else f"{row.paper:.2f} %"
        sheet.add_row(row.name, paper, _state(row), *([row.note] if notes else []))
    return sheet


def head(row: Row) -> list[str]:
    """What stands above a recipe: the command, the paper's number, ours."""
    told = [f"dfkd distill {row.name} --teacher.weights TEACHER", ""]
    told.append(f"{row.method}, {row.teacher} -> {row.student} on {row.data}")
    paper = "no number published" if row.paper is None else f"{row.paper:.2f} % (the paper's, on its own teacher)"
    told += [f"published: {paper}", f"here: {_state(row)}"]
    return [*told, row.note] if row.note else told


def _state(row: Row) -> str:
    """Not run; or what was reached, over how many seeds, in what time."""
    had = reached(row)
    if had is None:
        return "not run"
    seeds = len(had.accuracies)
    text = f"{percent(had.mean)} ({seeds} seed{'s' if seeds > 1 else ''}, {duration(had.seconds)} each)"
    return f"{text}, reached" if row.paper is not None and 100 * had.mean >= row.paper - 0.5 else text
