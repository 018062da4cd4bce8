"""A network as methods see it: images in [0, 1] go in, a :class:`~dfkd.types.Readout` comes out.

The probe is the only place that normalises, hooks, or knows precision. Its hooks are inert unless a forward pass
asks for what they read: always-on statistics cost a third of a forward pass.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.engine.joint import joint_moments, separate
from dfkd.errors import UserError
from dfkd.nets.outputs import Output, as_logits, class_rows
from dfkd.ops.moments import moments
from dfkd.types import Images, Moments, Readout

__all__ = ["Probe", "check_normalisation", "pools_last_map", "tracking_norms"]


class Probe(nn.Module):
    """Wrap ``net`` so that one forward pass returns logits, features, stage maps and BN statistics.

    Args:
        net: any classifier that maps (n, c, h, w) to logits (n, k). It is used as it is, not copied.
        mean, std: per channel, of the pixels in [0, 1] that ``net`` was trained on.
        head: dotted name of the final ``nn.Linear``, or None where there is none (then ``features`` are the logits).
        stages: dotted names of the modules whose outputs are stage maps, shallow to deep.
        norms: dotted names of the BatchNorm layers to read; None: all that keep running statistics. Layers that a
            forward pass never reaches may be among them, but a loss on statistics then has fewer terms.
        precision: ``"fp32"`` or ``"bf16"`` (autocast; statistics, logits and features stay float32).
        channels_last: run convolutions in the channels-last memory format.
        joint: BatchNorm statistics are those of all processes' batches together (``Runtime.joint``).
        outputs: what ``net`` returns; logits are made of it (:func:`dfkd.nets.outputs.as_logits`).

    Raises:
        UserError: a std that is not positive, mean and std of different lengths, or a name ``net`` does not have.

    Attributes:
        norms: the BatchNorm layers that are read, in no particular order: ``Readout`` pairs what a layer saw with what
            the same layer stored, call by call.
        passes_gradients: gradients of the logits reach the images; where a network was tried and they do not, False.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        head: str | None = None,
        stages: Sequence[str] = (),
        norms: Sequence[str] | None = None,
        precision: str = "fp32",
        channels_last: bool = True,
        joint: bool = False,
        outputs: Output = "logits",
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.net = _lay_out_channels_last(net) if channels_last else net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.precision, self.channels_last, self.outputs = precision, channels_last, outputs
        self.passes_gradients = True
        self._moments = joint_moments if joint else moments
        self.head_name, self.stage_names = head, tuple(stages)
        layers = tracking_norms(net).values() if norms is None else [_submodule(net, name) for name in norms]
        self.norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
        self._reading = self._want_stats = self._want_maps = self._want_means = False
        self._features: list[Tensor] = []
        self._maps: list[Tensor] = []
        self._stats: list[Moments] = []
        self._stored: list[Moments] = []
        self._means: list[Tensor] = []
        self._handles = self._hook()

    @property
    def head(self) -> nn.Linear | None:
        """The classifier layer."""
        module = None if self.head_name is None else _submodule(self.net, self.head_name)
        return module if isinstance(module, nn.Linear) else None

    @property
    def class_weights(self) -> Tensor | None:
        """The weights of the classifier layer, one row for each class (k, d)."""
        return None if self.head is None else class_rows(self.head.weight)

    def normalise(self, images: Images) -> Tensor:
        """Images in [0, 1] as the network expects them."""
        x = (images - self.mean.to(images.dtype)) * self.scale.to(images.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def denormalise(self, x: Tensor) -> Images:
        """The inverse of :meth:`normalise`; values may leave [0, 1]."""
        return x / self.scale.to(x.dtype) + self.mean.to(x.dtype)

    def forward(self, images: Images, stats: bool = False, maps: bool = False, means: bool = False) -> Readout:
        """Read the network on images in [0, 1].

        ``stats`` also returns, for every call of a BatchNorm layer, the moments of its input beside those that the
        layer stored, in the order of the calls; ``maps`` the outputs of the stages; ``means`` the spatial means of
        every such input, image by image.
        """
        return self.read_normalised(self.normalise(images), stats=stats, maps=maps, means=means)

    def read_normalised(self, x: Tensor, stats: bool = False, maps: bool = False, means: bool = False) -> Readout:
        """:meth:`forward` for methods whose paper works in normalised space."""
        self._reading, self._want_stats, self._want_maps, self._want_means = True, stats, maps, means
        self._features, self._maps, self._stats, self._stored, self._means = [], [], [], [], []
        if self.precision == "bf16":
            with torch.autocast(x.device.type, dtype=torch.bfloat16):
                logits = as_logits(self.net(x), self.outputs).float()
        else:
            logits = as_logits(self.net(x), self.outputs)
        features = self._features[-1].float() if self._features else logits
        readings = tuple(self._maps), tuple(self._stats), tuple(self._stored), tuple(self._means)
        out = Readout(logits, features, *readings)
        self._reading = self._want_stats = self._want_maps = self._want_means = False
        self._features, self._maps, self._stats, self._stored, self._means = [], [], [], [], []
        return out

    def freeze(self) -> "Probe":
        """Eval mode, no parameter asks for gradients."""
        self.eval()
        return self.requires_grad_(False)

    def release(self) -> nn.Module:
        """Take the hooks off and return the bare network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return separate(self.net)

    def _hook(self) -> list[Any]:
        def read_features(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            if self._reading:  # another probe may run the same network
                self._features.append(_first(inputs, keywords).flatten(1))

        def read_stats(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            if self._want_stats:
                self._stats.append(self._moments(_first(inputs, keywords)))
                self._stored.append(Moments(module.running_mean, module.running_var))  # type: ignore[arg-type]
            if self._want_means:
                x = _first(inputs, keywords)
                self._means.append(x.float().flatten(2).mean(dim=2) if x.dim() > 2 else x.float())

        def read_map(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._want_maps:
                self._maps.append(output)

        handles: list[Any] = [norm.register_forward_pre_hook(read_stats, with_kwargs=True) for norm in self.norms]
        if self.head_name is not None:
            head = _submodule(self.net, self.head_name)
            handles.append(head.register_forward_pre_hook(read_features, with_kwargs=True))
        handles += [_submodule(self.net, name).register_forward_hook(read_map) for name in self.stage_names]
        return handles


def _lay_out_channels_last(net: nn.Module) -> nn.Module:
    """``net`` with its tensors of four dimensions in channels-last; ``Module.to`` fails on those of five (3-D layers).

    Like it, parameters stay the same objects, and whatever a module overrides of ``_apply`` is heard.
    """
    return net._apply(lambda t: t.to(memory_format=torch.channels_last) if t.dim() == 4 else t)


def tracking_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Every BatchNorm layer of ``net`` that keeps running statistics, by its path, in the order of registration."""
    norms = {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    return {name: norm for name, norm in norms.items() if norm.running_mean is not None}


def _first(inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> Tensor:
    """A layer's input, however it was passed."""
    return inputs[0] if inputs else next(iter(keywords.values()))


def _submodule(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError:
        have = ", ".join(child for child, _ in net.named_children())
        raise UserError(
            f"{type(net).__name__} needs a layer named by its path, got {name!r}; its top-level layers are: {have}"
        ) from None


def pools_last_map(out: Readout) -> bool:
    """Are the features the means of the last map, so that the head's weights are those of its CAM?

    Ask it of a reading in eval mode, of images that are not of one colour. bfloat16 rounds the two differently.
    """
    means = out.maps[-1].float().mean((2, 3)) if out.maps else None
    return (
        means is not None
        and means.shape == out.features.shape
        and torch.allclose(means, out.features, rtol=0.05, atol=1e-3)
    )


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse means and stds that no images can be normalised by.

    Raises:
        UserError: their numbers differ, a mean is no pixel in [0, 1], or a std is not positive and finite.
    """
    if len(mean) != len(std):
        raise UserError(
            f"normalisation needs as many stds as means, got {len(mean)} means and {len(std)} stds; give one per "
            "channel"
        )
    if not all(0 < value < math.inf for value in std):
        raise UserError(
            f"normalisation needs every std above 0 and finite, got std={tuple(std)}; use the teacher's training values"
        )
    if not all(0 <= value <= 1 for value in mean):
        raise UserError(
            f"normalisation needs every mean in [0, 1], got mean={tuple(mean)}; of pixels from 0 to 255, divide means "
            "and stds by 255"
        )
