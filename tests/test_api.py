"""The front door: from modules to a folder and back."""

import copy
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import dfkd
from dfkd.data.readers import STATISTICS
from dfkd.engine.lock import lock_folder
from dfkd.engine.records import Observer, RoundRecord, RunInfo
from dfkd.identity import weights_hash
from dfkd.methods.noise import NoiseInput
from dfkd.nets.zoo import build
from dfkd.prepare import check_labelled
from dfkd.report.files import read_run
from dfkd.weights import load_weights, read_sidecar
from settings import tiny_plan

MEAN, STD = STATISTICS["digits"]
METHOD = dfkd.NAYER(steps=2, synthesis_batch=20, batches=1, warmup_batches=1, width=16, channels=4, pad=1, flip=False)


ROWS = dfkd.Rows(torch.zeros(3, 1, 4, 4, dtype=torch.uint8))


class Stop(Exception):
    """Raised to cut a run off."""


class StopAt(Observer):
    """An observer that cuts a run off when a round ends."""

    def __init__(self, round: int) -> None:
        self.round = round

    def rounded(self, record: RoundRecord) -> None:
        if record.round == self.round:
            raise Stop


def a_student(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet8", 10, 1).net


def go(
    teacher: nn.Module | dfkd.Classifier, student: nn.Module | dfkd.Classifier | None = None, **changes: Any
) -> dfkd.Distilled:
    settings: dict[str, Any] = {
        "method": METHOD,
        "image_size": (1, 8, 8),
        "mean": MEAN,
        "std": STD,
        "plan": tiny_plan(rounds=3, warmup=1),
        "progress": False,
        "export": False,
        "figures": False,
        "save_every": 0,
        "samples_every": 2,
        **changes,
    }
    return dfkd.distill(teacher, student if student is not None else a_student(), **settings)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_student_and_a_record_come_back(digits_teacher: nn.Module) -> None:
    student = a_student()
    before = weights_hash(student)
    done = go(digits_teacher, student, test="digits", classes=dfkd.class_list("digits"))
    assert done.student is student
    assert weights_hash(student) != before
    assert not student.training
    assert [record.round for record in done.record.rounds] == [0, 1, 2, 3]
    assert done.record.teacher_evaluation is not None
    assert done.record.teacher_evaluation.accuracy > 0.97
    assert done.accuracy == done.record.rounds[-1].evaluation.accuracy  # type: ignore[union-attr]
    assert done.record.info.names == dfkd.class_list("digits")
    assert done.record.info.teacher["sha256"] == weights_hash(digits_teacher)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*student.modules(), *digits_teacher.modules()])


class Grows(nn.Module):
    """It makes a layer in its first forward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.BatchNorm1d(10, affine=False)
        y: Tensor = self.net(x)
        return y + 0 * self.scale(y)


def test_a_teacher_that_makes_a_layer_in_its_first_pass_is_taken(digits_teacher: nn.Module) -> None:
    digits_teacher.train()
    teacher = Grows(digits_teacher)
    assert go(teacher, method=dfkd.NoiseInput()).record.stopped is None
    assert "scale" in dict(teacher.named_children())
    assert digits_teacher.training


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_teacher_comes_back_in_the_memory_it_came_in(layout: torch.memory_format, digits_teacher: nn.Module) -> None:
    digits_teacher.to(memory_format=layout)  # type: ignore[call-overload]
    tensors = {**dict(digits_teacher.named_parameters()), **dict(digits_teacher.named_buffers())}
    for name, parameter in digits_teacher.named_parameters():  # of a training just before
        parameter.grad = torch.zeros_like(parameter)
        tensors[f"{name}.grad"] = parameter.grad
    before = {name: (tensor, tensor.stride(), tensor.device) for name, tensor in tensors.items()}
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    for channels_last in (True, False):
        go(digits_teacher, channels_last=channels_last)
        tensors = {**dict(digits_teacher.named_parameters()), **dict(digits_teacher.named_buffers())}
        tensors |= {f"{n}.grad": p.grad for n, p in digits_teacher.named_parameters() if p.grad is not None}
        after = {name: (tensor, tensor.stride(), tensor.device) for name, tensor in tensors.items()}
        assert all(after[name][0] is before[name][0] and after[name][1:] == before[name][1:] for name in before)
        assert all(torch.equal(tensor, values[name]) for name, tensor in tensors.items())


def test_the_caller_gets_back_what_was_lent(digits_teacher: nn.Module) -> None:
    digits_teacher.train()
    digits_teacher.get_submodule("norm").eval()
    for name, parameter in digits_teacher.named_parameters():
        parameter.requires_grad_("head" not in name)
    modes = [m.training for m in digits_teacher.modules()]
    asks = [p.requires_grad for p in digits_teacher.parameters()]
    before = weights_hash(digits_teacher)
    runs: list[dict[str, Any]] = [{}, {"observers": [StopAt(1)]}]
    for settings in runs:
        with suppress(Stop):
            go(digits_teacher, **settings)
        assert weights_hash(digits_teacher) == before
        assert [m.training for m in digits_teacher.modules()] == modes
        assert [p.requires_grad for p in digits_teacher.parameters()] == asks
        assert all(p.grad is None for p in digits_teacher.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in digits_teacher.modules())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_a_student_and_the_teacher_back(off: Any, digits_teacher: nn.Module) -> None:
    alone = go(digits_teacher)
    student = a_student()
    with off():
        inside = go(digits_teacher, student)
    assert states_equal(alone.student, inside.student)
    assert not any(t.is_inference() for net in (digits_teacher, student) for t in net.state_dict().values())
    assert states_equal(go(digits_teacher).student, alone.student)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"preset": "cifar11"}, r"data needs preset to be one of .*, got 'cifar11'; choose one"),
        ({"classes": 10.0}, r"distill needs classes as names or a whole number, got 10.0; write 10"),
        ({"mean": (127.5,)}, r"normalisation needs every mean in \[0, 1\], got mean=\(127.5,\); of pixels"),
        ({"mean": (float("nan"),)}, r"data needs finite settings, got mean=\(nan,\); change mean"),
        ({"std": (float("inf"),)}, r"data needs finite settings, got std=\(inf,\); change std"),
        ({"evaluate_every": "5"}, r"watch needs evaluate_every to be a whole number, got '5'; change"),
        ({"evaluate_every": None}, r"watch needs evaluate_every to be a whole number, got None; change"),
        ({"save_every": None}, r"watch needs save_every to be a number, got None; change"),
        ({"track": "tensorboard"}, r"watch needs track to be one of none, wandb, mlflow, got 'tensorboard'"),
        ({"onnx": "int4"}, r"watch needs onnx to be one of none, fp32, int8, got 'int4'"),
        ({"threads": 1.5}, r"runtime needs threads to be a whole number, got 1.5"),
        ({"seed": 2**64}, r"runtime needs seed from 0 to 2\*\*63 - 1, got"),
        ({"seed": "a"}, r"runtime needs seed to be a whole number, got 'a'"),
        ({"devices": "1"}, r"runtime needs devices to be a whole number, got '1'"),
        ({"plan": {"rounds": 1}}, r"distill needs plan as a dfkd.Plan, got dict; write"),
        ({"observers": Observer()}, r"distill needs observers in a list, got Observer; write observers="),
        ({"student": "resnet8"}, r"teacher and student need to be modules, got str; give"),
        ({"observers": [Observer]}, r"distill needs observers that are objects of a dfkd.Observer, got the class Obs"),
        ({"observers": [3]}, r"distill needs observers that are objects of a dfkd.Observer, got int; give"),
        ({"estimate": "yes"}, r"distill needs estimate as True, False or held-out images, got str; give"),
        ({"estimate": np.zeros((2, 1, 8, 8))}, r"estimate needs uint8 images of shape \(n, \*\(1, 8, 8\)\), got"),
        ({"out": 3}, r"distill needs out as a path, got int; give a text or a pathlib.Path"),
        ({"runtime": "cpu"}, r"distill needs runtime as a dfkd.Machine, got str; write dfkd.Machine\(...\), or give"),
        ({"data": {}}, r"distill needs data as a dfkd.Images, got dict; write"),
        ({"watch": [Observer()]}, r"distill needs watch as a dfkd.Watching, got list; write"),
        ({"stop": 3}, r"distill needs stop as a dfkd.Stopping, got int; write"),
        ({"text": 3}, r"distill needs text as a dfkd.Text, got int; write"),
        ({"text": torch.zeros(10)}, r"distill needs class embeddings \(10, d\), got shape \(10,\); give 10 rows"),
        ({"text": torch.full((10, 2), torch.nan)}, r"distill needs finite numbers as class embeddings, got NaN"),
        ({"text": np.full((10, 2), np.inf)}, r"distill needs finite numbers as class embeddings, got NaN or inf"),
        ({"text": np.array([{}])}, r"distill needs text as a tensor or an array of numbers, got ndarray"),
        ({"classes": range(10)}, r"distill needs classes as their number or a list of names .*, got range\(0, 10\);"),
        ({"classes": {0: "a"}}, r"distill needs classes as their number or a list of names in label order, got \{0:"),
        ({"classes": {"a", "b"}}, r"distill needs classes as their number or a list of names in label order, got \{"),
        ({"classes": torch.tensor(1.5)}, r"distill needs classes as their number or a list of names in label order"),
        ({"web": np.array([{}, None])}, r"Rows needs uint8 images N C H W, got object of shape \(2,\); convert"),
        ({"web": ROWS}, r"web images need the shape \(1, 8, 8\) of the task, got \(1, 4, 4\); resize them"),
    ],
)
def test_settings_of_another_kind_are_refused_in_a_sentence(
    values: dict[str, Any], sentence: str, digits_teacher: nn.Module
) -> None:
    with pytest.raises(dfkd.UserError, match=f"^{sentence}"):
        go(digits_teacher, **values)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_facts_may_be_arrays(make: Any, digits_teacher: nn.Module) -> None:
    done = go(digits_teacher, image_size=make([1, 8, 8]), mean=make([0.0]), std=make(STD))
    assert done.record.info.image_shape == (1, 8, 8)
    assert done.record.info.teacher["mean"] == [0.0]


@pytest.mark.parametrize("classes", [np.int64(10), torch.tensor(10), np.array([str(k) for k in range(10)])])
def test_classes_may_be_numbers_and_arrays(classes: Any, digits_teacher: nn.Module) -> None:
    task = dfkd.build_task(
        digits_teacher, a_student(), image_size=(1, 8, 8), mean=MEAN, std=STD, classes=classes, text=None
    )
    assert task.classes == 10
    assert task.names == (tuple(str(k) for k in range(10)) if len(np.shape(classes)) else ())


def test_embeddings_may_be_an_array(digits_teacher: nn.Module) -> None:
    vectors = torch.randn(10, 5)
    facts: dict[str, Any] = {"image_size": (1, 8, 8), "mean": MEAN, "std": STD}
    for text in (vectors, vectors.double().numpy()):
        task = dfkd.build_task(digits_teacher, a_student(), text=text, **facts)
        assert task.text is not None
        assert torch.equal(task.text.cpu(), vectors)


def test_held_out_images_may_be_an_array(digits_teacher: nn.Module) -> None:
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    done = [go(digits_teacher, plan=tiny_plan(), estimate=estimate) for estimate in (images, images.numpy())]
    sets = [run.record.rounds[-1].estimate.sets["inverted"] for run in done]  # type: ignore[union-attr]
    assert sets[0].agreement == sets[1].agreement
    assert sets[0].images == sets[1].images == 20


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("maker", ["meta", "inference"])
def test_weights_that_cannot_be_run_are_refused(role: str, maker: str, digits_teacher: nn.Module) -> None:
    with torch.device("meta") if maker == "meta" else torch.inference_mode():
        net = build("resnet8", 10, 1).net
    says = "on the meta device; make" if maker == "meta" else r"made in torch\.inference_mode; make"
    with pytest.raises(dfkd.UserError, match=rf"^ResNet needs weights .*, got \S+ .*{says}"):
        go(*((net, a_student()) if role == "teacher" else (digits_teacher, net)))


def test_numbers_of_numpy_make_the_same_run_and_its_resume(digits_teacher: nn.Module, tmp_path: Path) -> None:
    plan = dfkd.Plan(rounds=2, steps=2, batch_size=4, lr=0.125)
    same = dfkd.Plan(
        rounds=np.int64(2),  # type: ignore[arg-type]
        steps=torch.tensor(2),  # type: ignore[arg-type]
        batch_size=np.uint8(4),  # type: ignore[arg-type]
        lr=np.float32(0.125),  # type: ignore[arg-type]
    )
    whole = go(digits_teacher, plan=plan, seed=1)
    with pytest.raises(Stop):
        go(digits_teacher, plan=same, seed=np.int64(1), out=tmp_path, observers=[StopAt(0)])
    row = json.loads((tmp_path / "run.json").read_text())["info"]
    assert (row["plan"]["rounds"], row["plan"]["lr"], row["provenance"]["seed"]) == (2, 0.125, 1)
    parts = go(digits_teacher, plan=plan, seed=1, out=tmp_path, resume=True)
    assert states_equal(whole.student, parts.student)


def test_a_student_with_layers_of_its_teacher_is_refused(digits_teacher: nn.Module) -> None:
    before, student = weights_hash(digits_teacher), a_student()
    student.register_module("norm", digits_teacher.get_submodule("norm"))
    for pair in (student, digits_teacher):
        with pytest.raises(dfkd.UserError, match=r"^student needs layers of its own, got \S+, which the teacher uses"):
            go(digits_teacher, pair)
    assert weights_hash(digits_teacher) == before


class Untrainable(nn.Module):
    """Runs in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = a_student()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("not in train mode")
        y: torch.Tensor = self.net(x)
        return y


def test_a_refused_student_leaves_nothing_on_the_teacher(digits_teacher: nn.Module) -> None:
    for _ in range(2):
        with pytest.raises(dfkd.UserError, match=r"^student needs to run .* in train mode, got"):
            go(digits_teacher, Untrainable())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in digits_teacher.modules())


def test_sections_and_their_fields_make_the_same_run(digits_teacher: nn.Module) -> None:
    data = dfkd.Images(preset="digits")
    sections: dict[str, Any] = {"data": data, "runtime": dfkd.Machine(seed=3), "watch": dfkd.Watching(quiet=True)}
    whole = dfkd.distill(digits_teacher, a_student(), METHOD, plan=tiny_plan(), **sections)
    flat = dfkd.distill(digits_teacher, a_student(), METHOD, plan=tiny_plan(), preset="digits", seed=3, quiet=True)
    assert states_equal(whole.student, flat.student)
    assert whole.record.info.names == dfkd.class_list("digits")
    assert whole.record.info.provenance["seed"] == 3
    assert flat.record.info.student["name"] == "ResNet"


def test_fields_that_no_section_has(digits_teacher: nn.Module) -> None:
    with pytest.raises(dfkd.UserError, match="got 'image_sise'; did you mean image_size"):
        go(digits_teacher, image_sise=(1, 8, 8))
    with pytest.raises(dfkd.UserError, match=r"distill needs settings it knows, got 'seed'"):
        go(digits_teacher, runtime=dfkd.Runtime(), seed=3)
    with pytest.raises(dfkd.UserError, match=r"^tensorboard needs a run folder"):
        go(digits_teacher, tensorboard=True)
    with pytest.raises(dfkd.UserError, match=r"^runtime needs at least one thread, got 0"):
        go(digits_teacher, threads=0)


def test_threads_are_put_back(digits_teacher: nn.Module) -> None:
    before = torch.get_num_threads()
    done = go(digits_teacher, threads=2)
    assert done.record.info.provenance["threads"] == 2
    assert torch.get_num_threads() == before


def test_the_callers_random_stream_is_untouched(digits_teacher: nn.Module) -> None:
    student = a_student()
    before = torch.get_rng_state()
    go(digits_teacher, student)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_callers_random_stream_does_not_matter(digits_teacher: nn.Module) -> None:
    results = []
    for seed in (3, 4):
        student = a_student()
        torch.manual_seed(seed)
        results.append(go(digits_teacher, student).student)
    assert states_equal(*results)


def test_a_run_that_was_cut_off_resumes_to_the_same_folder(digits_teacher: nn.Module, tmp_path: Path) -> None:
    whole = go(digits_teacher, out=tmp_path / "whole", test="digits")
    with pytest.raises(Stop):
        go(digits_teacher, out=tmp_path / "parts", test="digits", observers=[StopAt(2)])
    parts = go(digits_teacher, a_student(seed=9), out=tmp_path / "parts", test="digits", resume=True)
    assert states_equal(whole.student, parts.student)
    assert [r.round for r in parts.record.rounds] == [0, 1, 2, 3]
    for a, b in zip(whole.record.rounds, parts.record.rounds, strict=True):
        assert a.evaluation == b.evaluation
        timed = ("seconds/synthesis", "seconds/student")
        assert {k: v for k, v in a.metrics.items() if k not in timed} == {
            k: v for k, v in b.metrics.items() if k not in timed
        }
    names = [{str(p.relative_to(tmp_path / run)) for p in (tmp_path / run).rglob("*")} for run in ("whole", "parts")]
    assert names[0] == names[1]
    stored = read_run(tmp_path / "parts")
    assert [r.round for r in stored.rounds] == [0, 1, 2, 3]
    again = go(digits_teacher, a_student(seed=9), out=tmp_path / "whole", test="digits", resume=True)
    assert states_equal(whole.student, again.student)
    assert again.accuracy == whole.accuracy


def test_the_folder_is_enough_to_rebuild_the_student(digits_teacher: nn.Module, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = {"name": "resnet8", "classes": 10, "channels": 1}
    pair = dfkd.Classifier(digits_teacher, name="big"), dfkd.Classifier(a_student(), spec=spec, name="small")
    done = go(*pair, out=run, export=True)
    about = json.loads((run / "student.json").read_text())
    net = build(**about["network"]).net
    net.load_state_dict(load_file(run / "student.safetensors"))
    assert states_equal(net, done.student)
    images = torch.rand(5, 1, 8, 8)
    mean, std = torch.tensor(about["mean"]).view(1, -1, 1, 1), torch.tensor(about["std"]).view(1, -1, 1, 1)
    logits = net.eval()((images - mean) / std)
    program = torch.export.load(run / "student.pt2").module()
    torch.testing.assert_close(program(images), logits, rtol=1e-4, atol=1e-4)
    assert about["teacher_sha256"] == weights_hash(digits_teacher)
    assert done.record.info.student["name"] == "small"
    for name in ("report.html", "metrics.jsonl", "run.json", "checkpoint/commit.json"):
        assert (run / name).exists(), name
    assert list(run.rglob("*.tmp")) == []


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_wrapped_student_is_saved_as_its_own_class_names_it(
    wrap: Any, digits_teacher: nn.Module, tmp_path: Path
) -> None:
    bare = a_student()
    go(digits_teacher, wrap(bare), plan=tiny_plan(), out=tmp_path, export=True, estimate=True, picked=True)
    about = json.loads((tmp_path / "student.json").read_text())
    assert about["network"] == {"class": "dfkd.nets.resnet.ResNet"}
    assert read_run(tmp_path).info.student["kind"] == "ResNet"
    assert (tmp_path / "student.pt2").exists()
    for name in ("student", "picked"):
        fresh = a_student(seed=2)
        fresh.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        assert name == "picked" or states_equal(fresh, bare)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_run_in_the_home_folder(
    kind: type, digits_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = go(digits_teacher, plan=tiny_plan(), out=kind("~/runs/x"))
    assert (tmp_path / "runs/x/run.json").exists()
    net = a_student(seed=2)
    load_weights(net, Path("~/runs/x"))
    assert states_equal(net, done.student)
    assert read_sidecar(Path("~/runs/x/student.safetensors")).classes == 10


@pytest.mark.parametrize("name", ["adapt", "export", "quantize", "search"])
def test_a_folder_that_is_no_path_is_refused(name: str, digits_teacher: nn.Module, tmp_path: Path) -> None:
    inputs: dict[str, tuple[Any, ...]] = {
        "adapt": (tmp_path, tmp_path, digits_teacher),
        "export": (tmp_path,),
        "quantize": (digits_teacher, "W4A4"),
        "search": (digits_teacher, a_student()),
    }
    with pytest.raises(dfkd.UserError, match=rf"^{name} needs out as a path, got int; give a text or a pathlib\.Path$"):
        getattr(dfkd, name)(*inputs[name], out=3)


def test_methods_without_text_need_no_names(digits_teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfkd.prepare.embed", lambda *_, **__: pytest.fail("embeddings were asked for"))
    names = [f"unheard-of thing {i}" for i in range(10)]
    done = go(digits_teacher, method=NoiseInput(), classes=names, plan=tiny_plan())
    assert done.record.info.text is None


def test_everything_in_float_images_and_tensors(digits_teacher: nn.Module) -> None:
    images, labels = torch.rand(30, 1, 8, 8), torch.arange(30) % 10
    done = go(digits_teacher, test=(images, labels), text=torch.randn(10, 5), classes=10, plan=tiny_plan())
    assert done.record.final is not None
    assert done.record.final.images == 30
    assert done.record.info.text == {"encoder": "given as a tensor"}


class OneOutput(nn.Module):
    """A student with a part that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.spare = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def test_a_student_with_unused_parameters(digits_teacher: nn.Module) -> None:
    student = OneOutput()
    spare = student.spare.weight.detach().clone()
    go(digits_teacher, student)
    assert torch.equal(student.spare.weight, spare)


def bad_std(teacher: nn.Module) -> dict[str, Any]:
    return {"std": (0.0,)}


def bad_channels(teacher: nn.Module) -> dict[str, Any]:
    return {"image_size": (3, 8, 8), "mean": MEAN, "std": STD}


def bad_size(teacher: nn.Module) -> dict[str, Any]:
    return {"image_size": (8, 8)}


def bad_classes(teacher: nn.Module) -> dict[str, Any]:
    return {"classes": ["a", "b", "c"]}


def bad_embeddings(teacher: nn.Module) -> dict[str, Any]:
    return {"text": torch.randn(9, 4)}


def bad_student(teacher: nn.Module) -> dict[str, Any]:
    return {"student": build("resnet8", 9, 1).net}


def bad_labels(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 10]))}


def bad_shape(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 9, 9), torch.tensor([0, 1, 2]))}


def bad_count(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 8, 8), torch.tensor([0, 1]))}


def bytes_as_floats(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 8, 8) * 255, torch.tensor([0, 1, 2]))}


def normalised_images(teacher: nn.Module) -> dict[str, Any]:
    return {"method": dfkd.VanillaKD(), "real": (torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2]))}


def nan_images(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.full((3, 1, 8, 8), torch.nan), torch.tensor([0, 1, 2]))}


def wider_integers(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.ones(3, 1, 8, 8, dtype=torch.int64), torch.tensor([0, 1, 2]))}


def float_labels(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 8, 8), torch.tensor([0.0, 1.0, 2.5]))}


def one_hot_labels(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (torch.rand(3, 1, 8, 8), torch.eye(10, dtype=torch.int64)[:3])}


def no_pair(teacher: nn.Module) -> dict[str, Any]:
    return {"test": torch.rand(3, 1, 8, 8)}


def no_numbers(teacher: nn.Module) -> dict[str, Any]:
    return {"test": (object(), object())}


def one_mean(teacher: nn.Module) -> dict[str, Any]:
    return {"mean": 0.3}


def named_std(teacher: nn.Module) -> dict[str, Any]:
    return {"std": "digits"}


def two_stds(teacher: nn.Module) -> dict[str, Any]:
    return {"std": (0.3, 0.3)}


def one_size(teacher: nn.Module) -> dict[str, Any]:
    return {"image_size": 8}


def method_class(teacher: nn.Module) -> dict[str, Any]:
    return {"method": dfkd.NAYER}


def method_name(teacher: nn.Module) -> dict[str, Any]:
    return {"method": "NAYER"}


def bad_normalisation(teacher: nn.Module) -> dict[str, Any]:
    return {"test": "digits", "mean": (1.0,), "std": (100.0,)}


def bad_weights(teacher: nn.Module) -> dict[str, Any]:
    with torch.no_grad():
        next(teacher.parameters()).fill_(torch.nan)
    return {}


def bad_need(teacher: nn.Module) -> dict[str, Any]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return {"teacher": net}


def bad_resume(teacher: nn.Module) -> dict[str, Any]:
    return {"resume": True}


BAD = {
    bad_std: "every std above 0",
    bad_channels: "one mean and std per channel, got 1 for 3 channels",
    bad_size: r"image_size as \(channels, height, width\), got \(8, 8\)",
    bad_classes: "as many outputs as there are classes, got 10 outputs for 3 classes",
    bad_embeddings: "one embedding for each of 10 classes, got 9",
    bad_student: "student needs as many outputs as there are classes, got 9 outputs for 10",
    bad_labels: "labels need to be 0 to 9, got 0 to 10",
    bad_shape: r"images need the shape \(1, 8, 8\) of the task, got \(1, 9, 9\)",
    bad_count: "one label each, got 3 images and 2 labels",
    bytes_as_floats: r"test images need to be in \[0, 1\] as floats, got 0\.\d+ to 25\d",
    normalised_images: r"real images need to be in \[0, 1\] as floats, got -",
    nan_images: r"test images need to be in \[0, 1\] as floats, got nan",
    wider_integers: r"test images need to be uint8, or floats in \[0, 1\], got torch\.int64",
    float_labels: "test labels need to be one integer for each image, got torch.float32",
    one_hot_labels: r"test labels need to be one integer for each image, got torch.int64 of shape \(3, 10\)",
    no_pair: "test needs images with labels, got Tensor",
    no_numbers: "test needs images as a tensor or an array of numbers, got object",
    one_mean: "mean as a list with one number per channel, got 0.3",
    named_std: "std as a list with one number per channel, got 'digits'",
    two_stds: "one mean and std per channel, got 2 for 1 channels",
    one_size: r"image_size as \(channels, height, width\), got 8",
    method_class: r"a method with its settings, got the class NAYER; give an instance, such as dfkd.NAYER\(\)",
    method_name: "a method with its settings, got 'NAYER'",
    bad_normalisation: "teacher needs to do better than chance on the test images",
    bad_weights: "teacher needs finite weights",
    bad_need: "NAYER needs a teacher with BatchNorm layers",
    bad_resume: "resume needs the run's folder",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_bad_input_is_one_sentence_and_leaves_no_folder(bad: Any, digits_teacher: nn.Module, tmp_path: Path) -> None:
    settings = {"teacher": digits_teacher, **bad(digits_teacher)}
    teacher = settings.pop("teacher")
    out: dict[str, Any] = {} if bad is bad_resume else {"out": tmp_path / "run"}
    with pytest.raises(dfkd.UserError, match=BAD[bad]) as caught:
        go(teacher, **out, **settings)
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
    assert left == set()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_test_images_as_arrays_paths_and_in_another_order(digits_teacher: nn.Module, tmp_path: Path) -> None:
    digits = dfkd.read_images("digits")
    images, labels = digits.images.numpy(), digits.labels.numpy()
    images.flags.writeable = False
    np.savez(tmp_path / "digits.npz", x=images, y=labels)
    order = torch.randperm(10)
    renamed = replace(digits, labels=order.argsort()[digits.labels], names=tuple(str(int(k)) for k in order))
    task = dfkd.build_task(digits_teacher, a_student(), image_size=(1, 8, 8), mean=MEAN, std=STD, real=renamed)
    for given in ((images, labels), (images / 255, labels), tmp_path / "digits.npz", renamed):
        read = check_labelled(given, task, "test")
        assert read is not None
        assert torch.equal(read[0], digits.images)
        assert torch.equal(read[1], digits.labels)
    web = dfkd.build_task(digits_teacher, a_student(), image_size=(1, 8, 8), mean=MEAN, std=STD, web=images).web
    assert web is not None
    assert len(web) == len(images)


def test_a_folder_with_a_run_is_kept(digits_teacher: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(digits_teacher, out=out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(dfkd.UserError, match="out needs a folder without a run"):
        go(digits_teacher, out=out)
    other: list[tuple[str, dict[str, Any]]] = [
        ("plan.rounds = 5 instead of 3", {"plan": tiny_plan(rounds=5, warmup=1)}),
        ("method.steps = 3 instead of 2", {"method": replace(METHOD, steps=3)}),
        ("seed = 5 instead of 0", {"seed": 5}),
        ("got method = 'NoiseInput' instead of 'NAYER'", {"method": NoiseInput()}),
        ("student.kind = ", {"student": build("wrn16-1", 10, 1).net}),
    ]
    for said, settings in other:
        with pytest.raises(dfkd.UserError, match=said):
            go(digits_teacher, out=out, resume=True, **settings)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_folders_that_will_not_do(digits_teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(dfkd.UserError, match="out needs a folder, got the file"):
        go(digits_teacher, out=tmp_path / "file")
    with pytest.raises(dfkd.UserError, match="out needs an empty or new folder"):
        go(digits_teacher, out=tmp_path)
    with pytest.raises(dfkd.UserError, match=r"resume needs a run folder, got .* without run\.json"):
        go(digits_teacher, out=tmp_path / "new", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_damaged_checkpoint_is_named(digits_teacher: nn.Module, tmp_path: Path) -> None:
    go(digits_teacher, out=tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoint").glob("commit*.json"):
        file.write_text("{")
    with pytest.raises(dfkd.UserError, match="resume needs a readable checkpoint"):
        go(digits_teacher, out=tmp_path / "run", resume=True)


def held_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["", "commit*.json", "state-0-*.pt", "pool-0-pool-0-*.pt"])
def test_a_refused_resume_changes_nothing(digits_teacher: nn.Module, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    go(digits_teacher, out=run)
    for file in (run / "checkpoint").glob(damage) if damage else ():
        file.write_text("{")
    if not damage:
        shutil.rmtree(run / "checkpoint")
    before = held_files(run)
    with pytest.raises(dfkd.UserError, match=r"resume needs (the checkpoint of the 4 rounds|a readable checkpoint)"):
        go(digits_teacher, out=run, resume=True)
    assert held_files(run) == before
    assert read_run(run).status == "finished"


def test_a_run_that_lost_its_checkpoint_is_not_begun_again(digits_teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        go(digits_teacher, out=tmp_path, observers=[StopAt(2)])
    shutil.rmtree(tmp_path / "checkpoint")
    before = held_files(tmp_path)
    with pytest.raises(dfkd.UserError, match=r"resume needs the checkpoint of the 3 rounds that were run, got none at"):
        go(digits_teacher, out=tmp_path, resume=True)
    assert held_files(tmp_path) == before


@pytest.mark.parametrize(("stop", "save_every"), [(0, 0.0), (2, 1e6)])
def test_a_run_stopped_before_its_first_save_begins_again(
    digits_teacher: nn.Module, tmp_path: Path, stop: int, save_every: float
) -> None:
    with pytest.raises(Stop):
        go(digits_teacher, out=tmp_path, observers=[StopAt(stop)], save_every=save_every)
    assert not (tmp_path / "checkpoint").exists()
    done = go(digits_teacher, out=tmp_path, resume=True, save_every=save_every)
    assert [record.round for record in done.record.rounds] == [0, 1, 2, 3]
    assert [record.round for record in read_run(tmp_path).rounds] == [0, 1, 2, 3]


class Enough(Observer):
    """Ends a run after its second round."""

    def rounded(self, record: RoundRecord) -> str | None:
        return "seen <enough>" if record.round == 1 else None


def test_a_stopped_run_is_finished_properly_and_goes_on(
    digits_teacher: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    go(digits_teacher, out=tmp_path, observers=[Enough()], progress=True, figures=True, test=exam, evaluate_every=9)
    stored = read_run(tmp_path)
    assert (stored.status, len(stored.rounds)) == ("stopped", 2)
    assert stored.result is not None
    assert stored.result.stopped == "seen <enough>"
    assert stored.result.final is not None
    page = (tmp_path / "report.html").read_text()
    assert "This run was stopped after round 2 of 4: seen &lt;enough&gt;." in page
    assert (tmp_path / "student.safetensors").exists()
    assert (tmp_path / "figures/index.json").exists()
    assert "stopped after round 2 of 4: seen <enough>" in capsys.readouterr().out
    done = go(digits_teacher, out=tmp_path, resume=True, progress=True, test=exam, evaluate_every=9)
    assert "goes on with a run that was stopped after round 2 of 4: seen <enough>" in capsys.readouterr().out
    assert (done.record.stopped, len(done.record.rounds)) == (None, 4)
    stored = read_run(tmp_path)
    assert stored.status == "finished"
    assert (
        "It goes on with a run that was stopped after round 2 of 4: seen &lt;enough&gt;."
        in (tmp_path / "report.html").read_text()
    )


class Diverge(Observer):
    """Spoils the student after its second round."""

    def __init__(self, student: nn.Module) -> None:
        self.student = student

    def rounded(self, record: RoundRecord) -> None:
        if record.round == 1:
            for parameter in self.student.parameters():
                parameter.data.fill_(torch.nan)


def test_the_record_of_a_lost_student_is_closed(digits_teacher: nn.Module, tmp_path: Path) -> None:
    student = a_student()
    with pytest.raises(dfkd.UserError, match="student needs a finite loss, got nan in round 3"):
        go(digits_teacher, student, out=tmp_path, observers=[Diverge(student)], save_every=0)
    stored = read_run(tmp_path)
    assert (stored.status, len(stored.rounds)) == ("failed", 3)
    assert stored.reason is not None
    assert stored.reason.startswith("student needs a finite loss, got nan in round 3; start again with a lower plan.lr")
    assert "This run failed: student needs a finite loss, got nan in round 3" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "student.safetensors").exists()


class Intrude(Observer):
    """An observer that wants the folder it sees in use."""

    def __init__(self, teacher: nn.Module, out: Path, resume: bool) -> None:
        self.settings: dict[str, Any] = {"teacher": teacher, "out": out, "resume": resume}
        self.told = ""

    def rounded(self, record: RoundRecord) -> None:
        if record.round == 1:
            with pytest.raises(dfkd.UserError) as caught:
                go(**self.settings)
            self.told = str(caught.value)


def test_one_run_at_a_time_in_a_folder(digits_teacher: nn.Module, tmp_path: Path) -> None:
    second = Intrude(copy.deepcopy(digits_teacher), tmp_path, resume=True)
    go(digits_teacher, out=tmp_path, observers=[second])
    assert second.told == (
        f"run folder needs to be free, got {tmp_path}, which another process is running; wait or choose another folder"
    )
    assert [record.round for record in read_run(tmp_path).rounds] == [0, 1, 2, 3]
    assert not (tmp_path / ".lock").exists()
    go(digits_teacher, out=tmp_path, resume=True)


def test_two_starts_in_one_empty_folder(digits_teacher: nn.Module, tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(dfkd.UserError, match="run folder needs to be free"):
        go(digits_teacher, out=tmp_path)
    (tmp_path / ".lock").touch()  # as a killed run leaves it
    go(digits_teacher, out=tmp_path)


HOLD = "import sys, time; from pathlib import Path; from dfkd.engine.lock import lock_folder\n"
HOLD += "with lock_folder(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"


def test_a_killed_process_lets_go_of_its_folder(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        with pytest.raises(dfkd.UserError, match="which another process is running"), lock_folder(tmp_path):
            pass
    finally:
        child.kill()
        child.communicate()
    assert (tmp_path / ".lock").exists()
    with lock_folder(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


class Failing(Observer):
    """An observer that cannot begin."""

    def started(self, info: RunInfo) -> None:
        raise RuntimeError("a bug")


def test_a_run_that_fails_before_its_first_round_leaves_no_run(digits_teacher: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        go(digits_teacher, out=tmp_path / "run", observers=[Failing()])
    assert list((tmp_path / "run").rglob("*")) == []
    go(digits_teacher, out=tmp_path / "run")


def test_a_weak_binary_teacher_is_better_than_chance() -> None:
    class Weak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            with torch.no_grad():
                self.head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
                self.head.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    images = torch.zeros(200, 1, 2, 2)
    labels = torch.arange(200) % 2
    right = torch.arange(200) % 10 < 7  # seven of ten
    images[:, 0, 0, 0] = torch.where((labels == 0) == right, 1.0, 0.0)
    settings: dict[str, Any] = {"image_size": (1, 2, 2), "mean": (0.5,), "std": (0.5,), "method": NoiseInput()}
    done = go(Weak(), Weak(), test=(images, labels), plan=tiny_plan(), **settings)
    assert done.record.teacher_evaluation is not None
    assert done.record.teacher_evaluation.accuracy == pytest.approx(0.7)


def test_a_task_for_the_lower_level(digits_teacher: nn.Module) -> None:
    task = dfkd.build_task(digits_teacher, a_student(), image_size=(1, 8, 8), mean=MEAN, std=STD, classes=10)
    assert not task.teacher.training
    assert not any(p.requires_grad for p in task.teacher.parameters())
    assert all(p.requires_grad for p in task.student.parameters())
    assert task.text is not None
    assert task.text.shape[0] == task.classes == 10
    assert task.teacher.stage_names
    dfkd.run(task, NoiseInput(), tiny_plan())


def test_stages_of_one_size_are_matched_from_the_deepest() -> None:
    def stages(ours: list[str] | None, theirs: list[str] | None, student: str = "wrn10-1") -> list[tuple[str, ...]]:
        nets = dfkd.build("wrn16-1", 10, 1).net, dfkd.build(student, 10, 1).net
        pair = dfkd.Classifier(nets[0], stages=theirs), dfkd.Classifier(nets[1], stages=ours)
        task = dfkd.build_task(*pair, image_size=(1, 8, 8), mean=MEAN, std=STD, classes=10, text="index")
        return [task.teacher.stage_names, task.student.stage_names]

    sums = ["stages.0", "stages.1", "stages.2", "relu"]  # the last two have one size
    assert stages(sums, sums) == [tuple(sums)] * 2
    firsts = ["stages.0.0", "stages.1.0", "stages.2.0", "relu"]
    assert stages(firsts, firsts) == [tuple(firsts)] * 2
    assert stages(["stages.1", "relu"], sums) == [("stages.1", "relu")] * 2
    assert stages(None, sums, "resnet8")[0] == ("stages.0", "stages.1", "relu")


def test_a_run_refused_in_setup_leaves_no_run(digits_teacher: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(dfkd.UserError, match="STTS needs warm-up rounds"):
        go(digits_teacher, method=dfkd.STTS(), plan=dfkd.Plan(rounds=1, steps=1), out=tmp_path / "run")
    assert list((tmp_path / "run").rglob("*")) == []


def test_web_images_that_cannot_be_read_are_told(
    digits_teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DFKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    for n in range(3):
        pixels = torch.randint(256, (8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        Image.fromarray(pixels.numpy()).save(tmp_path / "web" / f"{n}.png")
    (tmp_path / "web" / "bad.jpg").write_bytes(b"no image")
    method, plan = dfkd.KD3(v_th=0.0, pad=0, flip=False), dfkd.Plan(rounds=1, steps=1, batch_size=2)
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match="^1 of 4 web images cannot be read and are left out$"):
            go(digits_teacher, method=method, plan=plan, web=tmp_path / "web")


def test_a_refusal_names_the_methods_that_fit(digits_teacher: nn.Module) -> None:
    with pytest.raises(dfkd.UserError, match=r"^KD3 needs a pool of unlabelled images, got none; give web .*NAYER.*"):
        go(digits_teacher, method=dfkd.KD3())
