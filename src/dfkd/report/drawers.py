"""What each figure shows. The table at the end is the one place that says which figures there are."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dfkd.data.overlap import BITS
from dfkd.engine.core import Task
from dfkd.errors import UserError
from dfkd.methods.kd3 import KD3State
from dfkd.methods.stts import STTS
from dfkd.ops.pixels import as_images
from dfkd.report.cams import cam_picture, cam_report
from dfkd.report.canvas import TONES
from dfkd.report.curves import Panel, bars, chart
from dfkd.report.gallery import Figure
from dfkd.report.grid import image_grid, labelled, layout
from dfkd.report.scatter import tsne_figure
from dfkd.report.scene import Examples, Scene, part_of
from dfkd.report.selection import selection_features, selection_picture
from dfkd.report.sheets import png
from dfkd.report.summary import overlap_told
from dfkd.report.targets import maximum_over_sigma, modelled, soft_labels
from dfkd.types import Bytes, Labels

__all__ = ["DRAWERS", "class_sheet"]

SIGMAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)  # STTS's sweep


def class_sheet(examples: Examples, names: Sequence[str]) -> Figure:
    """Images class by class: one named row a class, of many classes every so many-th, the first images of each."""
    images, labels = examples
    if not len(images):
        raise UserError("the sheet of images needs some, got none; let the run finish a round first")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    shown = layout(shape, len(names))
    picture = labelled(image_grid(images, labels, shown.columns, shown.classes), [names[k] for k in shown.classes])
    share = torch.bincount(labels, minlength=len(names)).float() / len(labels)
    return Figure(
        "classes",
        "Images that the student learnt from, one row per class, the newest first.",
        png(picture),
        f"A sheet of {len(shown.classes)} rows of small images, each row one class",
        {
            "images": float(len(labels)),
            "classes that occur": float((share > 0).sum()),
            "class entropy (nats)": float(-(share * (share + 1e-12).log()).sum()),
        },
    )


def _classes(scene: Scene) -> Figure | None:
    return class_sheet(scene.shown, scene.names) if scene.state is not None else None


def _attention(scene: Scene) -> Figure | None:
    """Spaceship-Net: where both networks look, and how much that differs."""
    images, labels = scene.shown
    if not len(images):
        return None
    columns = one_of_each(labels, 10)
    chosen = images[columns]
    picture = cam_picture(scene.task, chosen, tile=64, gap=2)
    most, part = scene.most(12_000_000, 32, 256), scene.most(1_000_000, 4, 128)
    seen = {"": images[:most]}
    told = f"on {len(images[:most])} images that the student learnt from"
    if scene.test is not None:
        seen["test/"] = scene.test[0][:most]
        told += f" and on {len(seen['test/'])} test images"
    found = {role + name: value for role, x in seen.items() for name, value in cam_report(scene.task, x, part).items()}
    guess = scene.task.teacher.eval()(as_images(chosen.to(scene.task.runtime.device))).logits.argmax(dim=1).tolist()
    named = labelled(picture, ["image", "teacher", "student"], [scene.names[k] for k in guess])
    return Figure(
        "attention",
        "Where teacher and student look: activation maps of the class that the teacher chooses, red where they are "
        f"high. Mean absolute and squared differences, of 255 grey levels, {told}.",
        png(named),
        f"{len(chosen)} images, below each the teacher's and the student's activation map as a heat map",
        dict(sorted(found.items(), key=lambda row: "stage" in row[0])),  # those of the last map first
    )


def _selection(scene: Scene) -> Figure | None:
    """KD3: what was taken and what was left."""
    state = part_of(scene.state, KD3State)
    if state is None or scene.task.web is None:
        return None
    picture = selection_picture(scene.task.web, state.chosen, scene.task.runtime.generator, columns=16, rows=3)
    return Figure(
        "selection",
        f"Random web images: above, some of the {len(state.chosen):,} selected ones; below, some of the "
        f"{len(scene.task.web) - len(state.chosen):,} others.",
        png(labelled(picture, ["selected", "not selected"])),
        "Three rows of selected web images above three rows of web images that were not selected",
        {"selected": float(len(state.chosen)), "share": len(state.chosen) / len(scene.task.web)},
    )


def _balance(scene: Scene) -> Figure | None:
    """KD3: how many images of each class were selected."""
    state = part_of(scene.state, KD3State)
    if state is None:
        return None
    counts = torch.bincount(state.predicted.cpu(), minlength=scene.task.classes).float()
    share = counts / counts.sum()
    return Figure(
        "selection-classes",
        "Selected web images of each predicted class.",
        bars(dict(zip(scene.names, counts.tolist(), strict=True)), "images", scene.form),
        "A bar chart with one bar per class",
        {
            "classes that occur": float((counts > 0).sum()),
            "most of one class": float(counts.max()),
            "fewest of one class": float(counts.min()),
            "class entropy (nats)": float(-(share * (share + 1e-12).log()).sum()),
        },
    )


def _duplicates(scene: Scene) -> Figure | None:
    """The web images that resemble an evaluation image most."""
    found, web = scene.overlap, scene.task.web
    if found is None or not found.pairs:
        return None
    if web is None or scene.test is None or (found.web, found.images) != (len(web), len(scene.test[0])):
        raise UserError(
            "the pairs of evaluation and web images need the images that were compared, got others or none; "
            "give the run's web and test images"
        )
    rows, places = [pair.web for pair in found.pairs], [pair.image for pair in found.pairs]
    images = torch.cat([scene.test[0][places].cpu(), web.take(torch.tensor(rows)).cpu()])
    picture = image_grid(images, torch.arange(2).repeat_interleave(len(rows)), len(rows), tile=64)
    return Figure(
        "near-duplicates",
        f"The web images that are most like an evaluation image, each below it; above, in how many of {BITS} bits "
        f"their difference hashes differ, and the correlation of their pixels. {overlap_told(found).capitalize()}.",
        png(labelled(picture, ["evaluation", "web"], [f"{pair.bits}, {pair.correlation:.2f}" for pair in found.pairs])),
        f"{len(rows)} evaluation images, below each the web image that resembles it most",
        {
            "found": float(found.found),
            "alike": float(found.alike),
            "fewest bits": float(min(pair.bits for pair in found.pairs)),
            "highest correlation": max(pair.correlation for pair in found.pairs),
        },
    )


def _features(scene: Scene) -> Figure | None:
    """The teacher's features of what the student learnt from, beside those of real images where there are any."""
    task, most = scene.task, scene.most(6_000_000, 60, 300)
    state = part_of(scene.state, KD3State)
    real = None if scene.test is None else scene.test[0]
    if state is not None and task.web is not None:
        groups = selection_features(task.teacher, task.web, state.chosen, real, task.runtime.generator, most)
        tones, whose = (TONES[2], TONES[0], TONES[1]), "web images, selected or not"
    elif not len(scene.shown[0]):
        return None
    elif real is None:
        raise UserError("the picture of features needs real images, got no test images; give test (--data.test)")
    else:
        pick = torch.randperm(len(real), generator=torch.Generator().manual_seed(scene.seed))[:most]
        groups = {
            "the student's images": features(task, scene.shown[0][:most]),
            "real images": features(task, real[pick]),
        }
        tones, whose = (TONES[1], TONES[0], TONES[2]), "images that the student learnt from"
    beside = "" if real is None else ", beside those of real test images"
    caption = f"The teacher's features of {whose}{beside}, by t-SNE."
    alt = f"Points in two dimensions, one colour each: {', '.join(groups)}"
    return Figure("features", caption, tsne_figure(groups, tones=tones, form=scene.form), alt)


def _target_maximum(scene: Scene) -> Figure | None:
    """STTS: how sure targets are at each variance."""
    method = part_of(scene.method, STTS)
    if method is None:
        return None
    net, shape, draws = scene.task.teacher.net, scene.task.image_shape, scene.most(2_000_000, 50, 500)
    lines = {}
    for tau in (1.0, method.temperature):
        rng = scene.task.runtime.generator.manual_seed(scene.seed)
        lines[tau] = maximum_over_sigma(net, shape, SIGMAS, rng, method.layer, tau, draws, method.space)
    own = lines[method.temperature]
    panel = Panel(
        "",
        {f"temperature {tau:g}": list(found.items()) for tau, found in lines.items()},
        "variance σ",
        {"as likely as any": 1 / scene.task.classes},
        whole=False,
    )
    used = f"σ = {method.sigma:g}" if method.targets == "normal" else "Dirichlet targets instead"
    return Figure(
        "target-maximum",
        f"Mean largest class probability of normal targets over their variance σ, drawn as "
        f"{modelled(net, shape, method.layer, method.space)}; this run used {used} and temperature "
        f"{method.temperature:g}.",
        chart([panel], scene.form, (4.4, 3.2)),
        "Curves that show how the largest class probability depends on the variance",
        {f"σ = {sigma:g}": value for sigma, value in own.items()},
    )


def _soft_labels(scene: Scene) -> Figure | None:
    """STTS: its targets beside ZSKD's."""
    method = part_of(scene.method, STTS)
    if method is None:
        return None
    rng, net, shape = scene.task.runtime.generator, scene.task.teacher.net, scene.task.image_shape
    tau, betas = method.temperature, method.betas
    groups = soft_labels(net, shape, method.sigma, rng, tau, 300, betas, method.layer, method.space, method.dirichlet)
    return Figure(
        "soft-labels",
        f"Soft labels by t-SNE, drawn from STTS's multivariate normal (σ = {method.sigma:g}, over "
        f"{modelled(net, shape, method.layer, method.space)}, temperature {tau:g}) and from ZSKD's Dirichlet "
        f"distributions (β = {', '.join(f'{beta:g}' for beta in betas)}).",
        tsne_figure(groups, tones=(TONES[1], TONES[0]), form=scene.form),
        "Points in two dimensions, one colour for each kind of soft label",
        {f"largest probability, {name}": float(rows.amax(dim=1).mean()) for name, rows in groups.items()},
    )


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
    others = [i for i in range(len(labels)) if i not in places]
    return torch.tensor((places + others)[:most])


DRAWERS: Mapping[str, Callable[[Scene], Figure | None]] = {
    "classes": _classes,
    "attention": _attention,
    "selection": _selection,
    "selection-classes": _balance,
    "near-duplicates": _duplicates,
    "features": _features,
    "target-maximum": _target_maximum,
    "soft-labels": _soft_labels,
}
"""Every figure by name; a drawer returns None where a run has nothing of the kind, and raises where it cannot draw."""
