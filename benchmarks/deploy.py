"""Students of finished runs exported and adapted: one record for each run.

``python -m benchmarks.deploy DATA-NAME=RUN[:TEACHER] ...`` writes ``results/deploy/DATA-NAME.json``. With a teacher,
BatchNorm is also estimated anew on 16, 64 and 256 images of DATA (three draws each). ``fresh`` instead of a run exports
the network NAME of the zoo, timm or torchvision with untrained weights, on images of cifar10.
"""

import json
import resource
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
from dfkd.nets.zoo import build
from dfkd.report.files import plain

COUNTS, DRAWS = (16, 64, 256), 3


def measured(run: Path, teacher: str, data: str) -> dict[str, Any]:
    """Export figures, and what adapting does at each count."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = export(run, out=Path(folder) / "files")
        seconds = time.perf_counter() - began
        opened = open_network(run)
        rows = plain({"network": opened.name, "seconds": seconds, "artefacts": list(done.artefacts)})
        return {**rows, "images": done.images, "adapt": adapted(run, teacher, data, Path(folder)) if teacher else []}


def adapted(run: Path, teacher: str, data: str, folder: Path) -> list[dict[str, Any]]:
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


def untrained(network: str) -> dict[str, Any]:
    """Export figures of a network with fresh weights."""
    torch.manual_seed(0)
    built = build(network, 10, 3)
    images = read_images("cifar10:.data/cifar-10-batches-py", "test").images[:512]
    with tempfile.TemporaryDirectory() as folder:
        save_file(built.net.state_dict(), Path(folder) / "student.safetensors")
        about = {"network": built.spec, "image_shape": [3, 32, 32], "classes": 10, "mean": [0.5] * 3, "std": [0.25] * 3}
        (Path(folder) / "student.json").write_text(json.dumps(about))
        began = time.perf_counter()
        done = export(folder, images=images)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows: dict[str, Any] = plain({"network": network, "weights": "untrained", "artefacts": list(done.artefacts)})
    return {**rows, "seconds": seconds, "images": done.images, "peak_bytes": peak}


def main(words: list[str]) -> None:
    for word in words:
        name, _, rest = word.partition("=")
        run, _, teacher = rest.partition(":")
        data, _, network = name.partition("-")
        found = untrained(network) if run == "fresh" else measured(Path(run), teacher, data)
        print(write_record(f"deploy/{name.replace(':', '-')}", found, RESULTS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
