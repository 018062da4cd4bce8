"""Where a network looks: activation maps, their comparison, and plain feature matching.

Spaceship-Net asks the student to look where the teacher looks: it must reproduce the teacher's class
activation maps at several depths (mSARC). Two kinds of map are used, as in the authors' code: classic CAM at
the last convolutional map, for every class, and Grad-CAM at the outputs of the stages, for one class per
image. Neither is rectified, resized or normalised before it is compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dfkd.types import Features, Labels, Logits, Maps, Scalar

StageMap = Float[Tensor, "n h w"]


class Regions(NamedTuple):
    """What mSARC compares: CAM of every class at the last map, and one Grad-CAM per stage (any sizes)."""

    classes: Tensor
    stages: tuple[Tensor, ...]


class CamDifference(NamedTuple):
    """Mean absolute and mean squared difference of activation maps, in grey levels (0..255)."""

    mae: Scalar
    mse: Scalar


def class_activation_maps(
    maps: Float[Tensor, "n c h w"], head_weight: Float[Tensor, "k c"]
) -> Float[Tensor, "n k h w"]:
    """CAM of every class: ``sum_c weight[k, c] * maps[n, c]``, the bias ignored, the weight a constant.

    ``maps`` is the tensor that global pooling sees, ``head_weight`` the weight of the linear head behind it.
    """
    weight = head_weight.detach()
    maps = maps.to(weight.dtype)
    if maps.is_contiguous(memory_format=torch.channels_last):  # the gradient then has the map's own format
        return (_rows(maps) @ weight.T).unflatten(1, maps.shape[2:]).permute(0, 3, 1, 2)
    return torch.einsum("kc,nchw->nkhw", weight, maps)


def grad_cams(
    logits: Logits, maps: Sequence[Tensor], classes: Labels, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Grad-CAM of one class per image at several maps, from one backward pass.

    ``maps`` are tensors (n, c_i, h_i, w_i) that ``logits`` was computed from, in a graph that is still alive
    (it stays alive). The weight of a channel is the spatial mean of the gradient of the image's logit
    ``classes[n]``; it is a constant unless ``create_graph`` asks for the second-order term as well, so the
    gradient of the result reaches the maps only. No rectification, scaling or resizing. Returns one
    (n, h_i, w_i) per map.

    The call differentiates, so ``torch.compile`` breaks the graph here unless
    ``torch._dynamo.config.trace_autograd_ops`` is set. Under BatchNorm in training mode the images of a batch
    depend on each other and the gradient is that of the sum of their logits.
    """
    chosen_logits = logits.gather(1, classes.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(chosen_logits, tuple(maps), retain_graph=True, create_graph=create_graph)
    return tuple(_weigh_channels(map_, gradient) for map_, gradient in zip(maps, gradients, strict=True))


def grad_cam(logits: Logits, maps: Maps, classes: Labels, create_graph: bool = False) -> StageMap:
    """Grad-CAM of one class per image at one map; see :func:`grad_cams`."""
    return grad_cams(logits, (maps,), classes, create_graph)[0]


def regions(
    logits: Float[Tensor, "n k"],
    last: Float[Tensor, "n c h w"],
    head_weight: Float[Tensor, "k c"],
    stages: Sequence[Tensor],
    classes: Labels,
) -> Regions:
    """Everything mSARC compares, of one network.

    ``classes`` is the teacher's argmax, for teacher and student alike. ``stages`` must belong to the graph of
    ``logits``; where there are none, no graph is needed.
    """
    cams = grad_cams(logits, stages, classes) if stages else ()
    return Regions(class_activation_maps(last, head_weight), cams)


def region_consistency(student_cams: Float[Tensor, "*maps"], teacher_cams: Float[Tensor, "*maps"]) -> Scalar:
    """Mean squared difference of activation maps of the same shape; the teacher's are constants."""
    return (student_cams - teacher_cams.detach()).square().mean()


def msarc(student: Regions, teacher: Regions, cam_weight: float = 1.0, stage_weight: float = 1.0) -> Scalar:
    """Multi-scale spatial activation region consistency (Spaceship-Net, equation 1, as coded).

    ``cam_weight`` times the consistency of the class maps plus ``stage_weight`` times the *sum* over stages
    of theirs; each consistency is a mean over all its elements. Student and teacher must have as many stages,
    of the same spatial sizes; channel counts may differ.
    """
    loss = cam_weight * region_consistency(student.classes, teacher.classes)
    for student_map, teacher_map in zip(student.stages, teacher.stages, strict=True):
        loss = loss + stage_weight * region_consistency(student_map, teacher_map)
    return loss


def attention_transfer(student_maps: Float[Tensor, "n s h w"], teacher_maps: Float[Tensor, "n t h w"]) -> Scalar:
    """Attention transfer of one block (Zagoruyko and Komodakis; ZSKT): mean squared difference of attentions.

    An attention is the mean over channels of the squared map, flattened and scaled to unit length. Channel
    counts may differ. The teacher's is a constant. Callers sum over blocks.
    """
    return (_attention(student_maps) - _attention(teacher_maps).detach()).square().mean()


def fitnets(student_feat: Float[Tensor, "*shape"], teacher_feat: Float[Tensor, "*shape"]) -> Scalar:
    """Mean squared difference of features of one shape (FitNets); a regressor, if any, is the caller's."""
    return F.mse_loss(student_feat, teacher_feat.detach())


def cam_difference(student_cam: Float[Tensor, "n h w"], teacher_cam: Float[Tensor, "n h w"]) -> CamDifference:
    """How far apart two networks look, on maps stretched per image to 0..255 (a constant map becomes 0)."""
    difference = _stretch(student_cam) - _stretch(teacher_cam)
    return CamDifference(difference.abs().mean(), difference.square().mean())


def _weigh_channels(maps: Maps, gradient: Maps) -> StageMap:
    """Sum of the channels, each weighted by the spatial mean of its gradient; in float32 at least."""
    if maps.dtype in (torch.bfloat16, torch.float16):
        maps, gradient = maps.float(), gradient.float()
    weight = gradient.mean(dim=(2, 3))
    if maps.is_contiguous(memory_format=torch.channels_last):
        return torch.bmm(_rows(maps), weight.unsqueeze(2)).squeeze(2).unflatten(1, maps.shape[2:])
    return torch.einsum("nc,nchw->nhw", weight, maps)


def _rows(maps: Maps) -> Float[Tensor, "n hw c"]:
    """A channels-last map as one row of channels per place, without a copy."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _attention(maps: Maps) -> Features:
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)


def _stretch(cam: StageMap) -> StageMap:
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
    span = high - low
    return 255 * (cam - low) / torch.where(span > 0, span, torch.ones_like(span))
