"""What all tests share: one thread, and a small teacher that really knows its images."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd.data.readers import STATISTICS, read_images
from dfkd.engine.checkpoint import write_aside
from dfkd.nets.zoo import build
from dfkd.ops.pixels import as_images

torch.set_num_threads(1)

# The same examples in every run, and no folder of failed ones: a suite that passed passes again.
hypothesis.settings.register_profile("dfkd", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("dfkd")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, except those that torch.compile gives itself and means to hide."""
    for line in ("ignore:The .grad attribute of a Tensor", "ignore:.*autograd.function.Function.* should not be inst"):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _one_stream() -> Iterator[None]:
    """No test sees the random numbers another one used up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder from which modules are imported; they are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def digits_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dict of a WRN-16-1 trained on scikit-learn's 8 by 8 digits; made once for all worker processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path = base / "digits-wrn16-1.pt"
    if not path.exists():
        weights = _train_on_digits().state_dict()
        write_aside(path, lambda aside: torch.save(weights, aside))
    return path


@pytest.fixture
def digits_teacher(digits_weights: Path) -> nn.Module:
    """A fresh copy of that teacher: 1 channel, 8 by 8 pixels, normalised by ``STATISTICS["digits"]``."""
    net = build("wrn16-1", 10, 1).net
    net.load_state_dict(torch.load(digits_weights, weights_only=True))
    return net.eval()


def _train_on_digits(epochs: int = 5) -> nn.Module:
    data = read_images("digits", "train")
    mean, std = STATISTICS["digits"]
    x = (as_images(data.images) - mean[0]) / std[0]
    stream = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build("wrn16-1", 10, 1).net
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=stream).split(64)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=len(batches) + 1)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x[rows]), data.labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, digits_weights: Path) -> Path:
    """A short, finished run on digits (WRN-16-1 to WRN-10-1, 256 stored images); nobody may write in it."""
    import dfkd

    mean, std = STATISTICS["digits"]
    teacher = replace(build("wrn16-1", 10, 1), name="wrn16-1")
    teacher.net.load_state_dict(torch.load(digits_weights, weights_only=True))
    student = replace(build("wrn10-1", 10, 1), name="wrn10-1")
    method = dfkd.NAYER(steps=2, synthesis_batch=64, batches=2, warmup_batches=2, width=16, channels=8, pad=1)
    folder = tmp_path_factory.mktemp("finished") / "run"
    dfkd.distill(
        teacher,
        student,
        method,
        image_size=(1, 8, 8),
        mean=mean,
        std=std,
        classes=[str(k) for k in range(10)],
        plan=dfkd.Plan(rounds=2, warmup=1, steps=10, batch_size=64, lr=0.05),
        out=folder,
        test="digits",
        progress=False,
        figures=False,
        runtime=dfkd.Runtime("cpu"),
    )
    return folder
