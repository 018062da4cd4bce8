"""`dfkd methods`."""

import inspect
from dataclasses import asdict
from typing import Any

from dfkd.cli.config import Methods
from dfkd.cli.fields import Option, options, spell
from dfkd.cli.setup import find_method, inner_method_fields, wide_console
from dfkd.engine.core import Method
from dfkd.methods import COMBINATIONS, METHODS, offered_methods

__all__ = ["run"]


def run(settings: Methods) -> int:
    """List the methods, or show one."""
    console = wide_console()
    if settings.name is not None:
        _show(console, settings.name, find_method(settings.name))
        return 0
    for name, kind in METHODS.items():
        console.print(f"[bold]{name:<14}[/bold]{headline(kind)}")
        needs = "; ".join(need.what for need in sorted(kind().needs(), key=lambda need: need.what))
        console.print(f"{'':<14}needs {needs or 'nothing'}", style="dim")
    for name, point in offered_methods().items():
        console.print(f"[bold]{name:<14}[/bold]of the package {point.dist.name if point.dist else '?'}: {point.value}")
    console.print("\nmade of other methods:")
    for name, kind in COMBINATIONS.items():
        console.print(f"[bold]{name:<14}[/bold]{headline(kind)}")
    console.print(
        "\n`dfkd methods NAME` shows hyper-parameters; `dfkd inspect TEACHER --student NAME` what fits a pair."
    )
    return 0


def headline(kind: type[Method[Any]]) -> str:
    """The first line of the module's docstring, without the method's name in front."""
    module = inspect.getmodule(kind)
    text = (inspect.getdoc(module) or inspect.getdoc(kind) or "").splitlines()
    return text[0].rstrip(".") if text else ""


def _show(console: Any, name: str, kind: type[Method[Any]]) -> None:
    """Hyper-parameters with defaults and the paper's symbols, and the published budget."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(headline(kind), style="bold"))
    if citation := _citation(kind):
        console.print(Text(citation))
    sheet = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("option", "default"):
        sheet.add_column(heading, overflow="fold", no_wrap=console.width >= 90)
    sheet.add_column("meaning; symbol of the paper", overflow="fold")
    inner = [f"--method.{part}" for part in inner_method_fields(kind)]
    group = ""
    for option in options(kind, "--method."):
        if option.group != group:
            group = option.group
            sheet.add_row(Text(f"\n{group}", style="italic"))
        default = "(a method)" if option.name in inner else _value(option.default)
        sheet.add_row(*(Text(cell) for cell in (option.name, default, _meaning(option))))
    console.print()
    console.print(sheet, soft_wrap=False)
    plan = ", ".join(f"{key} {_value(value)}" for key, value in asdict(kind.default_plan).items())
    console.print(Text(f"\nIts plan, unless told otherwise: {f'that of {inner[0]}' if inner else plan}."))
    method_options = " ".join([f"--method {name}", *(f"{part} METHOD" for part in inner)])
    if inner:
        console.print(
            Text(f"\nSettings of a method within it: {inner[0]}.NAME VALUE, as `dfkd methods METHOD` has them.")
        )
    console.print(Text(f"\nUse: dfkd distill {method_options} --teacher.weights TEACHER --student STUDENT"))


def _citation(kind: type[Method[Any]]) -> str:
    """The paragraph after the headline, where it names a year."""
    module = inspect.getmodule(kind)
    paragraphs = (inspect.getdoc(module) or "").split("\n\n") if module else []
    second = " ".join(paragraphs[1].split()) if len(paragraphs) > 1 else ""
    return second if any(year in second for year in ("20", "19")) else ""


def _meaning(option: Option) -> str:
    """The note, and the choices or the limit where there are some."""
    among = spell(option.type) if " | " in spell(option.type) else option.limit
    return " ".join(part for part in (option.note, among and f"[{among}]") if part)


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
