"""Teachers: the schedule against a table, training, what is written, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dfkd.cli.do_teach import _warn_of_silence
from dfkd.data.readers import STATISTICS, read_images
from dfkd.engine.probe import Probe
from dfkd.engine.runtime import Runtime
from dfkd.engine.silent import Silent, silent_units
from dfkd.errors import UserError
from dfkd.identity import weights_hash
from dfkd.nets.zoo import build
from dfkd.teacher import Epoch, TeachResult, save_teacher, teach
from dfkd.teacher_plan import TeachPlan
from dfkd.weights import load_weights, read_sidecar

MEAN, STD = STATISTICS["digits"]


def _taught(seed: int = 0, epochs: int = 2, threads: list[Epoch] | None = None) -> TeachResult:
    train, test = read_images("digits", "train"), read_images("digits", "test")
    torch.manual_seed(5)
    net = build("wrn10-1", 10, 1).net
    return teach(
        net,
        train.images,
        train.labels,
        TeachPlan(epochs=epochs, batch_size=64, flip=False),
        mean=MEAN,
        std=STD,
        test=(test.images, test.labels),
        runtime=Runtime(device="cpu", seed=seed),
        watch=None if threads is None else threads.append,
    )


def test_rates() -> None:
    cosine = TeachPlan(epochs=10, lr=0.2)
    assert [cosine.rate(e) for e in (0, 5, 10)] == pytest.approx([0.2, 0.1, 0.0])
    assert cosine.rate(2.5) == pytest.approx(0.1 * (1 + math.sqrt(0.5)))
    step = TeachPlan(epochs=10, lr=1.0, schedule="step", milestones=(3, 6), gamma=0.1)
    assert [step.rate(e) for e in (0, 2.99, 3, 5.9, 6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert TeachPlan(schedule="constant", lr=0.3).rate(7) == 0.3


def test_digits_are_learnt_and_repeatable() -> None:
    seen: list[Epoch] = []
    state = torch.get_rng_state()
    first = _taught(threads=seen)
    assert first.accuracy is not None
    assert first.accuracy > 0.9
    assert [epoch.number for epoch in seen] == [1, 2]
    assert seen[1].loss < seen[0].loss
    assert tuple(seen) == first.epochs
    assert not first.net.training
    assert weights_hash(first.net) == weights_hash(_taught().net)
    assert weights_hash(first.net) != weights_hash(_taught(seed=1).net)
    torch.set_rng_state(state)


def test_global_stream_is_left_alone() -> None:
    torch.manual_seed(5)
    build("wrn10-1", 10, 1)
    expected = torch.get_rng_state()
    _taught(epochs=1)
    assert torch.equal(torch.get_rng_state(), expected)


def test_adam_and_steps() -> None:
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(40) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before = weights_hash(net)
    plan = TeachPlan(epochs=1, batch_size=64, optimizer="adam", lr=1e-2, pad=0)
    done = teach(net, images, labels, plan, mean=(0.5,), std=(0.5,), runtime=Runtime(device="cpu"))
    assert done.evaluation is None
    assert done.accuracy is None
    assert weights_hash(net) != before


class Loose(nn.Module):
    """Two convolutions through one ReLU module; some of their channels can never fire."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.act, self.head = nn.ReLU(), nn.Linear(6, 10)
        with torch.no_grad():
            for conv, dead in ((self.first, 3), (self.second, 2)):
                conv.bias[:dead] = -1e3  # type: ignore[index]
                conv.bias[dead:] = 1e3  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.norm(self.first(x))) / 1e3))
        return self.head(x.mean(dim=(2, 3)))


def test_channels_that_never_fire_are_counted() -> None:
    train = read_images("digits", "train")
    still = TeachPlan(epochs=1, lr=0.0, weight_decay=0.0)
    taught = teach(Loose(), train.images, train.labels, still, mean=MEAN, std=STD, runtime=Runtime(device="cpu"))
    assert taught.silent == (Silent("act", 3, 4), Silent("act", 2, 6))
    assert not any(module._forward_hooks for module in taught.net.modules())
    taught = teach(Loose(norm=True), train.images, train.labels, still, mean=MEAN, std=STD, runtime=Runtime("cpu"))
    assert taught.silent == ()


@pytest.mark.parametrize(("others", "silent"), [(4, 1), (400, 2)])
def test_a_channel_that_one_place_wakes_is_silent_where_that_is_rare(others: int, silent: int) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))  # type: ignore[operator]
        net[0].bias.zero_()  # type: ignore[operator]
        net[3].bias.copy_(torch.tensor([-1e3] * 7 + [1e3] * 3))  # type: ignore[operator]
    images = torch.zeros(1 + others, 1, 2, 2)
    images[3, 0, 1, 1] = 0.5
    probe = Probe(net, mean=[0.0], std=[1.0]).eval()
    assert silent_units(probe, images) == [Silent("1", silent, 2), Silent("4", 7, 10)]


@pytest.mark.parametrize(("silent", "told"), [(7, False), (8, True), (16, True)])
def test_a_teacher_with_dead_filters_is_warned_of(silent: int, told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    _warn_of_silence([Silent("a", 0, 4), Silent("b", silent, 16), Silent("c", 1, 100)])
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {silent} of 16 channels of 'b'") if told else said == ""
    _warn_of_silence([])
    assert capsys.readouterr().err == ""


def test_saved_files(tmp_path: Path) -> None:
    done = _taught(epochs=1)
    spec = {"name": "wrn10-1", "classes": 10, "channels": 1}
    path = save_teacher(
        tmp_path / "t",
        done,
        spec=spec,
        image_shape=(1, 8, 8),
        names=[str(k) for k in range(10)],
        classes=10,
        mean=MEAN,
        std=STD,
        plan=TeachPlan(epochs=1),
        seed=3,
    )
    told = json.loads((tmp_path / "t" / "weights.json").read_text())
    assert told["network"] == spec
    assert told["accuracy"] == done.accuracy
    assert told["seed"] == 3
    assert told["sha256"] == weights_hash(done.net)
    assert set(load_file(path)) == set(done.net.state_dict())
    fresh = build("wrn10-1", 10, 1).net
    load_weights(fresh, path)
    assert weights_hash(fresh) == weights_hash(done.net)
    sidecar = read_sidecar(path)
    assert (sidecar.name, sidecar.classes, sidecar.image_size) == ("wrn10-1", 10, (1, 8, 8))
    assert sidecar.mean == MEAN
    assert sorted(file.name for file in (tmp_path / "t").iterdir()) == ["weights.json", "weights.safetensors"]


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 1}, {"pad": -1}, {"lr": math.nan}, {"weight_decay": -1}])
def test_bad_plans(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"teach needs {next(iter(bad))}"):
        TeachPlan(**bad)  # type: ignore[arg-type]


def test_bad_images() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="one label each"):
        teach(net, images, labels[:3], mean=(0,), std=(1,))
    with pytest.raises(UserError, match="uint8"):
        teach(net, images.float(), labels, mean=(0,), std=(1,))
    with pytest.raises(UserError, match="unfreeze"):
        teach(net.requires_grad_(False), images, labels, mean=(0,), std=(1,))


LABELS = torch.arange(4) % 2


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([0, 1, 2, 1]), "training labels need to be 0 to 1 with a network of 2 classes, got 0 to 2; corr"),
        (torch.tensor([0, -1, 1, 1]), "training labels need to be 0 to 1 with a network of 2 classes, got -1 to 1"),
        (LABELS.float(), r"training labels need to be one integer for each image, got torch.float32 of shape \(4,\)"),
        (LABELS.bool(), "training labels need to be one integer for each image, got torch.bool"),
        (LABELS[:, None], "training labels need to be one integer for each image, got torch.int64 of shape"),
        (["a", "b", "c", "d"], "teach needs labels as a tensor or an array of numbers, got list"),
    ],
)
def test_bad_labels(labels: Any, says: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before, images = weights_hash(net), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    given: dict[str, Any] = {"mean": (0,), "std": (1,), "runtime": Runtime(device="cpu")}
    with pytest.raises(UserError, match=f"^{says}"):
        teach(net, images, labels, TeachPlan(epochs=1), **given)
    with pytest.raises(UserError, match=f"^{says.replace('training', 'test')}"):
        teach(net, images, LABELS, TeachPlan(epochs=1), test=(images, labels), **given)
    assert weights_hash(net) == before


def _plainly_taught(images: Any, labels: Any) -> nn.Module:
    torch.manual_seed(5)
    net, plan = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), TeachPlan(epochs=1, batch_size=4, pad=0)
    settings: dict[str, Any] = {
        "mean": np.array([0.5], np.float32),
        "std": np.array([0.25], np.float32),
        "test": (images, labels),
    }
    return teach(net, images, labels, plan, runtime=Runtime(device="cpu"), **settings).net


def test_arrays_teach_as_tensors_do() -> None:
    images, labels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8, dtype=torch.int32) % 2
    taught = _plainly_taught(images.numpy(), labels.numpy())
    assert weights_hash(taught) == weights_hash(_plainly_taught(images, labels.long()))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_a_teacher(off: Any) -> None:
    images, labels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 2
    torch.manual_seed(5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    plan = TeachPlan(epochs=1, batch_size=4, pad=0)
    with off():
        teach(net, images, labels, plan, mean=(0.5,), std=(0.25,), runtime=Runtime(device="cpu"))
    assert not any(tensor.is_inference() for tensor in net.state_dict().values())
    assert weights_hash(net) == weights_hash(_plainly_taught(images, labels))


@pytest.mark.parametrize("maker", ["meta", "inference"])
def test_weights_that_cannot_be_trained_are_refused(maker: str) -> None:
    with torch.device("meta") if maker == "meta" else torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"^Sequential needs weights .*, got 1\.weight"):
        teach(net, images, LABELS, mean=(0,), std=(1,), runtime=Runtime(device="cpu"))


def test_a_wrapped_teacher_is_saved_as_its_own_class_names_it_with_numbers_of_numpy(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    compiled: Any = torch.compile(net, backend="eager")
    path = save_teacher(
        tmp_path,
        TeachResult(compiled, (), None, 1.0),
        spec={"name": "x"},
        image_shape=(1, 8, 8),
        names=(),
        classes=np.int64(2),  # type: ignore[arg-type]
        mean=np.array([0.5], np.float32),  # type: ignore[arg-type]
        std=torch.tensor([0.25]),  # type: ignore[arg-type]
        plan=TeachPlan(epochs=np.int64(1)),  # type: ignore[arg-type]
        seed=0,
    )
    assert set(load_file(path)) == {"1.weight", "1.bias"}
    about = json.loads((tmp_path / "weights.json").read_text())
    assert (about["classes"], about["mean"], about["std"], about["plan"]["epochs"]) == (2, [0.5], [0.25], 1)


def test_diverged() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    images, labels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 2
    plan = TeachPlan(epochs=3, lr=1e30)
    with pytest.raises(UserError, match=r"finite loss, got (nan|inf) in epoch \d"):
        teach(net, images, labels, plan, mean=(0,), std=(1,), runtime=Runtime(device="cpu"))
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="network needs finite weights, got NaN"):
        teach(net, images, labels, plan, mean=(0,), std=(1,), runtime=Runtime(device="cpu"))
