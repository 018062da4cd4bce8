"""A student that keeps the teacher's classifier (SimKD), also where the two networks' features differ in width."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dfkd.engine.anatomy import Anatomy, survey
from dfkd.errors import UserError
from dfkd.nets.heads import map_projector, vector_projector
from dfkd.nets.tail import last_map
from dfkd.nets.zoo import forget_layers

__all__ = ["check_outputs", "copy_head", "feature_projection", "projection", "share_head", "widen", "widening_of"]

_WIDENED = "_widened_by"  # an attribute of a widened network: the arguments of `widen`


def share_head(teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> nn.Module:
    """Give ``student`` the teacher's classifier, with a projector before it where the widths differ.

    The projector (SimKD's: three convolutions with BatchNorm and ReLU) sits between the student's last feature map
    and its global pooling; in networks whose classifier reads something else than the pooled map it is a linear layer
    with BatchNorm and ReLU before the classifier. It belongs to the student and is deployed with it.

    Args:
        teacher: classifier of ``image_size`` images; left as it is.
        student: changed in place.
        image_size: (c, h, w).

    Returns:
        ``student``.

    Raises:
        UserError: a network without a linear classifier, a student whose classifier computes its weights, or another
            number of classes or of outputs (of two classes a network may have one).
    """
    wider = projection(teacher, student, image_size)
    if wider is not None:
        widen(student, image_size, **wider)
    teacher_head = _linear(teacher, survey(teacher, image_size, None, "teacher"), "teacher")
    student_head = _linear(student, survey(student, image_size, None, "student"), "student")
    copy_head(teacher_head, student_head)
    return student


@torch.no_grad()
def copy_head(teacher_head: nn.Linear, student_head: nn.Linear) -> None:
    """Give ``student_head`` the weights (k, d) of ``teacher_head``, and its bias (k,) where both have one.

    Raises:
        UserError: the student's are computed in each forward pass (weight norm, other parametrizations).
    """
    for name in ("weight", "bias"):
        numbers = getattr(teacher_head, name), getattr(student_head, name)
        if any(part is None for part in numbers):
            continue
        if name not in student_head._parameters:
            raise UserError(
                "share_head needs a student whose classifier has plain parameters, got one that computes its "
                f"{name} in each forward pass (weight norm or the like); take that off its head first, by "
                "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm"
            )
        numbers[1].copy_(numbers[0])


def projection(teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]) -> dict[str, Any] | None:
    """The arguments of :func:`widen` that fit ``student`` to the teacher's classifier; None where it fits already.

    Raises:
        UserError: as for :func:`share_head`.
    """
    old = survey(teacher, image_size, None, "teacher")
    new = survey(student, image_size, old.classes, "student")
    teacher_head, student_head = _linear(teacher, old, "teacher"), _linear(student, new, "student")
    check_outputs(teacher_head, student_head)
    if new.features == old.features and (teacher_head.bias is None) == (student_head.bias is None):
        return None
    look = _look(teacher, teacher_head, image_size)
    return {"features": old.features, "side": look.side, "bias": teacher_head.bias is not None, "relu": look.positive}


def feature_projection(
    teacher: nn.Module, student: nn.Module, image_size: tuple[int, int, int]
) -> dict[str, Any] | None:
    """The arguments of :func:`widen` that make ``student``'s features as wide as the teacher's; its head is its own.

    None where they are so already, or where a network has no linear classifier that can be found.
    """
    old = survey(teacher, image_size, None, "teacher")
    new = survey(student, image_size, old.classes, "student")
    if old.head is None or new.head is None or new.features == old.features:
        return None
    look = _look(teacher, _linear(teacher, old, "teacher"), image_size)
    bias = _linear(student, new, "student").bias is not None
    return {"features": old.features, "side": look.side, "bias": bias, "relu": look.positive}


def check_outputs(teacher_head: nn.Linear, student_head: nn.Linear) -> None:
    """Refuse classifiers that cannot be one: two classes may have two outputs in one network and one in the other.

    Raises:
        UserError: their numbers of outputs differ.
    """
    if student_head.out_features != teacher_head.out_features:
        raise UserError(
            f"share_head needs a student with as many outputs as the teacher, which has {teacher_head.out_features}, "
            f"got {student_head.out_features}; build the student with as many"
        )


def widen(
    student: nn.Module,
    image_size: tuple[int, int, int],
    features: int,
    side: tuple[int, int] | None = None,
    bias: bool = True,
    relu: bool = True,
) -> nn.Module:
    """Put a projector to ``features`` numbers before the student's classifier, which gets new weights; in place.

    From these plain numbers a saved student is built again without its teacher.

    Args:
        student: classifier with a linear head.
        image_size: (c, h, w).
        features: what the classifier reads afterwards.
        side: (h, w) of the teacher's last map; a larger one of the student is averaged down to it.
        bias: of the new classifier.
        relu: features are never negative.
    """
    facts = survey(student, image_size, None, "student")
    head = _linear(student, facts, "student")
    look = _look(student, head, image_size)
    after: list[nn.Module] = [nn.Linear(features, head.out_features, bias)]
    if look.place is not None and look.pooled:
        larger = side is not None and (look.side[0] > side[0] or look.side[1] > side[1])
        projector = map_projector(head.in_features, features, side if larger else None, relu)
        _replace(student, look.place, nn.Sequential(student.get_submodule(look.place), projector))
    elif head.in_features != features:
        after = [*vector_projector(head.in_features, features, relu), *after]
    _replace(student, facts.head or "", nn.Sequential(*after) if len(after) > 1 else after[0])
    forget_layers(student)
    setattr(student, _WIDENED, {"features": features, "side": side, "bias": bias, "relu": relu})
    training = student.training
    return student.to(head.weight.device, head.weight.dtype).train(training)


def widening_of(net: nn.Module) -> dict[str, Any] | None:
    """The arguments with which :func:`widen` changed ``net``; None where it did not.

    They belong beside its weights: who builds the network again from its name has to widen it in the same way.
    """
    return getattr(net, _WIDENED, None)


class _Look(NamedTuple):
    """The last map of a network: which module, its (h, w), does the classifier read its mean, and is that positive?"""

    place: str | None
    side: tuple[int, int]
    pooled: bool
    positive: bool


def _look(net: nn.Module, head: nn.Linear, image_size: tuple[int, int, int]) -> _Look:
    """Run ``net`` once, in eval mode, on a ramp from dark to bright and back; its modes are restored."""
    modes = {module: module.training for module in net.modules()}
    try:
        place = last_map(net.eval(), image_size)
        maps, features = _read_ramp(net, head, place, image_size)
    finally:
        for module, mode in modes.items():
            module.training = mode
    positive = bool((features >= 0).all())
    if maps is None:
        return _Look(None, (0, 0), False, positive)
    mean = maps.mean(dim=(2, 3))
    rounding = max(1e-4, 4 * torch.finfo(maps.dtype).eps)  # of half precision the networks' own
    pooled = mean.shape == features.shape and torch.allclose(mean, features, rtol=rounding, atol=rounding / 10)
    return _Look(place, (maps.shape[2], maps.shape[3]), pooled, positive)


@torch.no_grad()
def _read_ramp(
    net: nn.Module, head: nn.Linear, place: str | None, image_size: tuple[int, int, int]
) -> tuple[Tensor | None, Tensor]:
    """The map (2, c, h, w) that ``place`` makes of a ramp and its negative, and what the head reads (2, d)."""
    maps: list[Tensor] = []
    features: list[Tensor] = []
    handles = [head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].flatten(1)))]
    if place is not None:
        at = net.get_submodule(place)
        handles.append(at.register_forward_hook(lambda module, inputs, output: maps.append(output)))
    try:
        ramp = torch.linspace(-2, 2, image_size[1] * image_size[2], device=head.weight.device).to(head.weight.dtype)
        net(torch.stack([ramp, -ramp]).view(2, 1, *image_size[1:]).expand(2, *image_size).contiguous())
    finally:
        for handle in handles:
            handle.remove()
    return (maps[-1] if maps else None), features[-1]


def _linear(net: nn.Module, facts: Anatomy, role: str) -> nn.Linear:
    layer = None if facts.head is None else net.get_submodule(facts.head)
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"share_head needs a {role} whose classifier is one linear layer, got {facts.kind} without; "
            "choose another network"
        )
    return layer


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)
