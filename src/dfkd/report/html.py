"""What the HTML pages have in common: one offline file each, without scripts, in one style."""

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

__all__ = ["rendered"]


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """The page that a template of this room makes of ``values``. All text is escaped; ``style`` is ``page.css``."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    room = files("dfkd.report")
    page = environment.from_string(room.joinpath(template).read_text("utf-8"))
    return page.render(style=Markup(room.joinpath("page.css").read_text("utf-8")), **values)
