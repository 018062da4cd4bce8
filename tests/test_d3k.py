"""D3K: its generators against ordinary layers, its objective against loops, every option once."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.engine.core import Clock, Task
from dfkd.engine.driver import run
from dfkd.errors import UserError
from dfkd.methods.d3k import D3K, D3KState, objective
from dfkd.nets.supernet import SubnetShape, SuperNet, draw_subnet
from dfkd.ops.hashing import dhash_codes
from settings import SETTINGS, tiny_task

ROW = SETTINGS["D3K"]
LARGE = SubnetShape((7, 5, 6), (5, 3, 5))


def tiny(**changes: Any) -> D3K:
    method = ROW.method
    assert isinstance(method, D3K)
    return replace(method, **changes)


def plain(net: SuperNet, shape: SubnetShape) -> nn.Sequential:
    """The same generator from ordinary layers, holding the first channels and kernel centres of ``net``."""
    (a, b, c), sides = shape
    h, w = net.start
    outputs = (b, c, len(net.paint_bias))
    convs = [
        nn.Conv2d(i, o, k, padding=k // 2, bias=n == 2)
        for n, (i, o, k) in enumerate(zip(shape.widths, outputs, sides, strict=True))
    ]
    norms = [nn.BatchNorm2d(width) for width in shape.widths]
    project = nn.Linear(net.project.shape[-1], a * h * w)
    with torch.no_grad():
        project.weight.copy_(torch.cat([net.project[i] for i in range(a)]))
        project.bias.copy_(torch.cat([net.project_bias[i] for i in range(a)]))
        for conv, kernel in zip(convs, net.kernels, strict=True):
            edge = (kernel.shape[-1] - conv.kernel_size[0]) // 2
            inner = kernel[..., edge : kernel.shape[-1] - edge, edge : kernel.shape[-1] - edge]
            conv.weight.copy_(inner[: conv.out_channels, : conv.in_channels])
        for norm, gain, shift in zip(norms, net.gains, net.shifts, strict=True):
            norm.weight.copy_(gain[: norm.num_features])
            norm.bias.copy_(shift[: norm.num_features])
        bias = convs[2].bias
        if bias is not None:
            bias.copy_(net.paint_bias)
    up = nn.Upsample(scale_factor=2)
    head = [project, nn.Unflatten(1, (a, h, w)), norms[0], up, convs[0], norms[1], nn.LeakyReLU(0.2), up]
    return nn.Sequential(*head, convs[1], norms[2], up, convs[2], nn.Sigmoid())


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 16, 24)])
@pytest.mark.parametrize("shape", [LARGE, SubnetShape((3, 5, 2), (3, 3, 5)), SubnetShape((7, 1, 1), (5, 3, 3))])
def test_a_slice_is_the_smaller_network(image_shape: tuple[int, int, int], shape: SubnetShape) -> None:
    net = SuperNet(4, image_shape, LARGE)
    for shift in net.shifts:
        nn.init.normal_(shift)
    z = torch.randn(6, 4)
    images = net(z, shape)
    assert images.shape == (6, *image_shape)
    torch.testing.assert_close(images, plain(net, shape)(z))
    assert torch.equal(net(z), net(z, LARGE))


def test_a_slice_still_has_a_gradient_for_every_parameter() -> None:
    net = SuperNet(4, (1, 8, 8), LARGE)
    images = net(torch.randn(5, 4), SubnetShape((2, 2, 2), (3, 3, 3)))
    grads = torch.autograd.grad(images.square().sum(), list(net.parameters()))
    assert float(grads[0][2:].abs().sum()) == 0
    assert all(g is not None for g in grads)


@torch.no_grad()
def test_initial_weights() -> None:
    net = SuperNet(64, (3, 32, 32), SubnetShape((64, 64, 64), (5, 5, 5)))
    for weight in (net.project, *net.kernels):
        assert abs(float(weight.std()) - 0.02) < 2e-3
    assert abs(float(torch.cat(list(net.gains)).mean()) - 1) < 0.01
    net.redraw("torch")
    linear, conv = nn.Linear(64, 64 * 16), nn.Conv2d(64, 64, 5)
    assert abs(float(net.project.std() / linear.weight.std()) - 1) < 0.05
    assert abs(float(net.kernels[1].std() / conv.weight.std()) - 1) < 0.05
    assert all(torch.equal(gain, torch.ones(64)) for gain in net.gains)


def test_drawn_shapes_cover_their_ranges_and_are_equal_in_every_process() -> None:
    shapes = [draw_subnet((16, 19), (3, 5)) for _ in range(200)]
    widths = [width for shape in shapes for width in shape.widths]
    sides = [side for shape in shapes for side in shape.kernels]
    assert set(widths) == {16, 17, 18, 19}
    assert set(sides) == {3, 5}
    assert all(abs(widths.count(width) / 600 - 0.25) < 0.08 for width in range(16, 20))
    torch.manual_seed(3)
    again = [draw_subnet((16, 256), (3, 5)) for _ in range(3)]
    torch.manual_seed(3)
    assert again == [draw_subnet((16, 256), (3, 5)) for _ in range(3)]


def loops(method: D3K, task: Task, x: Tensor, seen: Tensor, y: Tensor, bank: Tensor) -> dict[str, float]:
    """The generator's loss in double precision, one number at a time."""
    T, S = task.teacher, task.student
    t, s, read = T(seen).logits.double(), S(seen).logits.double(), T(seen, stats=True)
    terms = {"cls": 0.0, "adv": 0.0, "bn": 0.0, "hash": 0.0}
    n = len(x)
    for i in range(n):
        p, q = torch.softmax(t[i], 0), torch.softmax(s[i], 0)
        terms["cls"] -= float(p[y[i]].log()) / n
        if int(t[i].argmax()) == int(s[i].argmax()) or not method.mask:
            terms["adv"] += sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)) / n
    for now, stored in zip(read.stats, read.stored, strict=True):
        for m1, v1, m2, v2 in zip(now.mean, now.var, stored.mean, stored.var, strict=True):
            one = torch.distributions.Normal(m1.double(), (v1.double() + method.bn_eps).sqrt())
            two = torch.distributions.Normal(m2.double(), (v2.double() + method.bn_eps).sqrt())
            terms["bn"] += float(torch.distributions.kl_divergence(one, two))
    new = dhash_codes(x, method.hash_pool)
    for code in new:
        for other in bank:
            terms["hash"] -= float((code - other).double().square().mean()) / (n * len(bank))
    return terms


@pytest.mark.parametrize("mask", [True, False])
def test_the_objective_is_the_sum_of_its_terms(mask: bool) -> None:
    method = tiny(mask=mask, alpha=0.7, beta=1.3, gamma=0.4, theta=2.0)
    task = tiny_task(ROW)
    task.teacher.freeze()
    task.student.freeze()
    x, seen = torch.rand(9, *ROW.image_shape), torch.rand(9, *ROW.image_shape)
    y, bank = torch.arange(9) % ROW.classes, (torch.rand(5, 15) < 0.5).float()
    out = objective(method, task.teacher, task.student, x, seen, y, bank, True)
    want = loops(method, task, x, seen, y, bank)
    for name, value in want.items():
        assert float(getattr(out, name)) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    total = 0.7 * want["bn"] + 1.3 * want["cls"] - 0.4 * want["adv"] + 2.0 * want["hash"]
    assert float(out.loss) == pytest.approx(total, rel=1e-4)
    quiet = objective(method, task.teacher, task.student, x, seen, y, bank[:0], False)
    assert float(quiet.adv) == float(quiet.hash) == 0


def test_a_cap_scales_the_statistics_term_and_keeps_its_direction() -> None:
    task = tiny_task(ROW)
    task.teacher.freeze()
    x = torch.rand(6, *ROW.image_shape, requires_grad=True)
    y, bank = torch.arange(6) % ROW.classes, torch.zeros(0, 15)
    slopes = []
    for cap in (None, 1e9, 0.5):
        out = objective(tiny(beta=0.0, bn_cap=cap), task.teacher, task.student, x, x, y, bank, False)
        slopes.append(torch.autograd.grad(out.bn, x)[0].flatten())
    assert float(out.bn.detach()) == pytest.approx(0.5)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert float(torch.cosine_similarity(slopes[0], slopes[2], dim=0)) == pytest.approx(1, abs=1e-5)


def test_the_bank_holds_the_codes_of_the_batch_before() -> None:
    task = tiny_task(ROW)
    method = tiny(batches=1)
    state = method.setup(task, ROW.plan)
    assert state.bank.shape == (0, 15)
    task.student.freeze()
    first = method.synthesize(task, state, Clock(ROW.plan, 0))
    assert float(first["loss/hash"]) == 0
    made = state.pool.newest(10)["images"].float() / 255
    assert state.bank.shape == (10, 15)
    assert float((state.bank != dhash_codes(made, 2)).float().mean()) < 0.05  # stored images are rounded to bytes
    assert "bank_distance" not in first
    before = state.bank.clone()
    second = method.synthesize(task, state, Clock(ROW.plan, 1))
    assert float(second["loss/hash"]) < 0
    apart = [float((a != b).double().mean()) for a in state.bank for b in before]
    assert float(second["bank_distance"]) == pytest.approx(sum(apart) / len(apart), abs=1e-6)
    assert set(vars(state)) == {"pool", "bank", "joint", "fixed_parameters", "optimizers"}


OPTIONS: list[dict[str, Any]] = [
    {"resample": "iteration"},
    {"optimise_z": True},
    {"bn": "l2"},
    {"bn_cap": 3.0},
    {"ste": "difference"},
    {"hash_form": "xor"},
    {"pairing": "index"},
    {"pairing": "random"},
    {"labels": "uniform", "keep": "last"},
    {"init": "torch"},
    {"alpha": 0.0},
    {"theta": 0.0, "widths": (5, 5), "kernels": (3,)},
    {"temperature": 0.5, "mask": False},
]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_changes_the_student(option: dict[str, Any]) -> None:
    nets = []
    for method in (tiny(), tiny(**option)):
        task = tiny_task(ROW)
        run(task, method, ROW.plan)
        nets.append(torch.cat([p.detach().flatten() for p in task.student.parameters()]))
    assert nets[1].isfinite().all()
    assert not torch.equal(nets[0], nets[1])


def test_codes_follow_only_when_asked() -> None:
    task = tiny_task(replace(ROW, image_shape=(3, 16, 8)))
    state: D3KState = tiny(hash_pool=4).setup(task, ROW.plan)
    assert state.bank.shape == (0, 7)
    task.student.freeze()
    tiny(hash_pool=4).synthesize(task, state, Clock(ROW.plan, 1))
    assert state.pool.newest(10)["images"].shape == (10, 3, 16, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"widths": (0, 5)}, "widths"),
        ({"widths": (9, 5)}, "widths"),
        ({"kernels": ()}, "odd kernel sizes"),
        ({"kernels": (3, 4)}, "odd kernel sizes"),
        ({"steps": 0}, "steps of at least 1"),
        ({"memory": 0}, "memory of at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**change)


@pytest.mark.parametrize("pool", [8, 16])
def test_a_hash_needs_two_blocks(pool: int) -> None:
    with pytest.raises(UserError, match="lower hash_pool"):
        tiny(hash_pool=pool).setup(tiny_task(ROW), ROW.plan)
    assert tiny(hash_pool=4).setup(tiny_task(ROW), ROW.plan).bank.shape == (0, 3)
