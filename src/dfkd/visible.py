"""Names that others chose, made safe to show: what would steer a terminal or turn the text around becomes a sign."""

import re

__all__ = ["visible"]

# Control characters but tab and line break, marks of writing direction, line separators, halves of characters.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with each such character replaced by U+FFFD."""
    return _STEERING.sub("\ufffd", text)
