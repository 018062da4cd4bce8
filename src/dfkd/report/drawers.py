"""What the figures show that every method has (the table at the end), and how views of a method become figures."""

import colorsys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dfkd.data.overlap import BITS
from dfkd.engine.core import Task
from dfkd.engine.views import Bars, Cloud, Curves, Grid, View, affordable
from dfkd.errors import UserError
from dfkd.ops.pixels import as_images
from dfkd.report.cams import cam_picture, cam_report
from dfkd.report.canvas import TONES, Format
from dfkd.report.curves import Panel, bars, chart
from dfkd.report.gallery import Figure
from dfkd.report.grid import image_grid, layout, with_names
from dfkd.report.scatter import tsne_figure
from dfkd.report.scene import Examples, Scene
from dfkd.report.sheets import png
from dfkd.report.summary import overlap_sentence
from dfkd.types import Bytes, Labels

__all__ = ["DRAWERS", "class_sheet", "drawn_view"]

FAINT = TONES[2]  # of a group that lies behind the others


def class_sheet(examples: Examples, names: Sequence[str]) -> Figure:
    """Images class by class: one named row a class, of many classes every so many-th, the first images of each."""
    images, labels = examples
    if not len(images):
        raise UserError("the sheet of images needs some, got none; let the run finish a round first")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    sheet_layout = layout(shape, len(names))
    picture = with_names(
        image_grid(images, labels, sheet_layout.columns, sheet_layout.classes), [names[k] for k in sheet_layout.classes]
    )
    share = torch.bincount(labels, minlength=len(names)).float() / len(labels)
    return Figure(
        "classes",
        "Images that the student learnt from, one row per class, the newest first.",
        png(picture),
        f"A sheet of {len(sheet_layout.classes)} rows of small images, each row one class",
        {
            "images": float(len(labels)),
            "classes that occur": float((share > 0).sum()),
            "class entropy (nats)": float(-(share * (share + 1e-12).log()).sum()),
        },
    )


def _classes(scene: Scene) -> Figure | None:
    return class_sheet(scene.shown, scene.task.class_names) if scene.state is not None else None


def _attention(scene: Scene) -> Figure | None:
    """Where both networks look, and how much that differs."""
    images, labels = scene.shown
    if not len(images):
        return None
    columns = one_of_each(labels, 10)
    sampled = images[columns]
    picture = cam_picture(scene.task, sampled, tile=64, gap=2)
    shape = scene.task.image_shape
    most, part = affordable(shape, 12_000_000, 32, 256), affordable(shape, 1_000_000, 4, 128)
    image_groups = {"": images[:most]}
    caption = f"on {len(images[:most])} images that the student learnt from"
    if scene.test is not None:
        image_groups["test/"] = scene.test[0][:most]
        caption += f" and on {len(image_groups['test/'])} test images"
    scores = {
        role + name: value
        for role, x in image_groups.items()
        for name, value in cam_report(scene.task, x, part).items()
    }
    guess = scene.task.teacher.eval()(as_images(sampled.to(scene.task.runtime.device))).logits.argmax(dim=1).tolist()
    picture_with_names = with_names(
        picture, ["image", "teacher", "student"], [scene.task.class_names[k] for k in guess]
    )
    return Figure(
        "attention",
        "Where teacher and student look: activation maps of the class that the teacher chooses, red where they are "
        f"high. Mean absolute and squared differences, of 255 grey levels, {caption}.",
        png(picture_with_names),
        f"{len(sampled)} images, below each the teacher's and the student's activation map as a heat map",
        dict(sorted(scores.items(), key=lambda row: "stage" in row[0])),  # those of the last map first
    )


def _duplicates(scene: Scene) -> Figure | None:
    """The web images that resemble an evaluation image most."""
    duplicates, web = scene.overlap, scene.task.web
    if duplicates is None or not duplicates.pairs:
        return None
    if web is None or scene.test is None or (duplicates.web, duplicates.images) != (len(web), len(scene.test[0])):
        raise UserError(
            "the pairs of evaluation and web images need the images that were compared, got others or none; "
            "give the run's web and test images"
        )
    rows, places = [pair.web for pair in duplicates.pairs], [pair.image for pair in duplicates.pairs]
    images = torch.cat([scene.test[0][places].cpu(), web.take(torch.tensor(rows)).cpu()])
    picture = image_grid(images, torch.arange(2).repeat_interleave(len(rows)), len(rows), tile=64)
    return Figure(
        "near-duplicates",
        f"The web images that are most like an evaluation image, each below it; above, in how many of {BITS} bits "
        "their difference hashes differ, and the correlation of their pixels. "
        f"{overlap_sentence(duplicates).capitalize()}.",
        png(
            with_names(
                picture, ["evaluation", "web"], [f"{pair.bits}, {pair.correlation:.2f}" for pair in duplicates.pairs]
            )
        ),
        f"{len(rows)} evaluation images, below each the web image that resembles it most",
        {
            "found": float(duplicates.found),
            "alike": float(duplicates.alike),
            "fewest bits": float(min(pair.bits for pair in duplicates.pairs)),
            "highest correlation": max(pair.correlation for pair in duplicates.pairs),
        },
    )


def _features(scene: Scene) -> Figure | None:
    """The teacher's features of what the student learnt from, beside those of real images."""
    task, most = scene.task, affordable(scene.task.image_shape, 6_000_000, 60, 300)
    if not len(scene.shown[0]):
        return None
    if scene.test is None:
        raise UserError("the picture of features needs real images, got no test images; give test (--data.test)")
    real = scene.test[0]
    pick = torch.randperm(len(real), generator=torch.Generator().manual_seed(scene.seed))[:most]
    groups = {
        "the student's images": features(task, scene.shown[0][:most]),
        "real images": features(task, real[pick]),
    }
    return drawn_view(
        "features",
        Cloud(
            "The teacher's features of images that the student learnt from and of real test images, by t-SNE.",
            f"Points in two dimensions, one colour each: {', '.join(groups)}",
            groups,
        ),
        scene.form,
    )


def drawn_view(name: str, view: View, form: Format) -> Figure:
    """A view of a method as a picture."""
    match view:
        case Grid():
            lines = range(int(view.rows.max()) + 1)
            data = png(with_names(image_grid(view.images, view.rows, view.columns, lines), view.names))
        case Bars():
            data = bars(view.heights, view.unit, form)
        case Curves():
            panel = Panel("", view.lines, view.across, view.levels, whole=False)
            data = chart([panel], form, (4.4, 3.2))
        case Cloud():
            bright = iter(_bright_tones(len(view.groups)))
            tones = [FAINT if group == view.backdrop else next(bright) for group in view.groups]
            data = tsne_figure(view.groups, tones=tones, form=form)
        case _:
            raise TypeError(f"no picture is known of a {type(view).__name__}")
    return Figure(name, view.caption, data, view.alt, view.numbers)


def _bright_tones(count: int) -> list[str]:
    """As many colours as there are groups: the page's own where they suffice, else evenly spaced hues."""
    tones = [tone for tone in TONES if tone != FAINT]
    if count <= len(tones):
        return tones[:count]
    hues = [colorsys.hls_to_rgb(i / count, 0.45 + 0.15 * (i % 2), 0.6) for i in range(count)]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in hue) for hue in hues]


@torch.no_grad()
def features(task: Task, images: Bytes) -> Tensor:
    """The teacher's features of uint8 images, in parts."""
    device = task.runtime.device
    return torch.cat([task.teacher(as_images(part.to(device))).features.cpu() for part in images.split(64)])


def one_of_each(labels: Labels, most: int) -> Tensor:
    """Places of at most ``most`` images: the first of each class, evenly spread over the classes, then others."""
    first = {k: i for i, k in reversed(list(enumerate(labels.tolist())))}
    places = [first[k] for k in sorted(first)]
    places = [places[i * len(places) // most] for i in range(most)] if len(places) > most else places
    remaining = [i for i in range(len(labels)) if i not in places]
    return torch.tensor((places + remaining)[:most])


DRAWERS: Mapping[str, Callable[[Scene], Figure | None]] = {
    "classes": _classes,
    "attention": _attention,
    "near-duplicates": _duplicates,
    "features": _features,
}
"""Figures of every method, by name; a drawer returns None where a run has nothing of the kind, or raises."""
