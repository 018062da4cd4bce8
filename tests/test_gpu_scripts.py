"""The scripts for a GPU, in miniature on the CPU, with nothing installed that they say they do without."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu import common, nayer, rounds, teach, variants
from benchmarks.gpu.common import job_of, parser
from benchmarks.precision import VARIANTS
from torch.utils.flop_counter import FlopCounterMode

from dfkd.engine.plan import Plan
from dfkd.methods import METHODS, NAYER
from dfkd.nets.generators import ConvGenerator
from dfkd.nets.zoo import build

ROOT = Path(__file__).parents[1]
PACKED = Path(os.environ.get("DFKD_PACKED", "/nowhere"))
MISSING = ("lightning_fabric", "lightning", "jsonargparse", "matplotlib", "sklearn", "yaml", "torchvision")


def words(out: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--miniature", "--out", str(out), "--precision", "fp32", *more]


def held(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    assert found["miniature"] is True
    assert {"commit", "date", "hardware", "torch", "load"} <= found["provenance"].keys()
    return found


@pytest.mark.slow
def test_teach_writes_a_teacher_that_nayer_takes(tmp_path: Path) -> None:
    teach.main(words(tmp_path, "--epochs", "4", "--compile", "default"))
    taught = held(tmp_path, "teach")
    assert taught["accuracy"] > 0.9
    assert taught["images"] == 256
    nayer.main(words(tmp_path, "--teacher", str(tmp_path / "teacher"), "--compile", "default"))
    found = held(tmp_path, "nayer")
    assert found["teacher_accuracy"] == pytest.approx(taught["accuracy"])
    assert found["graphs_after_first_rounds"] == found["graphs_at_the_end"] > 0
    assert found["compile"] == "default"
    assert found["floor_seconds"] == pytest.approx(sum(found["flops"].values()) / found["matmul_flops_per_second"])
    assert sum(found["seconds_by_phase"].values()) == pytest.approx(found["seconds"])


@pytest.mark.slow
def test_the_scripts_do_without_optional_packages(tmp_path: Path) -> None:
    blocked = f"import sys\nfor name in {MISSING}: sys.modules[name] = None\n"
    code = blocked + f"from benchmarks.gpu import nayer\nnayer.main({words(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert held(tmp_path, "nayer")["images"] == 60


@pytest.mark.slow
def test_a_round_of_every_method(tmp_path: Path) -> None:
    rounds.main(words(tmp_path))
    found = held(tmp_path, "rounds")["methods"]
    assert found.keys() == METHODS.keys()
    for name, what in found.items():
        assert "failed" not in what, (name, what)
        assert what["hours"] > 0
        assert what["student_steps_per_second"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_variants_stay_within_their_tolerances(tmp_path: Path) -> None:
    variants.main(words(tmp_path))
    found = held(tmp_path, "variants")["variants"]
    assert found.keys() == VARIANTS.keys()
    for name, what in found.items():
        assert what["within"], (name, what)
        assert what["graphs_after_two_rounds"] == what["graphs_at_the_end"]
        assert (what["graphs_at_the_end"] > 0) == VARIANTS[name].get("compile", False)


@pytest.mark.slow
def test_one_method_and_one_variant(tmp_path: Path) -> None:
    rounds.main(words(tmp_path, "--methods", "NoiseInput"))
    assert held(tmp_path, "rounds")["methods"]["NoiseInput"]["images"] == 0
    variants.main(words(tmp_path, "--variants", "bf16"))
    found = held(tmp_path, "variants")["variants"]["bf16"]
    assert found["within"]
    assert max(d["gradient"] for many in found["differences"].values() for d in many) > 0  # bf16 was really used


def test_the_cost_of_nayer_is_that_of_a_count(tmp_path: Path) -> None:
    """The formula against torch's counter on the very steps it counts."""
    job = job_of(parser(None).parse_args(words(tmp_path)))
    method, plan = nayer.SMALL, Plan(rounds=1, warmup=0, steps=1, batch_size=4)
    teacher, student = (build(name, 10).net for name in job.pair)
    cost = [common.macs(net, job.shape) for net in (teacher, student)]
    learnt, made = nayer.flops(job, method, plan, *cost)
    x = torch.rand(4, *job.shape)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            teacher(x)
        student(x).sum().backward()
    first = 2 * 4 * 27 * 16 * 8 * 8  # the first layer needs no gradient of the images
    assert learnt == pytest.approx(counter.get_total_flops() + first, rel=0.1)
    teacher.requires_grad_(False)
    student.requires_grad_(False)
    generator = ConvGenerator(method.width, job.shape, method.channels)
    code = torch.rand(method.synthesis_batch, method.width, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        images = generator(code)
        (teacher(images).sum() + student(images).sum()).backward()
    counted = method.steps * counter.get_total_flops()
    assert made <= counted < 1.1 * made  # the formula leaves out what a step costs once: adding up kernels


def test_the_published_budget_costs_what_is_said() -> None:
    plan, method = nayer.PLAN, NAYER()
    assert (plan.rounds, plan.warmup, plan.steps, plan.batch_size) == (100, 20, 400, 512)
    job = job_of(parser(None).parse_args(["--out", "."]))
    cost = [common.macs(build(name, 10).net, job.shape) for name in job.pair]
    learnt, made = nayer.flops(job, method, plan, *cost)
    assert learnt == pytest.approx(2.6e16, rel=0.03)
    assert made == pytest.approx(1.0e16, rel=0.15)


@pytest.mark.skipif(not (PACKED / "test_batch.frame.xz").exists(), reason="DFKD_PACKED names no packed CIFAR-10")
def test_packed_images_are_the_published_ones(tmp_path: Path) -> None:
    published = Path(os.environ.get("DFKD_DATA", "data")) / "cifar-10-batches-py" / "test_batch"
    if not published.exists():
        pytest.skip("no published CIFAR-10 in $DFKD_DATA")
    assert common._rebuild_file(PACKED, "test_batch") == published.read_bytes()
    job = job_of(parser(None).parse_args(["--out", str(tmp_path), "--data", str(PACKED)]))
    test = common.images(job, "test")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10


def test_batches_are_found_over_several_folders(tmp_path: Path) -> None:
    from test_readers import write_cifar

    stream = np.random.default_rng(0)
    for place, name, n in (
        ("a", "data_batch_1", 3),
        ("b/cifar-10-batches-py", "data_batch_4", 2),
        ("b", "test_batch", 4),
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        pixels = stream.integers(0, 256, (n, 3072), dtype=np.uint8)
        write_cifar(folder / name, pixels.reshape(n, 3, 32, 32), labels=list(range(n)))
    options = ["--out", str(tmp_path), "--data", str(tmp_path / "a"), str(tmp_path / "b")]
    job = job_of(parser(None).parse_args(options))
    train, test = common.images(job, "train"), common.images(job, "test")
    assert train.labels.tolist() == [0, 1, 2, 0, 1]
    assert test.images.shape == (4, 3, 32, 32)
    shutil.rmtree(tmp_path / "b")
    assert len(common.images(job, "train").images) == 3
    with pytest.raises(SystemExit, match="test images need CIFAR-10's test_batch"):
        common.images(job, "test")


def test_a_teacher_is_asked_for() -> None:
    job = job_of(parser(None).parse_args(["--out", "."]))
    with pytest.raises(SystemExit, match=r"needs trained weights, got none; run teach\.py"):
        common.networks(job)
