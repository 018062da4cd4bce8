"""KD3: selection, loss, shared classifier and projector, overlap and pictures, against loops."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import dfkd
from dfkd.data.overlap import web_overlap
from dfkd.data.readers import STATISTICS, read_images
from dfkd.data.rows import Rows
from dfkd.engine.anatomy import survey
from dfkd.engine.around import Around
from dfkd.engine.checkpoint import pack
from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import Watch, run
from dfkd.engine.plan import Plan
from dfkd.engine.records import Keep
from dfkd.engine.runtime import Runtime
from dfkd.engine.sharing import _look, share_head, widen
from dfkd.engine.web import chosen_images, group_features
from dfkd.errors import UserError
from dfkd.identity import weights_hash
from dfkd.methods.kd3 import KD3, KD3State
from dfkd.methods.nayer import NAYER
from dfkd.nets.zoo import build
from dfkd.ops.mixing import mix_distribution
from dfkd.ops.pixels import as_images
from dfkd.prepare import build_task
from dfkd.report.scatter import tsne_figure
from dfkd.types import Batch

PLAN = Plan(rounds=4, steps=2, batch_size=16, lr=0.02, weight_decay=1e-4)


def head_of(net: nn.Module, name: str = "head") -> nn.Linear:
    layer = net.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise TypeError(name)
    return layer


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def web_patches(n: int, side: int = 8, seed: int = 0) -> Tensor:
    """Gray patches of scikit-image's pictures: random squares, contrast stretched, half of them inverted."""
    from skimage import data

    rng = np.random.default_rng(seed)
    pictures = [getattr(data, name)() for name in ("camera", "coins", "text", "page", "brick", "moon")]
    patches = []
    for i in range(n):
        picture = pictures[i % len(pictures)]
        size = int(rng.integers(side, 40))
        top, left = (int(rng.integers(0, limit - size)) for limit in picture.shape)
        patch = torch.from_numpy(picture[top : top + size, left : left + size].astype(np.float32))
        patch = (patch - patch.min()) / (patch.max() - patch.min()).clamp(min=1)
        patch = 1 - patch if rng.random() < 0.5 else patch
        patches.append(F.interpolate(patch[None, None], size=(side, side), mode="bilinear", antialias=True)[0])
    return torch.stack(patches).mul(255).round().clamp(0, 255).to(torch.uint8)


def make(teacher: nn.Module, web: Tensor | None = None, student: str = "resnet8", **runtime: Any) -> Task:
    mean, std = STATISTICS["digits"]
    torch.manual_seed(0)  # the same student every time: it has a word in what is selected
    net = build(student, 10, 1).net
    return build_task(
        teacher,
        net,
        image_size=(1, 8, 8),
        mean=mean,
        std=std,
        web=web_patches(120) if web is None else web,
        runtime=Runtime(device="cpu", **runtime).launch(),
    )


def selected(method: KD3, task: Task, round: int = 0, plan: Plan = PLAN) -> tuple[KD3State, dict[str, float]]:
    state = method.setup(task, plan)
    task.student.freeze()
    made = method.synthesize(task, state, Clock(plan, round))
    return state, {name: float(value) for name, value in made.items()}


def expected_rows(p_t: Tensor, p_s: Tensor, share: float, v_th: float) -> list[int]:
    """Equations 3 and the thresholds, image by image."""
    best, confidence = [], []
    for t, s in zip(p_t.tolist(), p_s.tolist(), strict=True):
        c = [(1 - share) * a + share * b for a, b in zip(t, s, strict=True)]
        best.append(c.index(max(c)))
        confidence.append(max(c))
    n = [best.count(k) for k in range(len(p_t[0]))]
    return [i for i, k in enumerate(best) if confidence[i] > v_th * n[k] / max(n)]


@pytest.mark.parametrize(("select", "round"), [("dynamic", 1), ("dynamic", 3), ("teacher", 3), ("student", 0)])
def test_selection_agrees_with_a_loop_over_images(digits_teacher: nn.Module, select: Any, round: int) -> None:
    task = make(digits_teacher)
    method = KD3(select=select, block=50, v_th=0.105)
    state, made = selected(method, task, round)
    x = as_images(web_patches(120))
    with torch.no_grad():
        p_t, p_s = task.teacher(x).logits.softmax(dim=1), task.student(x).logits.softmax(dim=1)
    share = {"teacher": 0.0, "student": 1.0}.get(select, math.exp(-5 * (round / 2 - 1) ** 2) if round <= 2 else 1.0)
    assert state.chosen.tolist() == expected_rows(p_t, p_s, share, 0.105)
    assert made["selected"] == len(state.chosen)
    assert made["student_share"] == pytest.approx(share)
    assert made["selected_share"] == pytest.approx(len(state.chosen) / 120)
    counts = np.bincount(state.predicted.numpy(), minlength=10) / len(state.chosen)
    assert made["class_entropy"] == pytest.approx(-sum(p * math.log(p) for p in counts if p), abs=1e-5)
    n = np.bincount(((1 - share) * p_t + share * p_s).argmax(dim=1).numpy(), minlength=10)
    assert made["threshold/low"] == pytest.approx(0.105 * n[n > 0].min() / n.max())


def test_one_threshold_for_all_classes(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, made = selected(KD3(select="teacher", thresholds="one", v_th=0.6), task)
    with torch.no_grad():
        p_t = task.teacher(as_images(web_patches(120))).logits.softmax(dim=1)
    assert state.chosen.tolist() == [i for i, p in enumerate(p_t.tolist()) if max(p) > 0.6]
    assert 0 < len(state.chosen) < 120
    assert made["threshold/low"] == pytest.approx(0.6)


def test_random_selection_takes_as_many_but_others(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)  # one student: another one would be sure of other images
    dynamic, _ = selected(KD3(), task)
    others, _ = selected(KD3(select="random"), task)
    assert len(others.chosen) == len(dynamic.chosen) == len(set(others.chosen.tolist()))
    assert others.chosen.tolist() != dynamic.chosen.tolist()


def test_the_cache_changes_nothing_but_the_work(digits_teacher: nn.Module) -> None:
    task, bare = make(digits_teacher), make(digits_teacher)
    bare.student.load_state_dict(task.student.state_dict())
    kept, _ = selected(KD3(block=32), task)
    none, _ = selected(KD3(block=32, cache_gib=0), bare)
    assert kept.teacher.value is not None
    assert kept.teacher.value.shape == (120, 10)
    assert none.teacher.value is None
    assert "teacher" not in pack(kept)  # checkpoints stay small
    calls: list[int] = []
    handle = task.teacher.net.register_forward_hook(lambda *_: calls.append(1))
    KD3(block=32).synthesize(task, kept, Clock(PLAN, 0))
    handle.remove()
    assert calls == []
    assert torch.equal(kept.chosen, none.chosen)


def test_the_pool_share_is_drawn_once(digits_teacher: nn.Module) -> None:
    state, _ = selected(KD3(pool_share=0.25), make(digits_teacher))
    assert len(state.rows) == 30 == len(set(state.rows.tolist()))
    assert set(state.chosen.tolist()) <= set(state.rows.tolist())


def test_selection_waits_for_its_turn(digits_teacher: nn.Module) -> None:
    task, method = make(digits_teacher), KD3(select_every=2, v_th=0.1)
    state, _ = selected(method, task)
    before = state.chosen
    assert method.synthesize(task, state, Clock(PLAN, 1)) == {}
    assert state.chosen is before
    assert method.synthesize(task, state, Clock(PLAN, 2)) != {}


def test_one_pass_takes_as_many_steps_as_show_d_s_once(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = selected(KD3(), task)
    state.chosen = torch.arange(70)
    plan = replace(PLAN, steps=12, batch_size=16)
    assert KD3().student_steps(task, state, Clock(plan, 0)) == 12
    assert KD3(one_pass=True).student_steps(task, state, Clock(plan, 0)) == 5  # 4.4 batches
    assert KD3(one_pass=True).student_steps(task, state, Clock(replace(plan, turns=3), 0)) == 2


def test_a_run_with_one_pass_counts_its_own_steps(digits_teacher: nn.Module) -> None:
    """The mean loss of a round is that over the steps taken, and as many batches are drawn."""
    task, batches = make(digits_teacher), []

    @dataclass(frozen=True)
    class Counted(Around[KD3State]):
        selecting: KD3

        @property
        def inner(self) -> KD3:
            return self.selecting

        def batch(self, task: Task, state: KD3State, clock: Clock) -> Batch:
            batches.append(clock.round)
            return super().batch(task, state, clock)

        def loss(self, task: Task, state: KD3State, batch: Batch) -> Tensor:
            return super().loss(task, state, batch) * 0 + 3.0

    keep = Keep()
    plan = replace(PLAN, rounds=2, steps=50, batch_size=16)
    method = Counted(KD3(select="teacher", thresholds="one", v_th=0.6, one_pass=True))
    state = run(task, method, plan, Watch(observers=[keep]))
    assert isinstance(state, KD3State)
    assert [batches.count(0), batches.count(1)] == [math.ceil(len(state.chosen) / 16)] * 2
    assert [record.metrics["loss/student"] for record in keep.records] == [3.0, 3.0]


def test_an_empty_selection_is_an_error_with_advice(digits_teacher: nn.Module) -> None:
    with pytest.raises(UserError, match="lower v_th"):
        selected(KD3(v_th=1.0, select="teacher"), make(digits_teacher, torch.zeros(20, 1, 8, 8, dtype=torch.uint8)))


def loss_by_hand(task: Task, heads: nn.ModuleDict, x: Tensor, other: Tensor, parts: Sequence[str]) -> float:
    """The paper's equations 9 to 18 with loops, in double precision."""
    t, s = task.teacher(x), task.student(x)
    t2, s2 = task.teacher(other), task.student(other)
    total = 0.0
    for i in range(len(x)):
        distance = (s.logits[i].softmax(0).double() - t.logits[i].softmax(0).double()).abs().sum()
        w = 1 - 1 / (1 + math.exp(-float(distance)))
        total += w * float((s.features[i].double() - t.features[i].double()).square().mean()) / len(x)
    pairs = {"S": ("student", s, s2), "T": ("teacher", t, t2)}
    for part in parts:
        name, clean, changed = pairs[part]
        z = F.normalize(heads[name](clean.features).double(), dim=1)
        z2 = F.normalize(heads[name](changed.features).double(), dim=1)
        for i in range(len(x)):
            negatives = sum(math.exp(float(z[i] @ z2[j]) / 0.3) for j in range(len(x)) if j != i)
            total += 0.01 * -math.log(math.exp(float(z[i] @ z2[i]) / 0.3) / negatives)  # a sum, as in the paper
    return total


@pytest.mark.parametrize(
    ("changes", "parts"), [({}, "ST"), ({"skip_teacher_contrast": True}, "S"), ({"mdcl": "none"}, "")]
)
def test_the_loss_agrees_with_loops(digits_teacher: nn.Module, changes: dict[str, Any], parts: str) -> None:
    task, method = make(digits_teacher), replace(KD3(reference_batch=None), **changes)
    if parts:  # the literal sum over this batch
        method = replace(method, reference_batch=12)
    state, _ = selected(method, task)
    x = torch.rand(12, 1, 8, 8, generator=stream())
    other = mix_distribution(x, torch.rand(12, generator=stream(1)), torch.arange(12).flip(0))
    with torch.no_grad():
        got = float(method.loss(task, state, Batch(x, extra={"perturbed": other} if parts else None)))
        assert got == pytest.approx(loss_by_hand(task, state.joint, x, other, parts), rel=1e-4)


def test_the_reference_batch_keeps_the_balance(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = selected(KD3(), task)
    x = torch.rand(12, 1, 8, 8, generator=stream())
    batch = Batch(x, extra={"perturbed": x})
    with torch.no_grad():
        alone = float(KD3(alpha=0).loss(task, state, batch))
        literal = float(KD3(reference_batch=None).loss(task, state, batch)) - alone
        steady = float(KD3(reference_batch=64).loss(task, state, batch)) - alone
        default = float(KD3().loss(task, state, batch)) - alone
    assert steady == pytest.approx(literal * 64 / 12, rel=1e-4)
    assert default == pytest.approx(literal / 12, rel=1e-3)


def test_the_alignment_is_a_mean_or_a_sum_over_features(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = selected(KD3(mdcl="none"), task)
    batch = Batch(torch.rand(12, 1, 8, 8, generator=stream()))
    with torch.no_grad():
        mean, total = (float(KD3(mdcl="none", alignment=how).loss(task, state, batch)) for how in ("mean", "sum"))
        width = task.teacher(batch.images).features.shape[1]
    assert width > 1
    assert total == pytest.approx(width * mean, rel=1e-5)


def test_the_second_view_may_be_a_mixture_of_images(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    method = KD3(perturb="mixup", delta=0.5, pad=1)
    state, _ = selected(method, task)
    batch = method.batch(task, state, Clock(PLAN, 0))
    assert batch.extra is not None
    for got in batch.extra["perturbed"]:  # a point between two images of the batch
        fits = []
        for a in batch.images:
            for b in batch.images:
                span = (b - a).flatten()
                share = float(((got - a).flatten() @ span) / span.square().sum().clamp(min=1e-9))
                fits.append(-1e-3 <= share <= 1 + 1e-3 and torch.allclose(got, a + share * (b - a), atol=1e-4))
        assert any(fits)


def test_the_teachers_contrast_gives_the_student_nothing(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = selected(KD3(), task)
    task.student.requires_grad_(True)
    x = torch.rand(8, 1, 8, 8, generator=stream())
    batch = Batch(x, extra={"perturbed": x.flip(3)})
    weight = next(task.student.net.parameters())
    whole = torch.autograd.grad(KD3().loss(task, state, batch), weight)[0]
    state.joint.pop("teacher")
    without = torch.autograd.grad(KD3(skip_teacher_contrast=True).loss(task, state, batch), weight)[0]
    torch.testing.assert_close(whole, without)


VARIANTS: list[dict[str, Any]] = [
    {"mdcl": "cross"},
    {"mdcl": "none"},
    {"perturb": "ordinary"},
    {"perturb": "mixup"},
    {"alignment": "sum"},
    {"share_head": False},
    {"share_head": False, "labels": "onehot"},
    {"select": "random"},
    {"skip_teacher_contrast": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_trains(digits_teacher: nn.Module, changes: dict[str, Any]) -> None:
    task = make(digits_teacher)
    before = task.student.net.state_dict()["stem.0.weight"].clone()
    state = run(task, KD3(pad=1, **changes), replace(PLAN, rounds=1))
    after = task.student.net.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not torch.equal(after["stem.0.weight"], before)
    given = head_of(digits_teacher).weight
    shared = changes.get("share_head", True)
    assert torch.equal(after["head.weight"], given) is shared
    assert state.fixed_parameters == (("head.weight", "head.bias") if shared else ())
    assert ("teacher" in state.joint) is (changes.get("mdcl") != "none" and "skip_teacher_contrast" not in changes)


def test_other_widths_are_refused_with_the_way_out(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher, student="wrn10-2")
    with pytest.raises(UserError, match=r"dfkd\.share_head"):
        KD3().setup(task, PLAN)
    with pytest.raises(UserError, match=r"reads 64 features like the teacher's, got 128; pass it through KD3\.fit"):
        KD3(share_head=False).setup(task, PLAN)


@pytest.mark.parametrize(
    ("changes", "word"), [({"pool_share": 0.0}, "pool_share"), ({"block": 0}, "block"), ({"select_every": 0}, "select")]
)
def test_values_that_cannot_be_are_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        KD3(**changes)


@pytest.mark.parametrize(
    ("teacher", "student", "side", "kind"),
    [
        ("wrn16-1", "wrn10-2", 8, "map"),
        ("resnet8x4", "mobilenetv2-half", 32, "map"),
        ("lenet5", "lenet5-half-dafl", 32, "vector"),
        ("wrn16-1", "resnet8", 8, "none"),
    ],
)
def test_share_head_gives_the_student_the_teachers_classifier(teacher: str, student: str, side: int, kind: str) -> None:
    T, S = build(teacher, 5, 1).net, build(student, 5, 1).net
    shape, size = (1, side, side), sum(p.numel() for p in S.parameters())
    assert share_head(T, S, shape) is S
    old, new = survey(T, shape), survey(S, shape)
    assert new.features == old.features
    given, own = head_of(T, old.head or ""), head_of(S, new.head or "")
    assert torch.equal(own.weight, given.weight)
    assert torch.equal(own.bias, given.bias)
    assert (sum(p.numel() for p in S.parameters()) != size) is (kind != "none")
    S.train()
    loss = S(torch.rand(4, *shape)).square().sum()
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss, list(S.parameters())))  # nothing idle


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("student", ["resnet8", "wrn10-2"])
def test_share_head_takes_teachers_of_other_precision(student: str, dtype: torch.dtype) -> None:
    shape = (1, 8, 8)
    T = build("wrn16-1", 5, 1).net
    other = copy.deepcopy(T).to(dtype)
    S, same = (share_head(net, build(student, 5, 1).net, shape) for net in (other, T))
    assert next(other.parameters()).dtype == dtype
    assert [p.shape for p in S.parameters()] == [p.shape for p in same.parameters()]
    assert torch.equal(head_of(S).weight, head_of(other).weight.float())
    assert S(torch.rand(2, *shape)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, weight_norm])
def test_a_classifier_that_computes_its_weights_is_shared_but_not_written(norm: Callable[..., nn.Module]) -> None:
    shape = (1, 8, 8)
    T, S = build("wrn16-1", 5, 1).net, build("resnet8", 5, 1).net
    norm(S.get_submodule("head"))
    with pytest.raises(
        UserError, match="share_head needs a student whose classifier has plain parameters, got one that"
    ):
        share_head(T, S, shape)
    norm(T.get_submodule("head"))
    S = share_head(T, build("resnet8", 5, 1).net, shape)
    assert torch.equal(head_of(S).weight, head_of(T).weight)


def test_kd3_shares_no_classifier_that_computes_its_weights(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    parametrizations.weight_norm(head_of(task.student.net))
    with pytest.raises(UserError, match="share_head needs a student whose classifier has plain parameters"):
        KD3(pad=1).setup(task, PLAN)


class Fails(nn.Module):
    """Its second forward pass fails."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes > 1:
            raise ValueError("over")
        y: Tensor = self.net(x)
        return y


def test_a_look_that_fails_leaves_no_hooks_and_the_modes() -> None:
    net = Fails(build("resnet8", 5, 1).net).train()
    head = net.get_submodule("net.head")
    assert isinstance(head, nn.Linear)
    with pytest.raises(ValueError, match="over"):
        _look(net, head, (1, 8, 8))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_widened_student_is_built_again_from_numbers() -> None:
    shape = (1, 8, 8)
    torch.manual_seed(1)
    first = share_head(build("wrn16-1", 5, 1).net, build("wrn10-2", 5, 1).net, shape).eval()
    again = widen(build("wrn10-2", 5, 1).net, shape, 64, (2, 2)).eval()
    again.load_state_dict(first.state_dict())
    x = torch.rand(3, *shape)
    assert torch.equal(first(x), again(x))


def test_a_projected_student_trains_with_the_classifier_held(digits_teacher: nn.Module) -> None:
    student = share_head(digits_teacher, build("wrn10-2", 10, 1).net, (1, 8, 8))
    mean, std = STATISTICS["digits"]
    task = build_task(digits_teacher, student, image_size=(1, 8, 8), mean=mean, std=std, web=web_patches(60))
    state = run(task, KD3(pad=1), replace(PLAN, rounds=1))
    assert state.fixed_parameters == ("head.weight", "head.bias")
    assert torch.equal(head_of(student).weight, head_of(digits_teacher).weight)


def test_from_python_too_a_narrower_student_gets_its_projector(digits_teacher: nn.Module, tmp_path: Path) -> None:
    mean, std = STATISTICS["digits"]
    student = build("wrn10-2", 10, 1).net
    settings: dict[str, Any] = {"image_size": (1, 8, 8), "mean": mean, "std": std, "web": web_patches(60)}
    settings |= {"plan": replace(PLAN, rounds=1), "progress": False, "figures": False, "export": False}
    done = dfkd.distill(digits_teacher, student, KD3(pad=1), out=tmp_path / "a", **settings)
    assert done.student is student
    assert torch.equal(head_of(student).weight, head_of(digits_teacher).weight)
    told = json.loads((tmp_path / "a/student.json").read_text())["network"]["projector"]
    again = widen(build("wrn10-2", 10, 1).net, (1, 8, 8), **told)
    again.load_state_dict(load_file(tmp_path / "a/student.safetensors"))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(student.eval()(x), again.eval()(x))  # channels last or not
    dfkd.distill(digits_teacher, student, KD3(pad=1), out=tmp_path / "b", **settings)  # it fits already
    assert json.loads((tmp_path / "b/student.json").read_text())["network"]["projector"] == told


def test_a_student_that_fits_is_left_alone_and_nothing_is_drawn(digits_teacher: nn.Module) -> None:
    same, bare, wide = build("resnet8", 10, 1).net, build("resnet8", 10, 1).net, build("wrn10-2", 10, 1).net
    setattr(bare, "head", nn.Linear(64, 10, bias=False))  # noqa: B010
    cases: list[tuple[KD3 | NAYER, nn.Module]] = [
        (KD3(), same),
        (KD3(share_head=False), same),
        (KD3(share_head=False), bare),
        (NAYER(), wide),
    ]
    for method, student in cases:
        before, random = weights_hash(student), torch.get_rng_state()
        assert method.fit(digits_teacher, student, (1, 8, 8)) is student
        assert weights_hash(student) == before
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("bias", [True, False])
def test_a_student_of_another_width_keeps_a_classifier_of_its_own(digits_teacher: nn.Module, bias: bool) -> None:
    student = build("wrn10-2", 10, 1).net
    setattr(student, "head", nn.Linear(128, 10, bias=bias))  # noqa: B010
    mean, std = STATISTICS["digits"]
    settings: dict[str, Any] = {"image_size": (1, 8, 8), "mean": mean, "std": std, "web": web_patches(60)}
    settings |= {"plan": replace(PLAN, rounds=1), "progress": False, "figures": False, "export": False}
    dfkd.distill(digits_teacher, student, KD3(pad=1, share_head=False), **settings)
    found = survey(student, (1, 8, 8))
    own = head_of(student, found.head or "")
    assert (own.in_features, own.bias is not None) == (64, bias)
    assert not torch.equal(own.weight, head_of(digits_teacher).weight)


def of_outputs(count: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, count)
    ).eval()


@pytest.mark.parametrize(("teacher", "student"), [(1, 2), (2, 1)])
def test_classifiers_of_one_and_of_two_outputs_are_not_one(teacher: int, student: int) -> None:
    T, S, shape = of_outputs(teacher), of_outputs(student), (1, 8, 8)
    said = f"share_head needs a student with as many outputs .* has {teacher}, got {student}; build"
    with pytest.raises(UserError, match=said):
        share_head(T, S, shape)
    with pytest.raises(UserError, match=said):
        KD3().fit(T, S, shape)
    task = build_task(T, S, image_size=shape, mean=[0.5], std=[0.25], web=web_patches(30))
    with pytest.raises(UserError, match=said):
        KD3().setup(task, PLAN)
    state = run(task, KD3(share_head=False, pad=1, v_th=0.0), replace(PLAN, rounds=1))
    assert state.fixed_parameters == ()


def test_a_contrast_needs_two_images(digits_teacher: nn.Module) -> None:
    task, plan = make(digits_teacher), replace(PLAN, batch_size=1)
    with pytest.raises(UserError, match=r"KD3 needs plan\.batch_size of at least 2 images .*, got 1; raise it"):
        KD3().setup(task, plan)
    KD3(mdcl="none").setup(task, plan)


def test_hidden_test_images_are_found() -> None:
    images = read_images("digits").images[:30]
    web = torch.cat([web_patches(40), images[3:5], images[7:8], torch.full((2, 1, 8, 8), 9, dtype=torch.uint8)])
    found = web_overlap(Rows(web), images, at_most=0, block=16)
    assert {(int(w), int(i)) for w, i in zip(found.web, found.image, strict=True)} >= {(40, 3), (41, 4), (42, 7)}
    assert int(found.distance.max()) == 0
    assert not {43, 44} & set(found.web.tolist())  # one colour: no hash
    blank = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert len(web_overlap(Rows(web), blank, block=16).web) == 0


def test_the_picture_shows_selected_rows_first() -> None:
    web = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
    web[:6] = 200
    grid = chosen_images(Rows(web), torch.arange(6), stream(), columns=3, rows=2)
    assert grid.rows.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert grid.images[:, 0, 0, 0].tolist() == [200] * 6 + [0] * 6
    with pytest.raises(UserError, match="selection_view"):
        chosen_images(Rows(web), torch.arange(0), stream())


def test_features_of_the_groups_can_be_drawn(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher)
    state, _ = selected(KD3(), task)
    assert task.web is not None
    groups = group_features(task.teacher, task.web, state.chosen, read_images("digits").images, stream(), most=12)
    assert {name: tuple(value.shape) for name, value in groups.items()}["original"] == (12, 64)
    text = tsne_figure(groups).decode()
    assert text.startswith("<?xml")
    assert "not selected (12)" in text


@pytest.mark.slow
def test_kd3_learns_digits_from_pictures_of_other_things(digits_teacher: nn.Module) -> None:
    task = make(digits_teacher, web_patches(2000))
    plan = Plan(rounds=10, steps=60, batch_size=64, optimizer="adam", lr=3e-3, weight_decay=0)
    run(task, KD3(pad=1, flip=False), plan)
    exam = read_images("digits")
    with torch.no_grad():
        right = task.student(as_images(exam.images)).logits.argmax(dim=1) == exam.labels
    assert float(right.float().mean()) > 0.5
