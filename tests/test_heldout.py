"""The estimate without test images: exact numbers, nothing trained differently, a good student told from a bad one."""

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import Tensor, nn

import dfkd
from dfkd.data.readers import STATISTICS, read_images
from dfkd.engine.heldout import affordable, agreement_on, make_gauge, signals_of
from dfkd.engine.invert import inverted_images
from dfkd.engine.probe import Probe
from dfkd.engine.records import Agreement, Estimate, Keep, RoundRecord
from dfkd.ops.pixels import as_images
from dfkd.report.files import read_rounds, record_from, record_line
from dfkd.report.without_test import agreement_rows, estimate_sentence, short_estimate
from dfkd.settings import Images, Watching
from settings import SETTINGS, mostly_slow, tiny_task

MEAN, STD = STATISTICS["digits"]
METHOD = dfkd.NAYER(steps=2, synthesis_batch=20, batches=1, warmup_batches=1, width=8, channels=4, pad=1, flip=False)
PLAN = dfkd.Plan(rounds=2, warmup=1, steps=2, batch_size=16)


class Fixed(nn.Module):
    """Logits that are the first pixels: what it chooses, and how surely, is written into the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 4 * self.scale


def test_agreement_and_calibration_are_those_of_a_loop() -> None:
    probe = Probe(Fixed(), mean=(0.0,), std=(1.0,), channels_last=False).freeze()
    images = torch.randint(0, 256, (300, 1, 2, 2), dtype=torch.uint8)
    chosen = torch.randint(0, 3, (300,))
    found = agreement_on(probe, images, chosen, 4)
    p = torch.softmax(probe(as_images(images)).logits, dim=1)
    right = p.argmax(1) == chosen
    assert found.agreement == pytest.approx(float(right.double().mean()))
    assert found.low < found.agreement < found.high
    for k in range(3):
        assert found.class_agreement[k] == pytest.approx(float(right[chosen == k].double().mean()))
    assert math.isnan(found.class_agreement[3])
    confidence = p.amax(1).double().detach().numpy()
    share, mean = calibration_curve(right.numpy(), confidence, n_bins=10)
    place = (confidence * 10).astype(int).clip(max=9)
    sizes = [int((place == b).sum()) for b in sorted(set(place.tolist()))]
    gap = sum(n * abs(a - b) for n, a, b in zip(sizes, share, mean, strict=True)) / 300
    assert found.calibration == pytest.approx(gap, abs=1e-6)


def test_an_interrupt_while_images_are_made_leaves_the_student_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS["NAYER"]
    task = tiny_task(setting)
    net = task.student.net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(setting.method), "synthesize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_gauge(task, setting.method, setting.plan)
    assert all(p.requires_grad for p in net.parameters())
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_lost_student_is_measured_without_an_error() -> None:
    net = Fixed()
    with torch.no_grad():
        net.scale.fill_(math.nan)
    probe = Probe(net, mean=(0.0,), std=(1.0,), channels_last=False).freeze()
    found = agreement_on(probe, torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.ones(5, dtype=torch.int64), 3)
    assert math.isnan(found.calibration)
    assert found.agreement == 0


def test_signals_say_what_images_are(digits_teacher: nn.Module) -> None:
    teacher = Probe(digits_teacher, mean=MEAN, std=STD).freeze()
    held = read_images("digits", "test")
    real = signals_of(teacher, held.images[:100], held.labels[:100], 10)
    noise = signals_of(teacher, torch.randn(100, 1, 8, 8).mul(40).add(128).clamp(0, 255).byte(), held.labels[:100], 10)
    assert noise["roughness"] == pytest.approx(2 / math.sqrt(math.pi), abs=0.06)
    assert real["roughness"] < 0.95
    assert real["retention"] > 0.9 > 0.5 > noise["retention"]
    assert real["statistics"] < noise["statistics"]
    assert real["within"] < 0.9 < noise["within"]
    same = held.images[:1].expand(50, -1, -1, -1)
    one = signals_of(teacher, same, torch.arange(50) % 10, 10)
    assert one["classes"] == pytest.approx(0.1)
    assert one["within"] == pytest.approx(0.0, abs=1e-3)
    assert "retention" not in signals_of(teacher, same, torch.zeros(50, dtype=torch.int64), 10)


def test_inversion_makes_images_the_teacher_is_sure_of(digits_teacher: nn.Module) -> None:
    teacher = Probe(digits_teacher, mean=MEAN, std=STD).freeze()
    made = inverted_images(teacher, (1, 8, 8), 10, 40, 25, torch.Generator().manual_seed(0))
    again = inverted_images(teacher, (1, 8, 8), 10, 40, 25, torch.Generator().manual_seed(0))
    assert torch.equal(made, again)
    assert made.dtype == torch.uint8
    labels = torch.arange(10).repeat(4)
    out = teacher(as_images(made)).logits
    assert out.argmax(1).bincount(minlength=10).tolist() == labels.bincount().tolist()
    assert float(torch.softmax(out, 1).amax(1).mean()) > 0.8


def distilled(teacher: nn.Module, estimate: bool, out: Path | None = None) -> dfkd.Distilled:
    torch.manual_seed(0)
    student = dfkd.build("resnet8", classes=10, channels=1)
    data = Images(image_size=(1, 8, 8), mean=MEAN, std=STD, classes=10)
    watch = Watching(estimate=estimate, export=False, figures=False)
    return dfkd.distill(teacher, student, METHOD, data=data, plan=PLAN, out=out, progress=False, watch=watch)


def test_the_student_is_the_same_with_and_without(digits_teacher: nn.Module, tmp_path: Path) -> None:
    with_estimate = distilled(digits_teacher, True, tmp_path / "run")
    without = distilled(digits_teacher, False)
    pairs = zip(with_estimate.student.state_dict().values(), without.student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    records = with_estimate.record.rounds
    assert records[0].estimate is None  # warm-up
    estimate = records[-1].estimate
    assert estimate is not None
    assert list(estimate.sets) == ["own", "inverted", "shifted", "mixed", "noise"]
    assert [held for record in without.record.rounds if record.estimate for held in record.estimate.sets] == []
    page = (tmp_path / "run/report.html").read_text()
    assert "Without test images: the student chooses the teacher's class on" in page.replace("&#39;", "'")
    stored = read_rounds(tmp_path / "run/metrics.jsonl")
    assert stored[-1].estimate is not None
    assert stored[-1].estimate.sets.keys() == estimate.sets.keys()


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, "NAYER", "KD3", "STTS"))
def test_every_method_leaves_student_and_streams_as_they_were(name: str) -> None:
    setting = SETTINGS[name]
    task = tiny_task(setting)
    before = {key: value.clone() for key, value in task.student.net.state_dict().items()}
    flags = [p.requires_grad for p in task.student.net.parameters()]
    modes = [m.training for m in task.student.net.modules()]
    streams, default = task.runtime.generator.get_state(), torch.get_rng_state()
    gauge = make_gauge(task, setting.method, setting.plan)
    assert all(torch.equal(value, before[key]) for key, value in task.student.net.state_dict().items())
    assert flags == [p.requires_grad for p in task.student.net.parameters()]
    assert modes == [m.training for m in task.student.net.modules()]
    assert torch.equal(streams, task.runtime.generator.get_state())
    assert torch.equal(default, torch.get_rng_state())
    assert {"inverted", "shifted", "mixed", "noise"} <= gauge.sets.keys()


def test_only_long_runs_spare_the_time_by_default() -> None:
    assert affordable(dfkd.NAYER.default_plan, 10)
    assert not affordable(dfkd.Plan(rounds=3, steps=50, batch_size=128), 10)
    least = dfkd.Plan(rounds=8, steps=100, batch_size=128)  # 20 x 128 images x 40 steps
    assert affordable(least, 10)
    assert not affordable(dfkd.Plan(rounds=8, steps=99, batch_size=128), 10)
    assert not affordable(least, 100)  # two images of each class


def test_a_copy_of_the_teacher_agrees_and_a_fresh_student_does_not(digits_teacher: nn.Module) -> None:
    data = Images(image_size=(1, 8, 8), mean=MEAN, std=STD, classes=10)
    kept = {}
    for name in ("copy", "fresh"):
        student = dfkd.build("wrn16-1", classes=10, channels=1)
        if name == "copy":
            student.net.load_state_dict(digits_teacher.state_dict())
        keep = Keep()
        plan = dfkd.Plan(rounds=1, steps=1, batch_size=8, lr=0.0)
        watch = Watching(estimate=True, quiet=True)
        dfkd.distill(digits_teacher, student, METHOD, data=data, plan=plan, watch=watch, observers=(keep,))
        estimate = keep.records[-1].estimate
        assert estimate is not None
        kept[name] = estimate.sets
    assert kept["copy"]["inverted"].agreement > 0.9
    assert kept["fresh"]["inverted"].agreement < 0.5


def test_an_estimate_comes_back_from_its_line_and_is_told() -> None:
    held = Agreement(0.9, 0.85, 0.94, 200, 0.03, (0.8, math.nan))
    estimate = Estimate({"own": held, "inverted": held}, {"confidence": 0.7, "within": math.nan}, 0.1)
    record = RoundRecord(0, 1, False, 1.0, {}, estimate=estimate)
    again = record_from(json.loads(record_line(record))).estimate
    assert again is not None
    assert again.sets["own"].agreement == 0.9
    assert math.isnan(again.sets["own"].class_agreement[1])
    assert "90.00 % (95 % interval 85.00 % to 94.00 %) of 200 synthetic images" in estimate_sentence(estimate)
    assert agreement_rows(estimate)[0][1] == ("90.00 %", "85.00 % to 94.00 %", "200", "80.00 %", "3.00 %")
    assert short_estimate(estimate) == "agreement without test images 90.00 %"
    assert estimate_sentence(Estimate({}, {}, 0.0)) == ""
