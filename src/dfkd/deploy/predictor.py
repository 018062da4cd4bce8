"""A trained predictor with all that a prediction needs: normalisation, image size, class names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dfkd.data._pixels import as_nchw, decode, pixels_of, recolour, resize
from dfkd.errors import UserError
from dfkd.nets.outputs import Output, as_logits
from dfkd.ops.pixels import as_images
from dfkd.types import Images, Logits

__all__ = ["ImagesLike", "LogitsOf", "Predictions", "Predictor", "Program", "batch_of"]

ImagesLike = Any
"""Images to classify: see :meth:`Predictor.predict`."""

TOLERANCE = 1e-3  # of floats in [0, 1]: what resizing may leave


class Predictions(NamedTuple):
    """Class names (n), and the probability of every class (n, k) in label order."""

    names: list[str]
    probabilities: Tensor


class Predictor(nn.Module):
    """A network that takes images in [0, 1]; :meth:`predict` takes pictures of any kind.

    Args:
        net: maps normalised images (n, c, h, w) to logits (n, k), or to what ``outputs`` says; without ``mean`` it
            normalises them itself.
        image_size: (c, h, w) that it was trained on.
        names: of the classes, in label order.
        mean, std: per channel, of pixels in [0, 1].
        outputs: what ``net`` returns; logits are made of it (:func:`dfkd.nets.outputs.as_logits`).
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        image_size: tuple[int, int, int],
        names: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        outputs: Output = "logits",
    ) -> None:
        super().__init__()
        self.net, self.image_size, self.names, self.outputs = net, image_size, tuple(names), outputs
        self.normalises = mean is not None
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(mean or (0.0,), dtype=torch.float32).view(shape), persistent=False)
        self.register_buffer(
            "scale", 1 / torch.tensor(std or (1.0,), dtype=torch.float32).view(shape), persistent=False
        )
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Images (n, c, h, w) in [0, 1] to logits (n, k)."""
        return as_logits(self.net((images - self.mean) * self.scale if self.normalises else images), self.outputs)

    @torch.no_grad()
    def predict(self, images: ImagesLike, batch_size: int = 256) -> Predictions:
        """Classify pictures, in eval mode whatever the mode is; the mode is put back.

        Args:
            images: uint8 (0 to 255) or float ([0, 1]) as a tensor or an array, (n, c, h, w), (n, h, w, c) or without
                n; a PIL image, the path of an image file, or a list of such. Pictures of another size are resized
                (Lanczos; of another shape their middle is taken), gray and colour are converted.
            batch_size: images per forward pass.

        Raises:
            UserError: something that is no image, or floats outside [0, 1].
        """
        batch = batch_of(images, self.image_size)
        device = self.mean.device
        training = self.training
        self.eval()
        try:
            parts = [torch.softmax(self(part.to(device)).float(), dim=1) for part in batch.split(batch_size)]
        finally:
            self.train(training)
        probabilities = torch.cat(parts) if parts else torch.zeros(0, len(self.names), device=device)
        return Predictions([self.names[k] for k in probabilities.argmax(dim=1).tolist()], probabilities)


class LogitsOf(nn.Module):
    """A network whose outputs, whatever they are, become logits; images are normalised outside."""

    def __init__(self, net: nn.Module, outputs: Output) -> None:
        super().__init__()
        self.net, self.outputs = net, outputs

    def forward(self, images: Tensor) -> Logits:
        """Normalised images (n, c, h, w) to logits (n, k)."""
        return as_logits(self.net(images), self.outputs)


class Program(nn.Module):
    """The module of an exported program, which knows no modes: it is what it was when it was exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Images) -> Any:
        """Images (n, c, h, w) in [0, 1] to what the network itself returns."""
        return self.module(images)

    def train(self, mode: bool = True) -> "Program":
        """Nothing to switch: exported modules refuse it."""
        self.training = mode
        return self


def batch_of(images: ImagesLike, image_size: tuple[int, int, int]) -> Images:
    """Images of any kind that :meth:`Predictor.predict` takes as one batch (n, c, h, w) in [0, 1].

    Raises:
        UserError: something that is no image, or floats outside [0, 1].
    """
    if isinstance(images, str | Path | Image.Image):
        images = [images]
    if isinstance(images, list | tuple) and not images:
        return torch.zeros(0, *image_size)
    if isinstance(images, list | tuple) and all(isinstance(image, str | Path | Image.Image) for image in images):
        return as_images(torch.from_numpy(np.stack([_picture(image, image_size) for image in images])))
    try:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"predict needs pictures, tensors or arrays, got {type(images).__name__}; give one kind in a list"
        ) from error
    return _as_images(array, image_size)


def _picture(image: str | Path | Image.Image, image_size: tuple[int, int, int]) -> Any:
    channels, height, width = image_size
    if channels not in (1, 3):
        raise UserError(f"predict needs 1 or 3 channels to read pictures, got a network of {channels}; give tensors")
    if isinstance(image, Image.Image):
        return pixels_of(image, channels, (height, width))
    return decode(Path(image), channels, (height, width))


def _as_images(array: Any, image_size: tuple[int, int, int]) -> Images:
    """An array of numbers as images; floats keep their values where the size is right."""
    if array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype != np.uint8):
        raise UserError(f"predict needs uint8 images, or floats in [0, 1], got {array.dtype}; convert them")
    shape = array.shape
    if array.ndim == 3 and (array.shape == image_size or array.shape[2] in (1, 3) or array.shape[0] in (1, 3)):
        array = array[None]  # one image; a stack of gray ones has neither
    if array.ndim not in (3, 4):
        raise UserError(f"predict needs images (n, c, h, w), got shape {shape}; reshape them")
    if array.dtype.kind == "f":
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
            raise UserError(
                f"predict needs floats in [0, 1], got {low:.3g} to {high:.3g}; give pixels that are not normalised, "
                "or uint8"
            )
        if array.shape[1:] == image_size:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).clamp(0, 1)
        array = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    if array.shape[1:] != image_size:
        array = resize(recolour(as_nchw(array, "predict"), image_size[0], "predict"), *image_size[1:])
    return as_images(torch.from_numpy(np.ascontiguousarray(array)))
