"""Trained networks exported, and students of runs adapted: one record for each.

``python -m benchmarks.deploy DATA-NAME=FOLDER[:TEACHER] ...`` writes ``results/deploy/DATA-NAME.json``; FOLDER is a run
or a folder of `dfkd teach`. With a teacher, BatchNorm is also estimated anew on 16, 64 and 256 images of DATA, three
draws each. ``fresh`` instead of a folder exports the network NAME of the zoo, timm or torchvision with untrained
weights, on images of CIFAR-10. Peak memory is that of the process: one row in each call tells it.
``python -m benchmarks.deploy table`` prints the tables of docs/deploy.md.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.records import RESULTS, write_record
from dfkd.data.readers import read_images
from dfkd.deploy.adapt import adapt
from dfkd.deploy.export import export
from dfkd.deploy.loading import load, open_network
from dfkd.deploy.stored import stored_images
from dfkd.errors import UserError
from dfkd.nets.zoo import build
from dfkd.report.files import RUN_FILE, plain

FOLDER = "deploy"
COUNTS, DRAWS, IMAGES = (16, 64, 256), 3, 512


def export_figures(folder: Path, teacher: str, data: str) -> dict[str, Any]:
    """Export figures, and what adapting does at each count."""
    opened = open_network(folder)
    size, info = opened.predictor.image_size, opened.info
    made = _stores_images(folder)
    images = None if made else read_images(data, "train", side=size[1:], channels=size[0]).images[:IMAGES]
    with tempfile.TemporaryDirectory() as place:
        began, worked = time.perf_counter(), time.process_time()
        done = export(folder, images=images, out=Path(place) / "files")
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "network": opened.name,
            "image_size": list(size),
            "weights": f"distilled by {info.method}" if info else "trained",
            "accuracy": accuracy(opened.predictor, read_images(data, "test", side=size[1:], channels=size[0])),
            "seconds": seconds,
            "cpu_seconds": worked,
            "peak_bytes": peak,
            "artefacts": plain(list(done.artefacts)),
            "compared_on": "synthetic images" if made else "training images",
            "images": done.images,
            "adapt": adaptation_figures(folder, teacher, data, Path(place)) if teacher else [],
        }


def _stores_images(folder: Path) -> bool:
    """Is it a run whose method keeps the images it makes?"""
    try:
        return (folder / RUN_FILE).is_file() and len(stored_images(folder, 1, "export")[0]) > 0
    except UserError:
        return False


def adaptation_figures(run: Path, teacher: str, data: str, folder: Path) -> list[dict[str, Any]]:
    """Agreement and accuracy before and after; the images are training images, the accuracy is on test images."""
    size = open_network(run).predictor.image_size
    train = read_images(data, "train", side=size[1:], channels=size[0]).images
    test = read_images(data, "test", side=size[1:], channels=size[0])
    before = accuracy(load(run), test)
    rows = []
    for count in COUNTS:
        for seed in range(DRAWS):
            drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
            done = adapt(run, train[drawn], teacher, count=count, out=folder / f"{count}-{seed}")
            row = {"images": count, "seed": seed, "before": done.before, "after": done.after, "kept": done.kept}
            rows.append({**row, "test_before": before, "test_after": accuracy(done.student, test)})
    return rows


def accuracy(net: Any, test: Any) -> float:
    """Share of test images that are classified rightly."""
    found = net.predict(test.images).probabilities.argmax(dim=1)
    return float((found == test.labels).double().mean())


def fresh_figures(network: str) -> dict[str, Any]:
    """Export figures of a network with fresh weights."""
    torch.manual_seed(0)
    built = build(network, 10, 3)
    images = read_images("cifar10:.data/cifar-10-batches-py", "test").images[:IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        save_file(built.net.state_dict(), Path(folder) / "student.safetensors")
        about = {"network": built.spec, "image_shape": [3, 32, 32], "classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}
        (Path(folder) / "student.json").write_text(json.dumps(about))
        began, worked = time.perf_counter(), time.process_time()
        done = export(folder, images=images)
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    about = {"network": network, "image_size": [3, 32, 32], "weights": "untrained", "accuracy": None}
    rows: dict[str, Any] = {**about, "artefacts": plain(list(done.artefacts)), "compared_on": "real images"}
    rows |= {"seconds": seconds, "cpu_seconds": worked}
    return {**rows, "images": done.images, "peak_bytes": peak, "adapt": []}


def tables(folder: Path = RESULTS / FOLDER) -> tuple[str, str]:
    """Markdown: what exporting gives, and what adapting does."""
    held = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    exports = [
        "| network, images | weights | accuracy, % | ONNX: difference | INT8: agreement, % | ONNX → INT8, kB "
        "| ONNX over PyTorch | INT8 over ONNX |",
        "|---|---|---|---|---|---|---|---|",
        *(_export_row(record) for record in held),
    ]
    changes = [
        "| student | images | agreement before, % | after | kept | test accuracy before, % | after, where kept |",
        "|---|---|---|---|---|---|---|",
        *(line for record in held for line in _adaptation_rows(record)),
    ]
    return "\n".join(exports) + "\n", "\n".join(changes) + "\n"


def _export_row(record: dict[str, Any]) -> str:
    """Times are ratios for 32 images: above 1, the first is so many times as fast."""
    by_format = {row["format"]: row for row in record["artefacts"]}
    onnx, int8 = by_format["onnx"], by_format["int8"]
    size = "x".join(map(str, record["image_size"]))
    cells = [
        f"{record['network'].rpartition('/')[2]}, {size}",
        record["weights"],
        "–" if record["accuracy"] is None else f"{100 * record['accuracy']:.2f}",
        f"{onnx['difference']:.1e}",
        f"{100 * int8['agreement']:.2f}",
        f"{onnx['bytes'] / 1000:.0f} → {int8['bytes'] / 1000:.0f}",
        f"{onnx['speedup']['32']:.1f}",
        f"{int8['over_onnx']['32']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _adaptation_rows(record: dict[str, Any]) -> list[str]:
    lines = []
    for count in COUNTS:
        rows = [row for row in record["adapt"] if row["images"] == count]
        if not rows:
            continue
        before, after = (statistics.fmean(100 * row[key] for row in rows) for key in ("before", "after"))
        kept = [row for row in rows if row["kept"]]
        better = f"{statistics.fmean(100 * row['test_after'] for row in kept):.2f}" if kept else "–"
        lines.append(
            f"| {record['network']}, {record['weights']} | {count} | {before:.2f} | {after:.2f} | {len(kept)} of "
            f"{len(rows)} | {100 * rows[0]['test_before']:.2f} | {better} |"
        )
    return lines


def main(words: list[str]) -> None:
    """Measure and write, or print the tables."""
    if words == ["table"]:
        print("\n".join(tables()), end="")
        return
    for word in words:
        name, _, rest = word.partition("=")
        run, _, teacher = rest.partition(":")
        data, _, network = name.partition("-")
        source = f"{data}:.data/{'MNIST' if data == 'mnist' else 'cifar-10-batches-py'}" if data != "digits" else data
        found = fresh_figures(network) if run == "fresh" else export_figures(Path(run), teacher, source)
        print(write_record(f"{FOLDER}/{name.replace(':', '-')}", found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
