"""Where teacher and student look: Spaceship-Net's comparison of activation maps, in numbers and as a picture."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dfkd.engine.core import Task
from dfkd.engine.probe import Probe, pools_last_map
from dfkd.errors import UserError
from dfkd.losses.regions import Regions, cam_difference, class_activation_maps, grad_cams
from dfkd.ops.pixels import as_images
from dfkd.report.grid import magnification
from dfkd.types import Bytes, Labels

__all__ = ["activation_regions", "cam_picture", "cam_report", "save_cams"]


def activation_regions(probe: Probe, images: Tensor, classes: Labels) -> Regions:
    """CAM of the given class of every image at the last map, and its Grad-CAM at every stage; detached, in eval mode.

    Args:
        probe: a network with a linear head behind global pooling, and stages.
        images: in [0, 1], (n, c, h, w).
        classes: (n,).

    Raises:
        UserError: no linear head, no stages, or a last map that is not what the head pools.
    """
    weights, mode = probe.class_weights, probe.training
    probe.eval()
    with torch.enable_grad():
        out = probe(images.detach().clone().requires_grad_(True), maps=True)
        if weights is None or not pools_last_map(out):
            raise UserError(
                f"{type(probe.net).__name__} needs stages and a linear head behind global pooling for activation maps, "
                "got a network without; name them when the task is built"
            )
        stages = tuple(cam.detach() for cam in grad_cams(out.logits, out.maps, classes))
    probe.train(mode)
    every = class_activation_maps(out.maps[-1].detach(), weights)
    return Regions(every[torch.arange(len(classes), device=every.device), classes], stages)


def cam_report(task: Task, images: Bytes, batch_size: int = 256) -> dict[str, float]:
    """How differently teacher and student look at images: mean absolute and mean squared difference, in grey levels.

    Maps are those of the teacher's class, stretched per image to 0..255 as in Spaceship-Net's analysis. ``mae`` and
    ``mse`` compare CAMs at the last map; ``stage0/mae`` and so on compare Grad-CAMs.

    Args:
        task: teacher and student, with stages of equal sizes.
        images: uint8 (n, c, h, w).
        batch_size: images at a time.
    """
    sums: dict[str, Tensor] = {}
    for part in images.split(batch_size):
        teacher_regions, student_regions = _regions_of_pair(task, as_images(part.to(task.runtime.device)))
        pairs = {"": (student_regions.classes, teacher_regions.classes)}
        for i, (a, b) in enumerate(zip(student_regions.stages, teacher_regions.stages, strict=True)):
            pairs[f"stage{i}/"] = (a, b)
        for name, (a, b) in pairs.items():
            for kind, value in cam_difference(a, b)._asdict().items():
                sums[name + kind] = sums.get(name + kind, torch.zeros_like(value)) + value * len(part)
    return {name: float(value) / len(images) for name, value in sums.items()}


def save_cams(task: Task, images: Bytes, path: Path, tile: int = 48) -> None:
    """Write :func:`cam_picture` to ``path``, a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cam_picture(task, images, tile).save(path)


def cam_picture(task: Task, images: Bytes, tile: int = 48, gap: int = 0) -> Image.Image:
    """A picture of three rows: images, the teacher's CAM, the student's CAM, red where a network looks.

    Args:
        task: teacher and student.
        images: uint8 (n, c, h, w), one column each.
        tile: images are enlarged by a whole factor to at least so many pixels.
        gap: transparent pixels to the right of every image and below it.
    """
    teacher_regions, student_regions = _regions_of_pair(task, as_images(images.to(task.runtime.device)))
    factor = magnification(images.shape[2], images.shape[3], tile)
    rgb = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    large = rgb.cpu().repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    gray = large.float().mean(dim=1)
    rows = [
        large.permute(0, 2, 3, 1),
        *(_heat(cam.cpu(), gray) for cam in (teacher_regions.classes, student_regions.classes)),
    ]
    tiles = torch.stack(rows)  # (row, image, height, width, colour)
    solid = torch.cat([tiles, torch.full_like(tiles[..., :1], 255)], dim=-1)
    spaced = torch.nn.functional.pad(solid, (0, 0, 0, gap, 0, gap))
    sheet = torch.cat([torch.cat(list(row), dim=1) for row in spaced])
    return Image.fromarray(sheet.numpy())


def _regions_of_pair(task: Task, x: Tensor) -> tuple[Regions, Regions]:
    """Teacher's and student's maps, of the class the teacher chooses."""
    mode = task.teacher.training
    with torch.no_grad():
        classes = task.teacher.eval()(x).logits.argmax(dim=1)
    task.teacher.train(mode)
    return activation_regions(task.teacher, x, classes), activation_regions(task.student, x, classes)


def _heat(cam: Tensor, gray: Tensor) -> Tensor:
    """Maps (n, h', w') over grey images (n, h, w): enlarged, stretched per image, blue (low) to red (high)."""
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
    share = (cam - low) / (high - low).clamp(min=1e-12)
    share = torch.nn.functional.interpolate(share[:, None], gray.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    colour = torch.stack([share, 1 - (2 * share - 1).abs(), 1 - share], dim=-1) * 255
    return (0.4 * gray[..., None] + 0.6 * colour).round().to(torch.uint8)
