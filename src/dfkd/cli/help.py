"""Help texts, made from the same dataclasses that the options are made from."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_origin, get_type_hints

from dfkd.cli.commands import COMMANDS, GROUPS, Command
from dfkd.cli.fields import Option, notes, options, parts
from dfkd.cli.parse import SHORT

__all__ = ["command_help", "main_help"]

WIDTH = 100
COLUMN = 34

_TITLES = {
    "": "General",
    "network": "Network",
    "teacher": "Teacher",
    "student": "Student",
    "data": "Data",
    "text": "Class embeddings",
    "method": "Method",
    "plan": "Plan: how long, and the optimiser",
    "runtime": "Machine",
    "watch": "Watching and saving",
    "stop": "Stopping early   (--patience, --until-agreement and --hours are short forms)",
}


def main_help(version: str) -> str:
    """`dfkd --help`."""
    lines = [
        f"dfkd {version}: a smaller student from a trained image classifier, without its training data",
        "",
        f"{bold('Usage')}  dfkd COMMAND [options]",
    ]
    for title, names in GROUPS:
        lines += ["", bold(title)]
        lines += [f"  {name:<12}{COMMANDS[name].summary}" for name in names]
    lines += [
        "",
        bold("Try"),
        "  dfkd demo                        see it work, in about three minutes",
        "  dfkd distill --help              the options of one command, with examples",
        "",
        bold("Everywhere"),
        "  --help       this, or the help of a command",
        "  --version    the version",
        "  --debug      show where an error came from",
    ]
    return "\n".join(lines)


def command_help(command: Command) -> str:
    """`dfkd COMMAND --help`."""
    lines = [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    lines += [f"{bold('Usage')}  dfkd {command.name} {command.usage}", "", bold("Examples")]
    lines += [f"  {line}" for purpose, line in command.examples for line in (f"# {purpose}", line)] or [
        f"  dfkd {command.name}"
    ]
    for note in command.notes:
        lines += ["", *textwrap.wrap(note, WIDTH)]
    lines += list(_sections(command))
    lines += ["", "--debug shows where an error came from."]
    if command.free:
        lines[-1] += " --print_config prints the resolved recipe and stops."
    return "\n".join(lines)


def bold(text: str) -> str:
    """Bold on a terminal."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def _sections(command: Command) -> Iterator[str]:
    types = get_type_hints(command.settings)
    sections = sorted((name for name in types if is_dataclass(types[name])), key=list(_TITLES).index)
    comments = notes(command.settings)
    flat = [option for option in options(command.settings) if option.name in types]
    flat.sort(key=lambda option: option.name != command.word)
    rows = [_row(Option(o.name, o.type, o.default, comments.get(o.name, "")), command) for o in flat]
    yield from ["", bold("Options"), *(line for row in rows for line in row)]
    for name in sections:
        hint = f"   (--{name} X is short for --{name}.{SHORT[name]} X)" if name in SHORT else ""
        title = (
            f"{_TITLES[name]} (default: the budget of the method)" if name == "plan" and command.free else _TITLES[name]
        )
        yield from ["", bold(title) + hint]
        for option in options(types[name], f"{name}."):
            if option.name not in command.unlisted:
                yield from _row(option, command)


def _row(option: Option, command: Command) -> list[str]:
    """One option in two columns."""
    if option.name == command.word and "." not in option.name:
        head = f"  {option.name.upper()}"
    else:
        name = option.name if "." in option.name else option.name.replace("_", "-")
        head = f"  --{name}" + ("" if option.boolean and option.default is False else f" {_value(option.type)}")
    text = option.note + _option_help(option, command)
    lines = textwrap.wrap(text, WIDTH - COLUMN) or [""]
    if len(head) > COLUMN - 2:
        return [head, *(" " * COLUMN + line for line in lines)]
    return [head.ljust(COLUMN) + lines[0], *(" " * COLUMN + line for line in lines[1:])]


def _value(kind: Any) -> str:
    kinds = [part for part in parts(kind) if part is not type(None)]
    if get_origin(kinds[0]) is Literal:
        choices = "|".join(str(value) for value in kinds[0].__args__)
        return choices if len(choices) <= 24 else "NAME"
    origin = get_origin(kinds[0])
    if origin is tuple and kinds[0].__args__[-1] is not Ellipsis:
        return ",".join("N" for _ in kinds[0].__args__)
    if origin in (list, tuple):
        return "X,Y,..."
    return {int: "N", float: "X", bool: "true|false"}.get(kinds[0], "X" if kinds[0] is float else "TEXT")


def _option_help(option: Option, command: Command) -> str:
    kinds = [part for part in parts(option.type) if part is not type(None)]
    defaults = []
    if get_origin(kinds[0]) is Literal and len("|".join(map(str, kinds[0].__args__))) > 24:
        defaults.append(", ".join(map(str, kinds[0].__args__)))
    if option.name.startswith("plan.") and command.free:
        pass  # each method has its own budget
    elif option.default is not None and option.default is not False and option.default != ():
        defaults.append(f"default {_plain(option.default)}")
    return (" " if option.note and defaults else "") + (f"[{'; '.join(defaults)}]" if defaults else "")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
