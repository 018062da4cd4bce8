"""Run experiments: ``python -m benchmarks.run mnist-bn mnist-lenet --seeds 0 1 [--rows 'NAYER'] [--threads 1]``.

Teaches the teacher if it is not there yet (kept under ``runs/teachers``), runs every row with every seed, and writes
one record each to ``benchmarks/results/EXPERIMENT/``. A row whose record exists is passed over, so a night's run that
was cut off goes on where it stopped; a run goes on from its last checkpoint under ``runs/bench``. ``--again`` repeats
what has a record. The last round is the result.
"""

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

import dfkd
from benchmarks import junk, strokes
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS, write_record
from benchmarks.rows import HALF_JUNK, STROKES, WEB, Data, Row, statistics
from dfkd.allocator import keep_freed_memory
from dfkd.engine.records import Observer, RoundRecord, RunInfo, RunResult
from dfkd.identity import settings_of, weights_hash
from dfkd.ops.hashing import dhash_codes
from dfkd.ops.pixels import as_images
from dfkd.report.files import plain
from dfkd.runs import CHECKPOINT_FOLDER
from dfkd.teacher import teach
from dfkd.teacher_plan import TeachPlan

TEACHERS = Path("runs/teachers")
RUNS = Path("runs/bench")  # of rows that are being run
SHOWN = 20  # images of each round among which the diversity is measured


class NewestImages(Observer):
    """An observer that keeps some of the newest images of every round."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def rounded(self, record: RoundRecord) -> None:
        """Keep a few."""
        if record.samples is not None:
            self.images.append(record.samples[0][:SHOWN])


class Queries(Observer):
    """An observer that counts the images the teacher was asked about, round by round, evaluation left out.

    Counts are kept in ``file``, so that a run which is continued does not forget those before.
    """

    def __init__(self, teacher: nn.Module, file: Path) -> None:
        self.file, self.asked, self.evaluated = file, 0, False
        self.rounds: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        teacher.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.asked += len(inputs[0])

    def started(self, info: RunInfo) -> None:
        """What was asked before the first round, to survey and to evaluate, does not count."""
        self.asked = 0

    def rounded(self, record: RoundRecord) -> None:
        """Keep the count of this round, without what the first evaluation asked (later ones remember the answers)."""
        if record.evaluation is not None and not self.evaluated:
            self.asked, self.evaluated = self.asked - record.evaluation.images, True
        self.rounds[str(record.round)], self.asked = self.asked, 0
        self.file.write_text(json.dumps(self.rounds))

    @property
    def total(self) -> int:
        """Of all rounds."""
        return sum(self.rounds.values())


def diversity(images: torch.Tensor, hash_pool: int) -> dict[str, float]:
    """How different images (uint8) are: mean over pairs of the RMS distance in [0, 1] and of the share of hash bits."""
    x = as_images(images)
    pairs = max(len(x) * (len(x) - 1), 1)
    codes = dhash_codes(x, hash_pool)
    flat = x.flatten(1)
    return {
        "images": len(x),
        "pairwise_distance": float(torch.cdist(flat, flat).sum() / pairs / flat.shape[1] ** 0.5),
        "hash_distance": float(torch.cdist(codes, codes, p=1).sum() / pairs / codes.shape[1]),
    }


def read_split(data: Data, split: str) -> dfkd.ImageSet:
    """One split at the experiment's size."""
    return dfkd.read_images(data.source, split, side=data.shape[1], channels=data.shape[0])


def teacher_of(data: Data, name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The trained teacher and what is known about it; taught once for a recipe, with seed 0."""
    from safetensors.torch import load_file, save_file

    classes = len(dfkd.class_list(data.name))
    torch.manual_seed(0)
    net = dfkd.build(name, classes=classes, channels=data.shape[0]).net
    title = f"{data.name}-{data.shape[1]}px-{name.replace(':', '-')}"
    path = TEACHERS / f"{title}.safetensors"
    about = path.with_suffix(".facts.json")
    recipe = TeachPlan(epochs=data.epochs, batch_size=data.batch_size, lr=data.lr, pad=data.pad, flip=data.flip)
    known = json.loads(about.read_text()) if path.exists() and about.exists() else {}
    if known.get("recipe") == json.loads(json.dumps(dataclasses.asdict(recipe))):
        net.load_state_dict(load_file(path))
        return net, known
    mean, std = statistics(data)
    train, test = (read_split(data, split) for split in ("train", "test"))
    began = time.monotonic()
    exam = (test.images, test.labels)
    runtime = dfkd.Runtime(device="cpu", seed=0)
    done = teach(net, train.images, train.labels, recipe, mean=mean, std=std, test=exam, runtime=runtime)
    if done.evaluation is None:
        raise RuntimeError("a teacher needs test images to be measured")
    facts = {
        "name": name,
        "data": data.name,
        "recipe": dataclasses.asdict(recipe),
        "accuracy": done.evaluation.accuracy,
        "seconds": time.monotonic() - began,
        "seed": 0,
        "sha256": weights_hash(net),
    }
    TEACHERS.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    about.write_text(json.dumps(facts))
    write_record(f"teachers/{title}", facts)
    print(f"teacher {name} on {data.name}: {done.evaluation.accuracy:.2%} in {facts['seconds']:.0f} s", flush=True)
    return net, facts


def distil(
    data: Data,
    row: Row,
    seed: int,
    machine: Mapping[str, Any],
    observers: Sequence[Observer] = (),
    out: Path | None = None,
    teacher: nn.Module | None = None,
) -> tuple[nn.Module, dfkd.Distilled, dict[str, Any]]:
    """One run, on a runtime with the settings ``machine``: the teacher, what came of it, facts about the teacher."""
    mean, std = statistics(data)
    net, facts = teacher_of(data, row.teacher)
    teacher = teacher or net
    torch.manual_seed(seed)
    names = dfkd.class_list(data.name)
    built = [dfkd.build(name, classes=len(names), channels=data.shape[0]) for name in (row.teacher, row.student)]
    again = out is not None and (out / CHECKPOINT_FOLDER).exists()
    if out is not None and not again:
        shutil.rmtree(out, ignore_errors=True)  # stopped before its first checkpoint
    stages = [row.stages or one.stages for one in built]
    done = dfkd.distill(
        dfkd.Classifier(teacher, built[0].head, stages[0], name=row.teacher),
        dfkd.Classifier(built[1].net, built[1].head, stages[1], name=row.student),
        row.method,
        image_size=data.shape,
        mean=mean,
        std=std,
        classes=names,
        plan=row.plan,
        test=read_split(data, "test"),
        runtime=dfkd.Runtime(device="cpu", seed=seed, **machine),
        evaluate_every=10,
        samples_every=1,
        observers=observers,
        out=out,
        resume=again,
        export=False,
        figures=False,
        **row.inputs,
    )
    return teacher, done, facts


def _training_seconds(result: RunResult) -> float:
    """Of synthesis and the student's steps alone: looking at test images is no part of a method."""
    return sum(r.metrics["seconds/synthesis"] + r.metrics["seconds/student"] for r in result.rounds)


def run_row(
    experiment: str, data: Data, row: Row, seed: int, machine: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """One run, or the rest of one; returns the content of its record."""
    out = RUNS / f"{experiment}-{slug(row.label)}-seed{seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    teacher, _ = teacher_of(data, row.teacher)  # its own time does not count
    shown, queries = NewestImages(), Queries(teacher, out.with_suffix(".queries.json"))
    _, done, facts = distil(data, row, seed, machine, [shown, queries], out, teacher)
    final, info = done.record.final, done.record.info
    last = {name: value for past in done.record.rounds for name, value in past.metrics.items()}  # each metric's newest
    content = {
        "experiment": experiment,
        "row": row.label,
        "seed": seed,
        "precision": machine.get("precision", "fp32"),
        "compile": machine.get("compile", False),
        "data": data.name,
        "image_size": list(data.shape),
        "teacher": facts,
        "student": row.student,
        "stages": {"teacher": info.teacher["stages"], "student": info.student["stages"]},
        "text": info.text,
        "method": type(row.method).__name__,
        "settings": plain(settings_of(row.method)),
        "plan": plain(settings_of(row.plan)),
        "accuracy": None if final is None else final.accuracy,
        "agreement": None if final is None else final.agreement,
        "seconds": _training_seconds(done.record),
        "images": last.get("images"),
        "teacher_queries": queries.total,
        "last_metrics": plain(last),
        "diversity": diversity(torch.cat(shown.images), max(1, data.shape[1] // 8)) if shown.images else None,
        "paper": row.paper,
    }
    shutil.rmtree(out, ignore_errors=True)
    queries.file.unlink(missing_ok=True)
    return content


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=sorted(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", default=None, help="labels of the rows to run (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default=None, help="of the networks (default: the row's)"
    )
    parser.add_argument("--again", action="store_true", help="repeat rows that have a record")
    options = parser.parse_args()
    if unknown := sorted({*(options.rows or ())} - labels(options.experiments)):
        have = ", ".join(sorted(labels(options.experiments)))
        parser.error(f"--rows needs labels of the experiments, got {', '.join(unknown)}; there are {have}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    for experiment in options.experiments:
        _run(experiment, options)


def labels(experiments: Sequence[str]) -> set[str]:
    """Of all rows of the experiments."""
    return {row.label for experiment in experiments for row in EXPERIMENTS[experiment][1]()}


def _run(experiment: str, options: argparse.Namespace) -> None:
    """Every row asked for that has no record yet."""
    data, rows = EXPERIMENTS[experiment]
    for row in rows():
        if options.rows is not None and row.label not in options.rows:
            continue
        for seed in options.seeds:
            other = "" if options.precision in (None, row.precision) else f"-{options.precision}"
            name = f"{experiment}/{slug(row.label)}{other}-seed{seed}"
            if (RESULTS / f"{name}.json").exists() and not options.again:
                continue
            web_images(row)
            content = run_row(experiment, data, row, seed, {"precision": options.precision or row.precision})
            write_record(name, content)
            print(f"{row.label}, seed {seed}: {content['accuracy']:.2%} in {content['seconds']:.0f} s", flush=True)


def web_images(row: Row) -> None:
    """Make the strokes or the junk a row wants, if nobody has."""
    wanted, source = Path(row.inputs.get("web", ".")), Path(WEB["web"])
    for made, make in ((STROKES, strokes.convert), (HALF_JUNK, junk.convert)):
        if wanted == Path(made["web"]) and not wanted.exists() and source.exists():
            make(source, wanted)


def slug(label: str) -> str:
    """A label as a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


if __name__ == "__main__":
    main()
