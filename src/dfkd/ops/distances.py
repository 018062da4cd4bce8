"""How far apart images are."""

import torch

from dfkd.types import Images, Labels, Scalar

__all__ = ["within_class_distance"]

MOST = 256  # images that are compared


def within_class_distance(images: Images, labels: Labels, classes: int) -> dict[str, Scalar]:
    """``within_class_distance``: mean root-mean-square pixel distance between different images of the same class.

    In [0, 1]; 0 where all images of a class are equal, though those of different classes may be far apart. Of the first
    256 images; empty where these are no more than there are classes, so that no class need have two.
    """
    flat, labels = images.detach().float().flatten(1)[:MOST], labels[:MOST]
    n = len(flat)
    if n <= classes:
        return {}
    pairs = (labels[:, None] == labels[None, :]) & ~torch.eye(n, dtype=torch.bool, device=flat.device)
    # Without the product trick, whose rounding would hide that images are equal.
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / flat.shape[1] ** 0.5
    return {"within_class_distance": (distance * pairs).sum() / pairs.sum()}
