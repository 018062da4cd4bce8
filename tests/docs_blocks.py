"""The fenced blocks of a page, and how they are run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: language, file name it is to be saved under (or none), text, and its first line's number."""

    language: str
    title: str
    text: str
    line: int


def blocks(path: Path, *languages: str) -> list[Block]:
    """Those of a page in these languages, in its order."""
    text = path.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        first, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        if first in languages:
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(first, title[1] if title else "", match["body"], line))
    return found


def named(path: Path) -> str:
    """As it is called in the repository."""
    return path.relative_to(ROOT).as_posix()


def execute(path: Path, block: Block, names: dict[str, Any]) -> None:
    """Save a block that has a file name, run any other, as it stands, lines numbered as in the page."""
    if block.title:
        Path(block.title).write_text(block.text, "utf-8")
        return
    exec(compile("\n" * (block.line - 1) + block.text, named(path), "exec"), names)


def console_commands(path: Path, block: Block) -> Iterator[tuple[str, ...]]:
    """Words of every `dfkd ...` line of a console block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        assert line.startswith("$ ") or not line.strip(), f"{named(path)}: a console line begins with '$ ': {line}"
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if "dfkd" in words:
            yield tuple(words[words.index("dfkd") + 1 :])
