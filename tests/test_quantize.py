"""Quantized students: the quantizer against loops, whole small runs, exact resume, refusals that name the layer."""

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd.cli.main import main
from dfkd.deploy.quantize import _warn_of_loss
from dfkd.deploy.stages import Stage, StageMeter
from dfkd.engine.records import Observer
from dfkd.nets.quantized import Bits, quantized_bytes, with_quantizers
from dfkd.nets.ranges import Largest, check_ranges, freeze_ranges, ranges_of

needs_brevitas = pytest.mark.skipif(
    importlib.util.find_spec("brevitas") is None, reason="the extra quant is not installed: brevitas"
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

DIGITS: dict[str, Any] = {
    "image_size": (1, 8, 8),
    "mean": (0.3053,),
    "std": (0.3759,),
    "classes": 10,
    "figures": False,
    "quiet": True,
    "device": "cpu",
}


def method() -> dfkd.NAYER:
    return dfkd.NAYER(steps=1, synthesis_batch=64, batches=2, warmup_batches=2, width=8, channels=4, pad=1)


def plan(rounds: int = 2) -> dfkd.Plan:
    return dfkd.Plan(rounds=rounds, warmup=1, steps=2, batch_size=16, lr=0.01)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def zaq(values: Any, low: float, high: float, bits: int) -> Any:
    """ZAQ's quantizer for one range, from its formulas: scale, integer zero point, rounding, clamping."""
    scale = (2**bits - 1) / (high - low)
    zero = np.rint(scale * low) + 2 ** (bits - 1)
    codes = np.clip(np.rint(scale * values - zero), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes + zero) / scale


@needs_brevitas
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_quantizers_are_those_of_zaq(bits: int) -> None:
    net: Any = with_quantizers(small(), Bits(bits, bits))
    kernel = net[0].weight.detach().double().numpy()
    wanted = np.stack([zaq(channel, channel.min(), channel.max(), bits) for channel in kernel])
    np.testing.assert_allclose(net[0].quant_weight().value.detach().numpy(), wanted, atol=1e-6)
    rectifier = net[2].train()
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    values = x.clamp(min=0).double().numpy()
    found = rectifier(x).detach().numpy()
    wanted = zaq(values, 0.0, values.max(), bits)
    ties = np.abs((values * (2**bits - 1) / values.max()) % 1 - 0.5) < 1e-4  # which way rounding goes there is chance
    np.testing.assert_allclose(found[~ties], wanted[~ties], atol=1e-5)
    assert len(np.unique(found)) <= 2**bits


@needs_brevitas
def test_gradients_pass_the_rounding_unchanged() -> None:
    layer: Any = with_quantizers(nn.Sequential(nn.Linear(6, 3), nn.ReLU()), Bits(2, 2)).train()
    x = torch.randn(4, 6, requires_grad=True)
    out = layer[0](x)
    out.sum().backward()
    weight: Any = layer[0].weight
    torch.testing.assert_close(weight.grad, x.detach().sum(0).expand(3, 6))
    y = torch.randn(4, 3, requires_grad=True)
    layer[1](y).sum().backward()
    torch.testing.assert_close(y.grad, (y > 0).float())


@needs_brevitas
def test_ranges_grow_in_training_and_never_when_looked_at() -> None:
    net = with_quantizers(small(), Bits(4, 4))
    ((name, found),) = ranges_of(net)
    assert name == "2"
    x = torch.rand(3, 1, 8, 8)
    net.eval()(10 * x)
    assert float(found.largest) == 0
    net.train()(x)
    first = float(found.largest)
    assert first > 0
    net.eval()(100 * x)
    net.train()(0.1 * x)
    assert float(found.largest) >= first
    freeze_ranges(net)
    before = float(found.largest)
    net.train()(1000 * torch.randn(3, 1, 8, 8))
    assert float(found.largest) == before


@needs_brevitas
def test_the_network_itself_is_left_alone_and_a_copy_is_smaller() -> None:
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copy = with_quantizers(net, Bits(4, 8))
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    conv, linear, rest = 4 * 9, 10 * 256, sum(t.numel() * t.element_size() for n, t in before.items() if t.dim() < 2)
    assert quantized_bytes(copy, Bits(4, 8)) == (conv + linear) // 2 + 5 * 14 + rest + 4  # + the range


@needs_brevitas
def test_a_module_under_several_paths_is_quantized_at_all_of_them_and_counted_once() -> None:
    shared, rectifier = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    once = nn.Sequential(nn.Conv2d(1, 4, 3), rectifier, shared, rectifier, *head)
    twice = nn.Sequential(nn.Conv2d(1, 4, 3), rectifier, shared, rectifier, shared, rectifier, *head)
    copy: Any = with_quantizers(twice, Bits(4, 4))
    assert copy[2] is copy[4]
    assert copy[1] is copy[3] is copy[5]
    assert type(copy[1]) is not nn.ReLU
    assert type(copy[4]) is not nn.Conv2d
    assert quantized_bytes(copy, Bits(4, 4)) == quantized_bytes(with_quantizers(once, Bits(4, 4)), Bits(4, 4))
    shift = copy.train()(torch.rand(2, 1, 8, 8)).sum()
    shift.backward()
    assert copy[4].weight.grad.abs().sum() > 0


@needs_brevitas
def test_a_weight_that_two_layers_share_is_counted_once() -> None:
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    tied[2].weight = tied[0].weight
    one = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU())
    assert quantized_bytes(with_quantizers(tied, Bits(4, 4)), Bits(4, 4)) == quantized_bytes(
        with_quantizers(one, Bits(4, 4)), Bits(4, 4)
    )


class Odd(nn.Module):
    """A layer with a weight that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


def test_bits_are_read_or_refused() -> None:
    assert Bits.parse("w4a8") == Bits(4, 8)
    assert str(Bits(4, 8)) == "W4A8"
    for text in ("W1A4", "W4", "W9A9", "4", ""):
        with pytest.raises(dfkd.UserError, match="bits such as W4A4"):
            Bits.parse(text)


@needs_brevitas
def test_what_has_no_quantizer_is_named() -> None:
    with pytest.raises(dfkd.UserError, match=r"the layer '1.0' \(Odd\) with the weight 'kernel'"):
        with_quantizers(nn.Sequential(nn.ReLU(), nn.Sequential(Odd())), Bits(4, 4))
    with pytest.raises(dfkd.UserError, match=r"got the network itself \(Odd\) with the weight 'kernel'"):
        with_quantizers(Odd(), Bits(4, 4))
    with pytest.raises(dfkd.UserError, match="ReLU or ReLU6 modules"):
        with_quantizers(nn.Sequential(nn.Linear(3, 3), nn.GELU()), Bits(4, 4))


@needs_brevitas
def test_scales_that_are_not_finite_are_refused() -> None:
    net: Any = with_quantizers(small(), Bits(4, 4))
    ((_, found),) = ranges_of(net)
    check_ranges(net)
    found.largest.fill_(float("nan"))
    with pytest.raises(dfkd.UserError, match="finite scales, got a range of nan after the layer '2'"):
        check_ranges(net)
    found.largest.fill_(1)
    with torch.no_grad():
        net[4].weight[0, 0] = float("inf")
    with pytest.raises(dfkd.UserError, match=r"the weight '4.weight'"):
        check_ranges(net)


def test_without_the_package_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(dfkd.UserError, match="brevitas, got none installed; run `pip install"):
        dfkd.quantize(small(), "W4A4", method(), plan=plan(), **DIGITS)


@needs_brevitas
def test_too_few_images_are_refused(digits_teacher: nn.Module) -> None:
    few = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(dfkd.UserError, match="at least 64 images to calibrate on, got 20"):
        dfkd.quantize(digits_teacher, "W4A4", method(), images=few, plan=plan(), **DIGITS)


def counting_images(looks: list[int]) -> Callable[..., Stage]:
    """``StageMeter._stage`` that notes on how many synthetic images it measures."""
    stage = StageMeter._stage

    def look(self: StageMeter, *args: Any) -> Stage:
        looks.append(len(args[-1]))
        return stage(self, *args)

    return look


@needs_brevitas
def test_a_whole_run_reports_three_stages_and_loads_again(
    digits_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = dfkd.build("wrn16-1", 10, 1)
    teacher.net.load_state_dict(digits_teacher.state_dict())
    out = tmp_path / "q"
    images = dfkd.read_images("digits", "train").images[:200]
    looks: list[int] = []
    monkeypatch.setattr(StageMeter, "_stage", counting_images(looks))
    done = dfkd.quantize(
        teacher, "W8A8", method(), images=images, calibration=64, plan=plan(), out=out, test="digits", **DIGITS
    )
    assert [stage.name for stage in done.stages] == ["fp32", "calibrated", "trained"]
    fp32, calibrated, trained = done.stages
    assert looks == [64, 64, 64]
    test = dfkd.read_images("digits")
    assert fp32.agreement == fp32.synthetic_agreement == 1
    assert calibrated.agreement is not None
    assert calibrated.agreement > 0.98  # eight bits on real digits lose little
    assert trained.bytes == calibrated.bytes < fp32.bytes / 3
    assert not any(found.growing for _, found in ranges_of(done.student))
    again = dfkd.load(out)
    names, _ = again.predict(test.images)
    found = sum(int(name) == label for name, label in zip(names, test.labels.tolist(), strict=True)) / len(names)
    assert found == pytest.approx(trained.accuracy)
    record = json.loads((out / "quantize.json").read_text())
    assert [row["name"] for row in record["stages"]] == ["fp32", "calibrated", "trained"]
    assert json.loads((out / "student.json").read_text())["network"]["bits"] == "W8A8"
    assert main(["evaluate", str(out), "--data.test", "digits", "--runtime.device", "cpu"]) == 0


def test_training_that_loses_what_calibrating_reached_is_told() -> None:
    fp32, calibrated = Stage("fp32", None, None, 1.0, 9), Stage("calibrated", None, None, 0.9, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _warn_of_loss((fp32, calibrated, Stage("trained", None, None, 0.95, 3)))
        with pytest.raises(UserWarning, match=r"on 50.0% of the synthetic images, after calibrating alone on 90.0%"):
            _warn_of_loss((fp32, calibrated, Stage("trained", None, None, 0.5, 3)))


@needs_brevitas
def test_a_recipe_says_the_bits_and_the_rest_is_put_over_it(
    digits_teacher: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    torch.save(digits_teacher.state_dict(), tmp_path / "teacher.pt")
    words = ["quantize", str(tmp_path / "teacher.pt"), "--recipe", "nayer/digits-wrn16-2-w3a3", "--teacher", "wrn16-1"]
    short = "--calibration 64 --method.steps 1 --method.synthesis_batch 64 --method.width 8 --method.channels 4"
    plan = "--plan.rounds 1 --plan.warmup 1 --plan.steps 1 --plan.batch_size 8 --watch.quiet --json"
    words += [*short.split(), *plan.split()]
    words += ["--watch.figures", "false", "--watch.export", "false", "--runtime.device", "cpu"]
    assert main([*words, "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bits"] == "W3A3"
    assert told["stages"][0]["accuracy"] > 0.9  # the recipe names the test images
    assert json.loads((out / "student.json").read_text())["network"]["bits"] == "W3A3"
    assert main([*words, "--bits", "W1A1"]) == 2
    assert "quantize needs bits such as W4A4, 2 to 8 of each, got 'W1A1'" in capsys.readouterr().err


@needs_brevitas
def test_a_quantized_student_resumes_exactly(digits_teacher: nn.Module, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"calibration": 64, "plan": plan(), "save_every": 0.0, **DIGITS}
    digits_teacher.train().requires_grad_(True)
    whole = dfkd.quantize(digits_teacher, "W4A4", method(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        dfkd.quantize(digits_teacher, "W4A4", method(), out=tmp_path / "cut", observers=[Saved()], **settings)
    rest = dfkd.quantize(digits_teacher, "W4A4", method(), out=tmp_path / "cut", resume=True, **settings)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, rest.student.state_dict()[name]), name
    assert rest.stages == whole.stages  # measured on the same images, which the resume found in the folder
    again = dfkd.quantize(digits_teacher, "W4A4", method(), out=tmp_path / "cut", resume=True, **settings)
    assert again.stages == whole.stages  # of a run that had finished
    assert not [path for folder in ("whole", "cut") for path in (tmp_path / folder).glob("quantize-images*")]
    assert any(isinstance(module, Largest) for module in rest.student.modules())
    assert all(parameter.requires_grad for parameter in digits_teacher.parameters())
    assert all(module.training for module in digits_teacher.modules())
    with pytest.raises(dfkd.UserError, match=r"quantize.json of a run of `dfkd quantize`"):
        dfkd.quantize(digits_teacher, "W4A4", method(), out=tmp_path / "new", resume=True, **settings)


class Saved(Observer):
    """Stops when the third round begins its student steps: two rounds lie on the disk."""

    def stepped(self, round: int, phase: str, done: int, total: int) -> None:
        if round == 2:
            raise KeyboardInterrupt
