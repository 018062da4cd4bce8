"""What the reference reads from the sources beyond plain docstrings.

Docstrings may explain several parameters in one line (``mean, std: ...``): the reference gets one line each. Fields are
explained by the comment behind them, as on the command line; members of an enumeration by their value.
"""

import inspect
import io
import re
import tokenize
from typing import Any

import griffe

_SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)


class HouseStyle(griffe.Extension):
    """Read docstrings and comments as this project writes them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Tidy the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = linked(escaped(one_line_each(inspect.cleandoc(obj.docstring.value))))

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """List fields that the class's docstring does not explain, with the comments behind them and their defaults."""
        rows = [f"    {name}: {text}" for name, attribute in cls.attributes.items() if (text := told(attribute, cls))]
        if rows and cls.docstring is not None and "Attributes:" not in cls.docstring.value:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)


def told(attribute: griffe.Attribute, cls: griffe.Class) -> str:
    """What is said about a field."""
    value = str(attribute.value) if attribute.value is not None else ""
    if any(str(base).endswith("Enum") for base in cls.bases):
        return escaped(value.strip("\"'"))
    if "property" in attribute.labels or attribute.docstring is not None or attribute.name.startswith("_"):
        return ""
    note = escaped(comment(attribute.lines))
    default = f"(default `{value}`)" if value and not value.startswith("field(") else ""
    return f"{note} {default}".strip()


def one_line_each(docstring: str) -> str:
    """``docstring`` with shared lines repeated for every name."""
    return _SHARED.sub(_repeated, docstring)


def escaped(text: str) -> str:
    """``<method>`` outside of code is a word, no HTML."""
    parts = re.split(r"(`+.*?`+)", text, flags=re.DOTALL)
    return "".join(part if i % 2 else re.sub(r"<(\w+)>", r"&lt;\1&gt;", part) for i, part in enumerate(parts))


def linked(text: str) -> str:
    """``:func:`~package.module.name``` as a link to what it names."""
    return re.sub(r":(?:func|class|meth|mod|attr):`~?([\w.]+)`", _link, text)


def _link(match: re.Match[str]) -> str:
    name = match[1].rpartition(".")[2]
    return f"[`{name}`][{match[1]}]" if match[1].startswith("dfkd.") else f"`{name}`"


def comment(lines: list[str]) -> str:
    """The trailing comment of a declaration."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.cleandoc("\n".join(lines)) + "\n").readline))
    except (tokenize.TokenError, SyntaxError):
        return ""
    found = [token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT]
    return found[-1] if found else ""


def _repeated(match: re.Match[str]) -> str:
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in match["names"].split(", "))
