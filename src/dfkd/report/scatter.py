"""Points in many dimensions drawn in two: t-SNE, one colour per group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfkd.errors import UserError
from dfkd.report.canvas import TONES, Format, draw_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["tsne", "tsne_figure"]


def tsne(points: Tensor, seed: int = 0, perplexity: float = 30.0) -> Tensor:
    """Two coordinates for each of ``points`` (n, d), by scikit-learn's t-SNE; the perplexity shrinks for few points.

    Raises:
        UserError: fewer than four points.
    """
    from sklearn.manifold import TSNE

    if len(points) < 4:
        raise UserError(f"tsne needs at least 4 points, got {len(points)}; give more")
    reach = min(perplexity, (len(points) - 1) / 3)
    embedded = TSNE(2, perplexity=reach, init="pca", random_state=seed).fit_transform(
        points.detach().float().cpu().numpy()
    )
    return torch.from_numpy(embedded)


def tsne_figure(
    groups: Mapping[str, Tensor],
    seed: int = 0,
    perplexity: float = 30.0,
    *,
    tones: Sequence[str] = TONES,
    form: Format = "svg",
) -> bytes:
    """One t-SNE of all groups together, as a file with a legend; later groups are drawn on top.

    Args:
        groups: name -> (n, d), such as features of selected and of other images.
        seed: of the embedding.
        perplexity: see :func:`tsne`.
        tones: one colour a group.
        form: SVG or PNG.
    """
    places = tsne(torch.cat([value.flatten(1).cpu() for value in groups.values()]), seed, perplexity)
    parts = dict(zip(groups, places.split([len(value) for value in groups.values()]), strict=True))

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        for (name, part), tone in zip(parts.items(), tones, strict=False):
            label = f"{name} ({len(part)})"
            axes.scatter(part[:, 0], part[:, 1], s=9, alpha=0.75, linewidths=0, color=tone, label=label)
        axes.set_axis_off()
        axes.set_aspect("equal", "datalim")
        figure.legend(loc="outside lower center", ncols=len(parts), frameon=False, handletextpad=0.1, markerscale=2)

    return draw_file((4.2, 4.2), draw, form)
