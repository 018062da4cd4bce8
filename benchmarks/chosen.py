"""How different are the sets that KD3's rules choose? ``python -m benchmarks.chosen [--seed 0] [--threads 1]``.

Trains the students of two rows with dynamic selection, then lets the teacher alone and the student alone choose among
the same web images, with thresholds per class and with one threshold of V_th for all. Where both choose nearly the
same images, who decides cannot matter much.
"""

import argparse

import torch

import dfkd
from benchmarks.experiments import EXPERIMENTS
from benchmarks.records import RESULTS, write_record
from benchmarks.rows import statistics
from benchmarks.run import distil, web_images
from dfkd.allocator import keep_freed_memory
from dfkd.data.rows import Rows
from dfkd.engine.probe import Probe
from dfkd.methods import KD3
from dfkd.ops.pixels import as_images
from dfkd.ops.selection import dynamic_selection
from dfkd.prepare import build_task

ROWS = (("cifar10-kd3", "no contrast"), ("mnist-kd3", "dynamic selection"))


@torch.no_grad()
def probabilities(net: Probe, web: Rows) -> torch.Tensor:
    """Of every web image (n, K)."""
    return torch.cat([torch.softmax(net(as_images(block)).logits.float(), dim=1) for _, block in web.blocks(512)])


def common(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """Shares of the pool in each of two masks, in both, and in both if they were independent."""
    a, b, both = (float(mask.float().mean()) for mask in (first, second, first & second))
    return {"teacher": a, "student": b, "both": both, "both_by_chance": a * b}


def measure(experiment: str, label: str, seed: int) -> dict[str, object]:
    """One student, two choosers, two kinds of thresholds."""
    data, rows = EXPERIMENTS[experiment]
    row = next(row for row in rows() if row.label == label)
    web_images(row)
    teacher, done, facts = distil(data, row, seed, {"precision": row.precision})
    mean, std = statistics(data)
    runtime = dfkd.Runtime(device="cpu").launch()
    task = build_task(teacher, done.student, image_size=data.shape, mean=mean, std=std, runtime=runtime, **row.inputs)
    if task.web is None or not isinstance(row.method, KD3):
        raise RuntimeError("rows of this script select from web images")
    p_t, p_s = (probabilities(net.freeze(), task.web) for net in (task.teacher, task.student))
    v_th = row.method.v_th
    adaptive = (dynamic_selection(p_t, p_s, rate, v_th).mask for rate in (0.0, 1.0))
    return {
        "experiment": experiment,
        "row": label,
        "seed": seed,
        "teacher": facts,
        "accuracy": done.accuracy,
        "web": len(task.web),
        "v_th": v_th,
        "thresholds_per_class": common(*adaptive),
        "one_threshold": common(*(p.amax(dim=1) > v_th for p in (p_t, p_s))),
        "same_class": float((p_t.argmax(dim=1) == p_s.argmax(dim=1)).float().mean()),
    }


def main() -> None:
    """Both rows, one record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="repeat it where there is a record")
    options = parser.parse_args()
    if (RESULTS / "chosen.json").exists() and not options.again:
        return
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = [measure(experiment, label, options.seed) for experiment, label in ROWS]
    write_record("chosen", {"rows": found})
    for row in found:
        print(row["experiment"], row["accuracy"], row["thresholds_per_class"], row["one_threshold"])


if __name__ == "__main__":
    main()
