"""Docstrings may explain several parameters in one line (``mean, std: ...``); the reference wants one line each."""

import inspect
import re
from typing import Any

import griffe

_SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)


class OneLineEach(griffe.Extension):
    """Give every parameter that shares a line its own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = one_line_each(inspect.cleandoc(obj.docstring.value))


def one_line_each(docstring: str) -> str:
    """``docstring`` with shared lines repeated for every name."""
    return _SHARED.sub(_repeated, docstring)


def _repeated(match: re.Match[str]) -> str:
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in match["names"].split(", "))
