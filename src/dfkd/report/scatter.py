"""Points in many dimensions drawn in two: t-SNE as an SVG, one colour per group."""

import io
from collections.abc import Mapping

import torch
from torch import Tensor

from dfkd.errors import UserError

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
    made = TSNE(2, perplexity=reach, init="pca", random_state=seed).fit_transform(points.detach().float().cpu().numpy())
    return torch.from_numpy(made)


def tsne_figure(groups: Mapping[str, Tensor], seed: int = 0, perplexity: float = 30.0) -> str:
    """One t-SNE of all groups together, as SVG text with a legend; later groups are drawn on top.

    Args:
        groups: name -> (n, d), such as features of selected and of other images.
        seed: of the embedding.
        perplexity: see :func:`tsne`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    places = tsne(torch.cat([value.flatten(1).cpu() for value in groups.values()]), seed, perplexity)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dfkd", "text.parse_math": False, "font.size": 8.0}):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for (name, value), part in zip(groups.items(), places.split([len(v) for v in groups.values()]), strict=True):
            axes.scatter(part[:, 0], part[:, 1], s=7, alpha=0.7, linewidths=0, label=f"{name} ({len(value)})")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.legend(loc="outside lower center", ncols=len(groups), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()
