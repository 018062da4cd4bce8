"""What the documentation takes from the code when it is built, so that it cannot fall behind.

Markers in pages are replaced: ``<!-- cli -->`` by the help of every command, ``<!-- methods -->`` by the table of
methods, ``<!-- recipes -->`` by the list of packaged recipes, ``<!-- zoo -->`` by the networks. Every card in
``docs/methods`` is put into the navigation.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"


def on_config(config: Any) -> Any:
    """Put the cards below "Methods"."""
    for part in config["nav"]:
        if "Methods" in part:
            part["Methods"] += [{title: f"methods/{file}"} for title, file in cards()]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """``markdown`` with every marker replaced by what it stands for."""
    return re.sub(
        r"^<!-- (\w+) -->$", lambda m: MARKERS[m[1]]() if m[1] in MARKERS else m[0], markdown, flags=re.MULTILINE
    )


def cards() -> list[tuple[str, str]]:
    """Title and file of every card."""
    files = sorted(path for path in (DOCS / "methods").glob("*.md") if path.name != "index.md")
    return [(path.read_text("utf-8").splitlines()[0].lstrip("# ").strip(), path.name) for path in files]


def cli() -> str:
    """The help of every command, as the parser prints it."""
    from dfkd.cli.commands import COMMANDS
    from dfkd.cli.help import command_help

    parts = [f"## dfkd {name}\n\n```text\n{command_help(command)}\n```\n" for name, command in COMMANDS.items()]
    return "\n".join(parts)


def methods() -> str:
    """Every method with what it is, what it needs by default, and its budget."""
    from dfkd.methods import METHODS

    files = dict(cards())
    lines = ["| method | what it is | needs, with its default settings | default plan |", "|---|---|---|---|"]
    for name, kind in METHODS.items():
        summary = _module_doc(kind).splitlines()[0]
        needs = "; ".join(sorted(need.what for need in kind().needs())) or "nothing"
        plan = kind.default_plan
        file = next((file for title, file in files.items() if _same(title, name)), None)
        shown = f"[{name}]({file})" if file else name
        lines.append(f"| {shown} | {summary} | {needs} | {_budget(plan)} |")
    return "\n".join(lines)


def recipes() -> str:
    """The packaged recipes, with the paper's number and what records of this recipe say."""
    from dfkd.recipes import figures_of, rows

    lines = ["| recipe | paper | here, last round | note |", "|---|---|---|---|"]
    for row in rows():
        got = figures_of(row)
        here = "not run" if got is None else _reached(got)
        lines.append(f"| `{row.name}` | {'' if row.paper is None else row.paper} | {here} | {row.note} |")
    return "\n".join(lines)


def _reached(got: Any) -> str:
    """Mean and spread, and how they came about."""
    spread = "" if got.spread is None else f" ± {100 * got.spread:.2f}"
    seeds = f"{len(got.seeds)} seed{'s' if len(got.seeds) > 1 else ''}"
    return f"{100 * got.mean:.2f}{spread} ({seeds}, {got.seconds:.0f} s each, {'; '.join(got.hardware)})"


def zoo() -> str:
    """The networks that are built by name."""
    from dfkd.nets.zoo import ZOO

    return "\n".join(["| name | network |", "|---|---|", *_entries(ZOO)])


def _entries(entries: Mapping[str, Any]) -> Iterator[str]:
    for name, entry in entries.items():
        side = "" if entry.fixed_side is None else f"; {entry.fixed_side} pixels only"
        yield f"| `{name}` | {entry.summary}{side} |"


def _budget(plan: Any) -> str:
    warm = f"{plan.warmup} + " if plan.warmup else ""
    return f"{warm}{plan.rounds} rounds of {plan.steps} steps at batch {plan.batch_size}"


def _module_doc(kind: type) -> str:
    import sys

    return sys.modules[kind.__module__].__doc__ or ""


def _same(title: str, name: str) -> bool:
    """Titles of cards are written as the papers write them: Spaceship-Net is SpaceshipNet."""
    plain = re.sub(r"[^a-z0-9]", "", title.lower())
    return plain in (name.lower(), name.lower().removesuffix("kd"), name.lower().removesuffix("input"))


MARKERS: dict[str, Callable[[], str]] = {"cli": cli, "methods": methods, "recipes": recipes, "zoo": zoo}
