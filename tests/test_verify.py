"""Whatever works in plain PyTorch works here: the idioms of people's networks, each run through everything."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dfkd
from dfkd.cli.main import main
from dfkd.engine.runtime import Runtime
from dfkd.engine.verify import preserving, verify
from dfkd.nets.adapters import LogitsOnly
from dfkd.nets.zoo import ZOO, build
from dfkd.ops.pixels import as_images
from dfkd.teacher import TeachPlan, teach

SHAPE, CLASSES = (3, 8, 8), 5
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NAYER = dfkd.NAYER(steps=1, synthesis_batch=8, batches=1, width=8, channels=4)
NOISE = dfkd.NoiseInput()


class Net(nn.Module):
    """Two convolutions and a classifier of the flattened map; subclasses write parts of it in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 16, CLASSES)

    def maps(self, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(self.b(torch.relu(self.norm(self.a(x))))), 2)

    def forward(self, x: Tensor) -> Any:
        y: Tensor = self.fc(self.maps(x).flatten(1))
        return y


class ViewByBatch(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.maps(x)
        return self.fc(x.view(x.size(0), -1))


class ViewByFeatures(Net):
    def forward(self, x: Tensor) -> Any:
        return self.fc(self.maps(x).view(-1, 6 * 16))


class ViewOfInput(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.view(x.size(0), -1).view_as(x))


class ViewOfWeight(Net):
    def maps(self, x: Tensor) -> Tensor:
        weight = self.a.weight.view(6, -1)  # weight standardisation
        weight = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 1e-5)
        return F.max_pool2d(torch.relu(self.norm(F.conv2d(x, weight.view_as(self.a.weight), padding=1))), 2)


class Permuted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LayerNorm(6)

    def maps(self, x: Tensor) -> Tensor:
        return self.layer(super().maps(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class InPlaceOnViews(Net):
    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x) + 0
        x[:, :3].mul_(2)
        x.view(x.size(0), -1)[:, ::2].add_(0.1)
        return x


class InPlaceOnInput(Net):
    def forward(self, x: Tensor) -> Any:
        x.sub_(0.1)
        return super().forward(x)


class DataOfWeights(Net):
    def forward(self, x: Tensor) -> Any:
        self.fc.weight.data = F.normalize(self.fc.weight.data, dim=1)
        return super().forward(x)


class Functional(Net):
    def maps(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            F.conv2d(x, self.a.weight, None, padding=1),
            self.norm.running_mean,
            self.norm.running_var,
            self.norm.weight,
            self.norm.bias,
            self.training,
        )
        return F.max_pool2d(F.dropout2d(F.relu(x, inplace=True), 0.2, self.training), 2)


class Strided(Net):
    """Patches by strides that hold for contiguous images only: other formats give other numbers and no error."""

    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x)
        n, c, h, w = x.shape
        return x.as_strided((n, c, h, w), (c * h * w, h * w, 1, h))


class Einsum(Net):
    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x)
        n, c, h, w = x.shape
        tokens = x.view(n, c, h * w)
        attention = torch.einsum("ncp,ncq->npq", tokens, tokens).softmax(-1)
        return torch.einsum("npq,ncq->ncp", attention, tokens).view(n, c, h, w)


class Reused(Net):
    def maps(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return F.max_pool2d(torch.relu(self.norm(self.b(torch.relu(self.norm(self.b(x)))))), 2)


class OwnHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None
        self.b.register_forward_hook(lambda module, given, made: made * 1.5)
        self.a.register_forward_pre_hook(lambda module, given: (given[0] + 0.1,))
        self.norm.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: Any, made: Tensor) -> None:
        self.last = made.detach().view(len(made), -1)

    def forward(self, x: Tensor) -> Any:
        y: Tensor = super().forward(x)
        return y if self.last is None else y + self.last.mean()


class Counts(Net):
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        self.steps += 1
        return super().forward(x) / (1 + 0.01 * self.steps)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.c.weight = self.b.weight

    def maps(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x)))
        return F.max_pool2d(torch.relu(self.c(torch.relu(self.b(x)))), 2)


class TiedByMemory(Tied):
    """Two parameters over the same numbers: another memory format would tear them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.c.weight = nn.Parameter(self.b.weight.data)


class Reshaped(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.maps(x)
        return self.fc(x.reshape(x.shape[0], -1))


class Transposed(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.maps(x)
        return (self.fc.weight @ x.view(len(x), -1).T).T + self.fc.bias


class Chunked(Net):
    def maps(self, x: Tensor) -> Tensor:
        a, b = super().maps(x).chunk(2, 1)
        x = torch.stack((a, b), 2)  # channel shuffle
        return x.view(len(x), 6, 4, 4)


class Unfolded(Net):
    def maps(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, 3, padding=1)
        x = (self.a.weight.view(6, -1) @ columns).view(len(x), 6, 8, 8)
        return F.max_pool2d(torch.relu(self.norm(x)), 2)


class Lists(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(1, 6, 1, 1)) for _ in range(2)])

    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x)
        for scale in self.scales:
            x = x * scale.expand(len(x), -1, 4, 4).contiguous().view(len(x), 6, 4, 4)
        return x


class Cached(Net):
    """A grid that is made in the first forward pass."""

    grid: Tensor

    def maps(self, x: Tensor) -> Tensor:
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.linspace(0, 1, 64).view(1, 1, 8, 8), persistent=False)
        return super().maps(x + self.grid)


class Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view(-1).sigmoid().view_as(x) * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grads[0].view(-1).view_as(x) * (s + x * s * (1 - s))


class OwnFunction(Net):
    def maps(self, x: Tensor) -> Tensor:
        return F.max_pool2d(Mish.apply(self.norm(self.a(x))), 2)


IDIOMS: tuple[type[Net], ...] = (
    Net,
    ViewByBatch,
    ViewByFeatures,
    ViewOfInput,
    ViewOfWeight,
    Permuted,
    InPlaceOnViews,
    InPlaceOnInput,
    DataOfWeights,
    Functional,
    Strided,
    Einsum,
    Reused,
    OwnHooks,
    Counts,
    Tied,
    TiedByMemory,
    Reshaped,
    Transposed,
    Chunked,
    Unfolded,
    Lists,
    Cached,
    OwnFunction,
)
# What the default settings do to these is left away.
CONTIGUOUS = {
    ViewByBatch,
    ViewByFeatures,
    ViewOfInput,
    ViewOfWeight,
    InPlaceOnViews,
    Strided,
    TiedByMemory,
    OwnHooks,
    Transposed,
    Chunked,
    Unfolded,
    OwnFunction,
}


def wrap(net: nn.Module, trains: bool = False, runtime: Runtime | None = None, **settings: Any) -> Any:
    return verify(
        net,
        runtime or Runtime(device="cpu", **settings).launch(),
        image_shape=SHAPE,
        mean=MEAN,
        std=STD,
        role="student" if trains else "teacher",
        trains=trains,
    )


def plain(net: nn.Module, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    logits: Tensor = net((images - mean) / std)
    return logits


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    net = kind()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3)
    return net


@pytest.mark.parametrize("kind", IDIOMS, ids=lambda kind: kind.__name__)
def test_logits_are_those_of_plain_pytorch_and_a_round_runs(kind: type[Net]) -> None:
    images = torch.rand(6, *SHAPE)
    with torch.no_grad():
        expected = plain(seeded(kind).eval(), images)
    teacher = seeded(kind)
    wrapped = wrap(teacher, trains=True)
    assert bool(wrapped.notes) == (kind in CONTIGUOUS), wrapped.notes
    with torch.no_grad():
        torch.testing.assert_close(wrapped.probe.eval()(images).logits, expected, rtol=1e-4, atol=1e-5)
    wrapped.probe.release()

    student = seeded(kind)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    done = dfkd.distill(
        seeded(kind),
        student,
        NOISE if kind is Functional else NAYER,
        image_size=SHAPE,
        mean=MEAN,
        std=STD,
        plan=dfkd.Plan(rounds=1, steps=2, batch_size=8),
        progress=False,
    )
    told = done.record.info.student
    assert told["channels_last"] == (kind not in CONTIGUOUS)
    assert any(not torch.equal(value, before[name]) for name, value in student.state_dict().items())
    with torch.no_grad():  # the user's own call, after the run
        assert plain(student, images).isfinite().all()


QUICK = ("wrn16-1", "resnet8", "vgg8", "lenet5-half", "alexnet-half", "shufflenetv1")
BIG = ("resnet34", "resnet50", "resnet110", "resnet116", "resnet110x2", "resnet32x4", "vgg19")


@pytest.mark.parametrize("trains", [False, True])
def test_a_trial_leaves_no_trace(trains: bool) -> None:
    runtime = Runtime(device="cpu").launch()
    for kind in (Counts, Cached, DataOfWeights, OwnHooks, Strided):
        net = seeded(kind).train()
        net.norm.eval()  # type: ignore[union-attr]
        for parameter in list(net.parameters())[::2]:
            parameter.requires_grad_(False)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
        attributes, stream = set(vars(net)), torch.get_rng_state()
        wrap(net, trains, runtime).probe.release()
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert modes == [m.training for m in net.modules()]
        assert flags == [p.requires_grad for p in net.parameters()]
        assert attributes == set(vars(net))
        assert "grid" not in dict(net.named_buffers())
        assert torch.equal(stream, torch.get_rng_state())
        assert all(p.grad is None for p in net.parameters())
        assert kind is not Counts or net.calls == 0


def test_preserved_puts_back_what_an_error_leaves() -> None:
    net = seeded(Net)
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def spoil() -> None:
        with preserving(net):
            for tensor in net.state_dict().values():
                tensor.fill_(9)
            net.get_parameter("a.weight").data = torch.zeros(1)
            raise ValueError("over")

    with pytest.raises(ValueError, match="over"):
        spoil()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ZOO if name not in BIG],
)
def test_networks_of_the_zoo_keep_every_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = ZOO[name].fixed_side or 16
    net = build(name, 10, 3).net
    monkeypatch.setattr(type(net), "__module__", "elsewhere")  # else they are not tried
    for precision in ("fp32", "bf16"):
        runtime = Runtime(device="cpu", precision=precision).launch()
        facts = dfkd.survey(net, (3, side, side))
        found = verify(
            net,
            runtime,
            image_shape=(3, side, side),
            mean=MEAN,
            std=STD,
            role="student",
            trains=True,
            head=facts.head,
            stages=facts.stages,
        )
        assert found.notes == ()
        assert found.probe.passes_gradients
        assert (found.probe.channels_last, found.probe.precision) == (True, precision)
        found.probe.release()


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = torch.ao.quantization.quantize_dynamic(build("resnet8", 5, 3).net, dtype=torch.qint8)
    return net


def normed() -> nn.Module:
    net = build("resnet8", 5, 3).net
    parametrizations.weight_norm(net.get_submodule("head"))
    return net


def hooked() -> nn.Module:
    net = build("resnet8", 5, 3).net
    net.get_submodule("stages.0").register_forward_hook(lambda module, inputs, output: output.detach())
    return net


class Transformer(Net):
    """Named as those of transformers are, and it passes no gradient."""

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(pixel_values.detach()))


def test_networks_of_the_zoo_that_were_changed_are_tried() -> None:
    assert wrap(build("resnet8", 5, 3).net).probe.passes_gradients
    assert wrap(normed()).probe.passes_gradients
    for kind in (quantized, hooked, lambda: LogitsOnly(Transformer())):
        found = wrap(kind())
        assert not found.probe.passes_gradients
        assert any("passes no gradient to its images" in note for note in found.notes)
        found.probe.release()


def test_a_changed_teacher_of_the_zoo_is_refused_by_what_needs_its_gradient() -> None:
    with pytest.raises(dfkd.UserError, match="CMI needs a teacher"):
        dfkd.distill(
            quantized(), build("resnet8", 5, 3), dfkd.CMI(), image_size=SHAPE, mean=MEAN, std=STD, progress=False
        )


class Volume(Net):
    """A convolution over channels, which lie in a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Conv3d(1, 1, 3, padding=1)

    def maps(self, x: Tensor) -> Tensor:
        return super().maps(self.deep(x[:, None])[:, 0])


def test_weights_of_five_dimensions_are_taken() -> None:
    done = distil(seeded(Volume), seeded(Volume))
    assert (done.record.info.teacher["notes"], done.record.info.student["notes"]) == ([], [])


class NeedsFloat(Net):
    """Maps are copied into a float32 tensor of its own, which autocast does not convert."""

    def maps(self, x: Tensor) -> Tensor:
        x = super().maps(x)
        order = torch.tensor([1, 0, 2, 3, 5, 4])
        return torch.zeros(len(x), 6, 4, 4).index_copy_(1, order, x)


def test_what_bfloat16_breaks_runs_in_float32() -> None:
    found = wrap(seeded(NeedsFloat), trains=True, precision="bf16")
    assert (found.probe.precision, found.probe.channels_last) == ("fp32", True)
    (note,) = found.notes
    assert note.startswith("student: float32; in bfloat16, it fails with RuntimeError")


class Branches(Net):
    """What depends on the values of tensors cannot be one compiled graph."""

    def forward(self, x: Tensor) -> Any:
        x = self.maps(x)
        return self.fc((x if float(x.detach().mean()) < 100 else x * 2).flatten(1))


def test_what_cannot_be_compiled_is_not() -> None:
    net = seeded(Branches)
    runtime = Runtime(device="cpu", compile=True, backend="eager")
    done = dfkd.distill(
        seeded(Net),
        net,
        NAYER,
        image_size=SHAPE,
        mean=MEAN,
        std=STD,
        plan=dfkd.Plan(rounds=1, steps=1, batch_size=8),
        progress=False,
        runtime=runtime,
    )
    info = done.record.info
    assert info.provenance["compile"] is False
    assert runtime.compiled
    assert info.teacher["notes"] == []
    assert "student: nothing is compiled; with torch.compile, it fails with " in str(info.student["notes"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted_for_the_run_and_the_teacher_gets_its_own_back(dtype: torch.dtype) -> None:
    teacher = seeded(Net).to(dtype)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    done = distil(teacher, seeded(Net))
    name = str(dtype).removeprefix("torch.")
    assert done.record.info.teacher["notes"] == [
        f"the teacher's weights are converted from {name} to float32 for the run"
    ]
    after = teacher.state_dict()
    assert all(after[key].dtype == value.dtype and torch.equal(after[key], value) for key, value in before.items())


def distil(teacher: nn.Module, student: nn.Module, **more: Any) -> dfkd.Distilled:
    return dfkd.distill(
        teacher,
        student,
        NAYER,
        image_size=SHAPE,
        mean=MEAN,
        std=STD,
        plan=dfkd.Plan(rounds=1, steps=1, batch_size=8),
        **{"progress": False, **more},
    )


def test_weights_come_back_in_plain_format_and_what_was_left_away_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = seeded(ViewByBatch), seeded(Net)
    distil(teacher, student, progress=True, out=tmp_path / "run", figures=False)
    for net in (teacher, student):
        assert all(p.is_contiguous() for p in net.parameters())
    printed = capsys.readouterr().out
    assert printed.count("note: teacher: contiguous memory format; in channels-last, it fails with") == 1
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "contiguous" in stored["info"]["teacher"]["notes"][0]
    assert stored["info"]["student"]["notes"] == []


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a pair of networks that flatten with ``view``, and of images of theirs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    weights = tmp_path / "own.pt"
    torch.save(seeded(ViewByBatch).state_dict(), weights)
    pair = ["--teacher", "test_verify:ViewByBatch", "--teacher.weights", str(weights)]
    pair += ["--student", "test_verify:ViewByFeatures"]
    size = ["--data.image_size", "3,8,8", "--data.classes", "5"]
    size += ["--data.mean", "0.5,0.4,0.3", "--data.std", ".25,.2,.3"]
    small = ["--method.steps", "1", "--method.synthesis_batch", "8", "--method.batches", "1", "--method.width", "8"]
    small += ["--method.channels", "4", "--plan.rounds", "1", "--plan.steps", "1", "--plan.batch_size", "8"]
    return [*pair, *size, *small]


def test_teach_and_evaluate_take_them_too(tmp_path: Path, own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8)
    labels = torch.arange(40) % CLASSES
    net = seeded(ViewByBatch)
    done = teach(net, images, labels, TeachPlan(epochs=1, batch_size=20), mean=MEAN, std=STD, test=(images, labels))
    assert done.net is net
    assert all(p.is_contiguous() for p in net.parameters())
    assert len(done.notes) == 1

    weights, data = tmp_path / "taught.pt", tmp_path / "test.npz"
    torch.save(net.state_dict(), weights)
    np.savez(data, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    capsys.readouterr()
    network = ["--network", "test_verify:ViewByBatch", "--network.weights", str(weights)]
    assert main(["evaluate", *network, *own[6:14], "--data.test", str(data), "--json"]) == 0
    said = capsys.readouterr()
    with torch.no_grad():
        right = plain(net, as_images(images)).argmax(1) == labels
    assert json.loads(said.out)["accuracy"] == pytest.approx(float(right.float().mean()))
    assert "note: network: contiguous memory format" in said.err


@pytest.mark.slow
def test_every_command_takes_them(tmp_path: Path, own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["distill", *own, "--out", run]) == 0
    assert "note: teacher: contiguous memory format" in capsys.readouterr().out
    assert main(["plot", run]) == 0
    assert main(["bench", *own, "--rounds", "1"]) == 0
    assert main(["synthesize", *own, "--count", "4", "--out", str(tmp_path / "made")]) == 0
