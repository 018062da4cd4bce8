"""What is printed, on terminals and pipes of any encoding; what was typed there, as text."""

import codecs
import io
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["decode_word", "print_anywhere"]

_SPELLED: Mapping[str, str] = MappingProxyType(
    {"–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "±": "+-", "→": "->", "≥": ">=", "≤": "<=", "‘": "'"}
    | {"’": "'", "“": '"', "”": '"', "·": ".", "•": "*", "━": "-", "─": "-", "│": "|", "╸": "-", "╺": "-", "\xa0": " "}
)


def print_anywhere() -> None:
    """Let the standard streams spell out or replace what their encoding lacks, for the rest of the process."""
    codecs.register_error("dfkd.spelled", _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dfkd.spelled")


def _spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_SPELLED.get(char, "?") for char in error.object[error.start : error.end]), error.end


def decode_word(word: str) -> str:
    """A word of the command line; bytes that the locale could not read are UTF-8, unless they name a file.

    Python keeps such bytes as halves of characters, which can be written nowhere.
    """
    if word.isascii() or not any("\ud800" <= char <= "\udfff" for char in word):
        return word
    place = word.partition("=")[2] if word.startswith("--") else word
    if os.path.lexists(place) or os.path.lexists(place.rpartition(":")[2]):
        return word
    return os.fsencode(word).decode("utf-8", "replace")
