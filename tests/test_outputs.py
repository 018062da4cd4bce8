"""What a classifier may return, and what is said of networks that cannot be distilled or are sick."""

import json
import threading
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.engine.anatomy import survey
from dfkd.errors import UserError
from dfkd.nets.count import count_macs
from dfkd.nets.outputs import as_logits, class_rows, tensor_of
from dfkd.nets.tail import find_tail
from dfkd.teacher import TeachPlan, teach

SHAPE = (3, 8, 8)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NAYER = dfkd.NAYER(steps=1, synthesis_batch=8, batches=1, width=8, channels=4)
STTS = dfkd.STTS(steps=2, synthesis_batch=8, batches=1)
Outputs = namedtuple("Outputs", ["logits", "aux"])
Make = Callable[[Tensor], object]


class Net(nn.Module):
    """A convolution, BatchNorm, pooling and a linear classifier."""

    def __init__(self, classes: int = 5, width: int = 6) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)

    def logits(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y

    def forward(self, x: Tensor) -> Any:
        return self.logits(x)


class Returning(Net):
    def __init__(self, make: Make, classes: int = 5, train: Make | None = None) -> None:
        super().__init__(classes)
        self.make, self.make_in_training = make, train or make

    def forward(self, x: Tensor) -> Any:
        return (self.make_in_training if self.training else self.make)(self.logits(x))


class One(Net):
    def __init__(self) -> None:
        super().__init__(1)


def trained_like(net: nn.Module) -> nn.Module:
    stream = torch.Generator().manual_seed(1)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=stream)
    return net


def distil(teacher: nn.Module, student: nn.Module, method: Any = NAYER, **more: Any) -> dfkd.Distilled:
    plan = dfkd.Plan(rounds=1, steps=1, batch_size=8, warmup=int(method is STTS))
    settings: dict[str, Any] = {"image_size": SHAPE, "mean": MEAN, "std": STD, "plan": plan, "progress": False}
    return dfkd.distill(teacher, student, method, **{**settings, **more})


LOGITS = torch.tensor([[1.0, -2.0, 0.5], [30.0, 0.0, -30.0]])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, LOGITS + 1),
        [LOGITS],
        Outputs(LOGITS, None),
        {"logits": LOGITS, "hidden": LOGITS},
        {"out": LOGITS},
        LOGITS[:, :, None, None],
    ],
)
def test_the_logits_in_an_output(output: object) -> None:
    assert torch.equal(tensor_of(output), LOGITS)


@pytest.mark.parametrize("output", [{"a": LOGITS, "b": LOGITS}, None, "x", (), ("a", LOGITS), LOGITS[None], [None]])
def test_outputs_without_logits(output: object) -> None:
    with pytest.raises(TypeError):
        tensor_of(output)


def test_every_kind_of_output_gives_the_same_distribution() -> None:
    expected = LOGITS.double().softmax(1)
    for kind, output in (("probabilities", LOGITS.softmax(1)), ("log-probabilities", LOGITS.log_softmax(1))):
        torch.testing.assert_close(as_logits(output, kind).double().softmax(1), expected, rtol=1e-5, atol=1e-8)  # type: ignore[arg-type]
    z = torch.tensor([-12.0, -0.1, 0.0, 3.0])
    expected = torch.stack((torch.sigmoid(-z), torch.sigmoid(z)), 1)
    for kind, output in (("one logit", z), ("one probability", torch.sigmoid(z)[:, None])):
        torch.testing.assert_close(as_logits(output, kind).softmax(1), expected, rtol=2e-2, atol=1e-6)  # type: ignore[arg-type]
    assert torch.equal(as_logits(z, "one logit").argmax(1), torch.tensor([0, 0, 0, 1]))
    w, f = torch.randn(1, 7), torch.randn(4, 7)
    torch.testing.assert_close(F.linear(f, class_rows(w)), as_logits(F.linear(f, w), "one logit"))


KINDS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "probabilities": (lambda z: z.softmax(1), 5),
    "log-probabilities": (lambda z: F.log_softmax(z, dim=1), 5),
    "one logit": (lambda z: z, 1),
    "one probability": (lambda z: torch.sigmoid(z).squeeze(1), 1),
    "logits": (lambda z: {"logits": z}, 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_survey_tells_what_is_returned_and_a_run_takes_it(kind: str) -> None:
    make, width = KINDS[kind]
    teacher, student = trained_like(Returning(make, width)), Returning(make, width)
    found = survey(teacher, SHAPE)
    assert (found.outputs, found.classes, found.head) == (kind, max(width, 2), "fc")
    assert bool(found.notes) == (kind != "logits")
    for method in (NAYER, STTS):
        done = distil(teacher, student, method)
        assert 0 < done.record.rounds[-1].metrics["loss/student"] < 100
    mixed = distil(teacher, Net(max(width, 2)))  # the student's own outputs may be of another kind
    assert mixed.record.info.classes == max(width, 2)


def probabilities(classes: int, channels: int) -> nn.Module:
    return Returning(KINDS["probabilities"][0], 5)


def one_logit(classes: int, channels: int) -> nn.Module:
    return Returning(KINDS["one logit"][0], 1)


def mapping(classes: int, channels: int) -> nn.Module:
    return Returning(KINDS["logits"][0], 5)


@pytest.mark.parametrize("make", [probabilities, one_logit, mapping])
@pytest.mark.parametrize("network", ["by name", "student.pt2"])
def test_a_loaded_student_answers_as_the_run_read_it(
    make: Callable[[int, int], nn.Module], network: str, tmp_path: Path
) -> None:
    student = make(5, 3)
    done = distil(trained_like(make(5, 3)), student, out=tmp_path / "run", figures=False)
    x = torch.rand(6, *SHAPE)
    normalised = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    raw = tensor_of(student.eval()(normalised)).detach()
    expected = {"probabilities": raw, "mapping": raw.softmax(1)}.get(make.__name__)
    if expected is None:
        expected = torch.cat((torch.sigmoid(-raw), torch.sigmoid(raw)), 1)
    name = f"{__name__}:{make.__name__}" if network == "by name" else network
    predictions = dfkd.load(tmp_path / "run", name).predict(x)
    torch.testing.assert_close(predictions.probabilities, expected, rtol=1e-4, atol=1e-5)
    assert len(predictions.names) == 6
    assert predictions.probabilities.shape[1] == done.record.info.classes


class Locked(Net):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_student_that_cannot_be_copied_is_kept_without_a_program(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"^the student was not exported to student.pt2: cannot pickle"):
        distil(trained_like(Net()), Locked(), out=tmp_path / "run", figures=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert (tmp_path / "run" / "student.safetensors").is_file()


def test_small_logits_are_no_probabilities() -> None:
    net = Net(2)
    nn.init.constant_(net.fc.weight, 0)
    nn.init.constant_(net.fc.bias, 0.4)
    assert survey(net, SHAPE, role="student").outputs == "logits"
    assert survey(Returning(lambda z: z * 0 + 0.3, 1), SHAPE, role="student").outputs == "one logit"


def test_several_sigmoids_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^teacher needs .* exclude each other, got 5 sigmoids .*; return what"):
        distil(Returning(torch.sigmoid), Net())


def test_stts_models_the_units_before_a_softmax() -> None:
    plain = trained_like(Net()).eval()
    soft = Returning(lambda z: z.softmax(1)).eval()
    soft.load_state_dict(plain.state_dict())
    units = torch.randn(6, 5)
    expected = find_tail(plain, SHAPE)(units).softmax(1)
    torch.testing.assert_close(find_tail(soft, SHAPE)(units).softmax(1), expected)
    one = find_tail(trained_like(One()).eval(), SHAPE)
    assert one(torch.randn(6, 1)).shape == (6, 2)


def binary_images(n: int = 240) -> tuple[Tensor, Tensor]:
    """Bright or dark images, uint8."""
    labels = torch.arange(n) % 2
    pixels = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.5 * labels.view(-1, 1, 1, 1)
    return (pixels * 255).to(torch.uint8), labels


def test_a_binary_teacher_teaches_a_binary_student() -> None:
    images, labels = binary_images()
    torch.manual_seed(0)
    teacher = One()
    done = teach(teacher, images, labels, TeachPlan(epochs=8, batch_size=40), mean=MEAN, std=STD, test=(images, labels))
    assert (done.accuracy or 0) > 0.95
    for student in (One(), Net(2)):
        result = distil(
            teacher,
            student,
            dfkd.NAYER(steps=10, synthesis_batch=40, batches=1, width=16, channels=8),
            classes=["dark", "bright"],
            text="index",
            plan=dfkd.Plan(rounds=6, warmup=1, steps=20, batch_size=40, lr=0.1),
            test=(images, labels),
        )
        assert (result.accuracy or 0) > 0.9
        assert result.record.info.names == ("dark", "bright")
        normalised = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            output = result.student(normalised)
        guess = output.flatten() > 0 if output.shape[1] == 1 else output.argmax(1) == 1
        assert float((guess == (labels == 1)).float().mean()) == pytest.approx(result.accuracy, abs=0.01)


def test_a_binary_pair_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    weights, test = tmp_path / "one.pt", tmp_path / "test.npz"
    torch.save(trained_like(One()).state_dict(), weights)
    images, labels = binary_images(20)
    np.savez(test, images=images.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    size = ["--data.image_size", "3,8,8", "--data.classes", "dark,bright", "--text.encoder", "index"]
    size += ["--data.mean", "0.5,0.4,0.3", "--data.std", ".25,.2,.3"]
    small = ["--method.steps", "1", "--method.synthesis_batch", "8", "--method.batches", "1", "--method.width", "8"]
    small += ["--method.channels", "4", "--plan.rounds", "1", "--plan.steps", "1", "--plan.batch_size", "8"]
    pair = ["--teacher", "test_outputs:One", "--teacher.weights", str(weights), "--student", "test_outputs:One"]
    run = tmp_path / "run"
    assert main(["distill", *pair, *size, *small, "--out", str(run)]) == 0
    program = torch.export.load(run / "student.pt2").module()
    assert program(images[:3] / 255).shape == (3, 1)  # the student's own interface
    capsys.readouterr()
    network = ["--network", "test_outputs:One", "--network.weights", str(weights)]
    assert main(["evaluate", *network, *size[:4], *size[6:], "--data.test", str(test), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20
    assert main(["inspect", *pair[:4], *size]) == 0


# ---- what raises is told --------------------------------------------------------------------------------------------


class Asserts(Net):
    def forward(self, x: Tensor) -> Any:
        assert x.shape[-1] == 224, "Input height doesn't match model (224)."
        return super().forward(x)


class TwoInputs(Net):
    def forward(self, x: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x)


class FailsInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            raise KeyError("target")
        return super().forward(x)


def lazy() -> nn.Module:
    body = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(body, nn.Flatten(), nn.LazyLinear(5))


def exported() -> nn.Module:
    program = torch.export.export(Net().eval(), (torch.rand(2, *SHAPE),), dynamic_shapes=({0: torch.export.Dim("b")},))
    return program.module()


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    return net


class Scripted(Net):
    """A network of Python code with one scripted layer."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first = torch.jit.script(nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.first(x))


class WithoutGradients(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "assert": (Asserts, Net, "teacher needs images it can take, got 3x8x8 .*AssertionError: Input height"),
    "two inputs": (TwoInputs, Net, "teacher needs images .*mask.*; wrap it so that it takes one batch of images$"),
    "no logits": (lambda: Returning(lambda z: None), Net, "teacher needs to return logits .*, got NoneType without"),
    "train mode": (
        Net,
        FailsInTraining,
        "student needs to run .* on 4 images in train mode, got KeyError",
    ),
    "another type": (Net, lambda: Returning(lambda z: z, train=lambda z: {}), "student needs to run .* in train mode"),
    "TorchScript": (scripted, Net, "teacher needs to be a network of Python code, got TorchScript"),
    "a scripted layer": (Net, Scripted, "student needs to be a network of .*, got TorchScript in its layer 'first'"),
    "no gradient": (Net, WithoutGradients, "student needs weights that learn, got a network that passes no gradient"),
    "exported": (exported, Net, "teacher needs to be a network of Python code, got an exported program"),
    "lazy": (lazy, Net, "teacher needs weights, got lazy layers"),
    "NaN": (lambda: Returning(lambda z: z / 0 * 0), Net, "teacher needs finite logits, got NaN"),
    "constant": (lambda: Returning(lambda z: z * 0 + 1), Net, "teacher needs logits that depend on the image, got the"),
    "integers": (lambda: Returning(lambda z: z.argmax(1)), Net, "teacher needs to return logits .*, got torch.int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_distilled_is_told_in_one_sentence(case: str, tmp_path: Path) -> None:
    teacher, student, said = REFUSED[case]
    with pytest.raises(UserError, match=f"^{said}") as caught:
        distil(teacher(), student(), out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Net()
        nn.utils.weight_norm(net.conv)
        nn.utils.spectral_norm(net.fc)
    return net


class Quantizer(nn.Module):
    """Eight levels, straight-through."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, weight: Tensor) -> Tensor:
        scaled = weight / self.scale
        levels = scaled + (scaled.round().clamp(-4, 3) - scaled).detach()
        return levels * self.scale


class QuantConv(nn.Conv2d):
    """A convolution that passes its own parameter to a submodule, as layers for quantization-aware training do."""

    def __init__(self, into: int, out: int, side: int, padding: int) -> None:
        super().__init__(into, out, side, padding=padding)
        self.quantizer = Quantizer()

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantizer(self.weight), self.bias)


def fake_quantized() -> nn.Module:
    net = Net()
    net.conv = QuantConv(3, 6, 3, padding=1)
    return net


WORKS: dict[str, Callable[[], nn.Module]] = {
    "old weight_norm": old_weight_norm,
    "fake-quantized": fake_quantized,
    "tuple in train mode": lambda: Returning(lambda z: z, train=lambda z: Outputs(z, z)),
    "lazy": lazy,
}


@pytest.mark.parametrize("case", WORKS)
def test_students_that_go_through_the_whole_run(case: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated.*|.*not exported.*")
        done = distil(trained_like(Net()), WORKS[case](), out=tmp_path / "run", figures=True)
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert done.record.info.student["macs"] > 0  # type: ignore[operator]


class Uncountable(Net):
    def forward(self, x: Tensor) -> Any:
        from torch.utils._python_dispatch import _get_current_dispatch_mode

        if _get_current_dispatch_mode() is not None:
            raise RuntimeError("no modes here")
        return super().forward(x)


def test_a_count_that_fails_stops_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert count_macs(Uncountable(), SHAPE) is None
    done = distil(trained_like(Net()), Uncountable(), out=tmp_path / "run", export=False, progress=True)
    assert done.record.info.student["macs"] is None
    assert count_macs(fake_quantized(), SHAPE) == count_macs(Net(), SHAPE)


# ---- sick before the first round ------------------------------------------------------------------------------------


def test_statistics_of_fresh_layers_are_told() -> None:
    (note,) = distil(Net(), Net()).record.info.teacher["notes"]  # type: ignore[misc]
    assert str(note).startswith("teacher: its BatchNorm statistics are those of layers that never saw an image")  # type: ignore[has-type]
    assert distil(trained_like(Net()), Net()).record.info.teacher["notes"] == []


def test_a_teacher_that_passes_no_gradient_is_told() -> None:
    found = distil(Returning(lambda z: z.detach()), Net(), dfkd.NoiseInput()).record.info.teacher["notes"]
    assert "teacher: passes no gradient to its images" in str(found)


def test_nothing_is_made_of_a_teacher_that_passes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Returning(lambda z: z.detach())
    monkeypatch.setattr("dfkd.engine.heldout.affordable", lambda plan, classes: True)  # as in a long run
    estimates = [distil(net, Net(), dfkd.NoiseInput()).record.rounds[-1].estimate for net in (Net(), teacher)]
    assert [bool(estimate and estimate.sets) for estimate in estimates] == [True, False]
    sentence = (
        r"^estimate needs a teacher that passes gradients to its images, got Returning, .*; give test images instead"
    )
    for asked in ({"estimate": True}, {"patience": 2}):
        with pytest.raises(UserError, match=sentence):
            distil(teacher, Net(), dfkd.NoiseInput(), **asked)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_are_finite(value: float) -> None:
    with pytest.raises(UserError, match=r"^NAYER needs finite settings, got alpha_bn="):
        dfkd.NAYER(alpha_bn=value)


@pytest.mark.parametrize("method", [dfkd.NAYER, dfkd.D3K, dfkd.CMI, dfkd.SpaceshipNet])
def test_generators_with_batchnorm_want_two_images(method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"needs synthesis_batch of at least 2 .*, got 1; change"):
        method(synthesis_batch=1)


def test_a_dynamically_quantized_teacher_is_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(trained_like(Net()).eval(), {nn.Linear}, dtype=torch.qint8)
    notes = str(distil(net, Net(), dfkd.NoiseInput()).record.info.teacher["notes"])
    assert "teacher: passes no gradient to its images" in notes
    assert "teacher: BatchNorm is not read; with it, gradients reach its images which its logits do not pass" in notes
    with pytest.raises(
        UserError, match=r"^NAYER needs a teacher that passes gradients to its images, got .*fit: NoiseInp"
    ):
        distil(net, Net(), NAYER)
