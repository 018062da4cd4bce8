"""How figures that become files look: tones that can be read on white and on black, as SVG or PNG."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "INK", "TONES", "Format", "draw_file", "font", "plain_axes"]

Format = Literal["svg", "png"]

FORMATS: tuple[Format, ...] = ("svg", "png")
INK, RULE = "#7a828a", "#9aa1a8"
TONES = ("#3b7fb5", "#c9772b", "#7f8890", "#5f9a64", "#a5648f", "#a08a3c")

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small and selectable
    "svg.hashsalt": "dfkd",  # the same picture is the same file
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.0,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def draw_file(size: tuple[float, float], draw: Callable[["Figure"], None], form: Format = "svg") -> bytes:
    """The file that ``draw`` makes of an empty figure.

    Args:
        size: width and height in inches.
        draw: puts something on the figure.
        form: a PNG has 200 pixels to the inch; both have no background.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing is registered anywhere, so nothing has to be closed.
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        undated = {"Date": None} if form == "svg" else {}
        figure.savefig(buffer, format=form, dpi=200, transparent=True, metadata=undated)
    return buffer.getvalue()


def plain_axes(axes: "Axes") -> None:
    """Horizontal rules and no frame."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=RULE, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the charts, for text in pictures; ``size`` in pixels."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
