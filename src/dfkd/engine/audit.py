"""How much synthetic images, and the student, say about the private images the teacher was trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dfkd.data.rows import Rows
from dfkd.engine.probe import Probe
from dfkd.errors import UserError
from dfkd.ops.intervals import auc_interval
from dfkd.ops.nearest import Nearest, nearest_rows
from dfkd.ops.pixels import as_images
from dfkd.types import Bytes

__all__ = ["Attack", "Audit", "Distances", "attack_of", "audit_images"]

NEIGHBOURS = 50  # of the local scale, as in Carlini et al. (2023)
BLOCK = 1024  # images at a time
RowsOf = Callable[[Bytes], Tensor]

SAME = 1e-4  # root mean square of pixels in [0, 1]: far less than one grey level in one pixel


class Attack(NamedTuple):
    """Telling images the teacher was trained on from others by a score: larger means a member.

    Attributes:
        auc: area under the ROC curve; 0.5 is guessing.
        low, high: its 95 % interval (Hanley and McNeil).
        caught: share of members found when 1 % of the others are taken for members.
        members, others: images scored.
    """

    auc: float
    low: float
    high: float
    caught: float
    members: int
    others: int


@dataclass(frozen=True)
class Distances:
    """Distances in one space: root mean squares of pixels, or Euclidean ones of feature vectors of length 1.

    ``ratio`` is the nearest distance over the mean of the ``NEIGHBOURS`` nearest: 1 for an image that is near to
    all of a region, close to 0 for a copy. A smooth image is near to everything in pixels, but no copy.

    Attributes:
        nearest, row, ratio: of every synthetic image (n,): distance and number of the nearest private image.
        reference, reference_ratio: the same of held-out images (m,), or of private ones to the other private ones.
        members, others: distance of private (n',) and of held-out images (m,) to the nearest synthetic one.
    """

    nearest: Tensor
    row: Tensor
    ratio: Tensor
    reference: Tensor
    reference_ratio: Tensor
    members: Tensor
    others: Tensor


@dataclass(frozen=True)
class Audit:
    """What :func:`audit_images` found.

    Attributes:
        images: synthetic images.
        private: private images searched.
        heldout: held-out images compared with them; 0: none were given, and private images stand in one by one.
        copies: held-out images left out because they are among the private ones.
        spaces: distances in ``pixels`` and in the teacher's ``features``.
        attacks: what tells members from others, by the distance to the nearest synthetic image (``pixels``,
            ``features``) and by the confidence of ``teacher`` and ``student``; empty without held-out images.
    """

    images: int
    private: int
    heldout: int
    copies: int
    spaces: Mapping[str, Distances]
    attacks: Mapping[str, Attack]


def audit_images(
    teacher: Probe,
    images: Bytes,
    private: Rows,
    heldout: Rows | None,
    count: int,
    generator: torch.Generator,
    student: Probe | None = None,
) -> Audit:
    """Compare synthetic images with private ones, in pixels and in the teacher's features.

    Args:
        teacher: frozen; its features are those before the classifier, or its logits where that was not found.
        images: uint8 (n, c, h, w), synthetic.
        private: what the teacher was trained on, all of it or a part; images of the same shape.
        heldout: images of the same kind that it was not trained on; None: each private image is held out in turn.
        count: most images of each kind that ask for their nearest; chosen at random where there are more.
        generator: for that choice, on the CPU.
        student: its confidence is tried as a score too.

    Raises:
        UserError: fewer than two private images, or held-out images that are all among the private ones.
    """
    if len(private) < 2 or not len(images):
        raise UserError(
            f"audit needs a synthetic image and two private ones at least, got {len(images)} and {len(private)}; "
            "give more"
        )
    device = teacher.mean.device
    synthetic = images[_some(len(images), count, generator)]
    sample = _some(len(private), count, generator)
    members = private.take(sample)
    strangers = members[:0] if heldout is None else heldout.take(_some(len(heldout), count, generator))
    unseen = _without_copies(strangers, private, device) if len(strangers) else torch.zeros(0, dtype=torch.bool)
    if len(strangers) and not bool(unseen.any()):
        raise UserError(
            f"audit needs held-out images that are not among the private ones, got {len(strangers)} copies; give others"
        )
    strangers, copies = strangers[unseen], int((~unseen).sum())
    spaces = {}
    ways: Mapping[str, RowsOf] = {"pixels": _pixel_rows, "features": partial(_feature_rows, teacher)}
    for name, rows_of in ways.items():
        synthetic_rows, member_rows, stranger_rows = (
            rows_of(part.to(device)) for part in (synthetic, members, strangers)
        )
        spaces[name] = _distances(synthetic_rows, member_rows, stranger_rows, private, rows_of, sample.to(device))
    attacks = {}
    if len(strangers):
        attacks = {name: attack_of(-space.members, -space.others) for name, space in spaces.items()}
        for name, net in (("teacher", teacher), ("student", student)):
            if net is not None:
                attacks[name] = attack_of(_confidence(net, members), _confidence(net, strangers))
    return Audit(len(synthetic), len(private), len(strangers), copies, spaces, attacks)


def attack_of(members: Tensor, others: Tensor) -> Attack:
    """How well a score tells members from others: larger scores (n,) and (m,) are taken for members."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = torch.cat([torch.ones(len(members)), torch.zeros(len(others))]).numpy()
    scores = torch.cat([members, others]).double().cpu().numpy()
    auc = float(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    low, high = auc_interval(auc, len(members), len(others))
    return Attack(auc, low, high, float(true[false <= 0.01].max()), len(members), len(others))


def _distances(
    synthetic: Tensor, members: Tensor, others: Tensor, private: Rows, rows_of: RowsOf, own: Tensor
) -> Distances:
    """All distances in the space that ``rows_of`` maps images to; the first three are in it already.

    ``own`` are the row numbers of ``members``. The private images are gone through once.
    """
    device, n = synthetic.device, len(synthetic)
    beside, itself = (others, torch.full((len(others),), -1, device=device)) if len(others) else (members, own)
    queries = torch.cat([synthetic, beside])
    excluded = torch.cat([torch.full((n,), -1, device=device), itself])
    blocks = ((start, rows_of(part.to(device))) for start, part in private.blocks(BLOCK))
    nearest = nearest_rows(queries, blocks, NEIGHBOURS, excluded)
    closest, ratio = nearest.distances[:, 0].cpu(), _ratio(nearest).cpu()
    back = [nearest_rows(part, [(0, synthetic)], 1).distances.flatten().cpu() for part in (members, others)]
    return Distances(closest[:n], nearest.rows[:n, 0].cpu(), ratio[:n], closest[n:], ratio[n:], back[0], back[1])


def _ratio(nearest: Nearest) -> Tensor:
    finite = nearest.distances.where(nearest.distances.isfinite(), torch.nan)  # its own row, where there are few
    return nearest.distances[:, 0] / finite.nanmean(dim=1).clamp(min=1e-12)


def _some(n: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:most].sort().values


def _without_copies(images: Bytes, private: Rows, device: torch.device) -> Tensor:
    """Which images (m,) have no copy among the private ones."""
    blocks = ((start, _pixel_rows(part.to(device))) for start, part in private.blocks(BLOCK))
    return (nearest_rows(_pixel_rows(images.to(device)), blocks, 1).distances[:, 0] > SAME).cpu()


def _pixel_rows(images: Bytes) -> Tensor:
    """One row an image; Euclidean distances of rows are root mean squares of pixels in [0, 1]."""
    x = as_images(images).flatten(1).double()
    return x / x.shape[1] ** 0.5


@torch.no_grad()
def _feature_rows(probe: Probe, images: Bytes) -> Tensor:
    """Features as rows of length 1."""
    parts = [probe(as_images(part)).features.double() for part in images.split(BLOCK)]
    rows = torch.cat(parts) if parts else torch.zeros(0, 1, dtype=torch.float64, device=images.device)
    return torch.nn.functional.normalize(rows, dim=1)


@torch.no_grad()
def _confidence(probe: Probe, images: Bytes) -> Tensor:
    """The largest class probability of every image, as log odds: they still differ where probabilities round to 1."""
    device = probe.mean.device
    logits = torch.cat([probe(as_images(part.to(device))).logits for part in images.split(BLOCK)]).double()
    log_p = torch.log_softmax(logits, dim=1)
    top = log_p.argmax(dim=1, keepdim=True)
    remainder = log_p.scatter(1, top, -torch.inf).logsumexp(dim=1)
    return (log_p.gather(1, top)[:, 0] - remainder).cpu()
