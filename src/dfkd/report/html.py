"""What the HTML pages have in common: one offline file each, without scripts, in one style."""

import base64
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from dfkd.visible import visible

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_template"]


def render_template(template: str, values: Mapping[str, Any]) -> str:
    """The page that a template of this room makes of ``values``. All text is escaped, and steers nothing.

    ``style`` is ``page.css``.
    """
    from markupsafe import Markup

    style = Markup(files("dfkd.report").joinpath("page.css").read_text("utf-8"))
    return visible(_environment().get_template(template).render(style=style, **values))


@cache  # it keeps the templates it has compiled
def _environment() -> "Environment":
    """Where the templates of this room are read."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    room = files("dfkd.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: room.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment
