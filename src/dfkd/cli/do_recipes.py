"""`dfkd recipes`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dfkd.cli.config import Recipes
from dfkd.cli.setup import wide_console
from dfkd.recipes import Row, expected_block, figures_of, find, recipe, rows, yaml_of
from dfkd.report.summary import duration, percent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["head", "run"]


def run(settings: Recipes) -> int:
    """List the recipes, or print one as YAML."""
    if settings.name is not None:
        row = find(settings.name)
        print(yaml_of({**recipe(row.name), "expected": expected_block(row)}, head(row)), end="")
        return 0
    console = wide_console()
    table, narrow = rows(), console.width < 110
    notes = {note: str(number) for number, note in enumerate(dict.fromkeys(row.note for row in table if row.note), 1)}
    console.print(_table([row for row in table if not row.variant], notes))
    console.print("\nAblations: the recipe before the plus sign with something changed\n", style="bold")
    console.print(_table([row for row in table if row.variant], notes))
    console.print()
    for note, number in notes.items():
        console.print(f"{number:>4}  {note}", soft_wrap=not narrow, markup=False)
    machines = "; ".join(dict.fromkeys(machine for row in table for machine in _hardware(row))) or "no machine yet"
    console.print(
        "\nThe paper's numbers are from its own teachers and hardware. Here: last round, mean over seeds, on "
        f"{machines}. `dfkd recipes NAME` prints one as YAML."
    )
    return 0


def _table(listed: Sequence[Row], notes: Mapping[str, str]) -> "Table":
    from rich.table import Table

    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    sheet.add_column("recipe", overflow="fold")
    sheet.add_column("the paper's", justify="right", no_wrap=True)
    sheet.add_column("here", overflow="fold")
    sheet.add_column("note", justify="right", style="dim")
    for row in listed:
        paper = "–" if row.paper is None else f"{row.paper:.2f} %"
        sheet.add_row(row.name, paper, _state(row), notes.get(row.note, ""))
    return sheet


def head(row: Row) -> list[str]:
    """What stands above a recipe: the command, what it is, and how to read the figures at its end."""
    if row.bits:
        lines = [f"dfkd quantize TEACHER --recipe {row.name}", ""]
    else:
        lines = [f"dfkd distill {row.name} --teacher.weights TEACHER", ""]
    lines.append(f"{row.method}, {row.teacher} -> {row.bits or row.student} on {row.part or row.data}")
    lines += [row.note] if row.note else []
    if not expected_block(row):
        return lines
    return [*lines, "expected, in percent: paper is the paper's figure, on its own teacher; here is ours, last round"]


def _hardware(row: Row) -> tuple[str, ...]:
    had = figures_of(row)
    return () if had is None else had.hardware


def _state(row: Row) -> str:
    """Not run; or what was reached, over how many seeds, in what time."""
    had = figures_of(row)
    if had is None:
        return "not run"
    seeds = len(had.accuracies)
    text = f"{percent(had.mean)} ({seeds} seed{'s' if seeds > 1 else ''}, {duration(had.seconds)} each)"
    return f"{text}, reached" if row.paper is not None and 100 * had.mean >= row.paper - 0.5 else text
