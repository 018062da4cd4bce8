"""Losses against slow loops from the equations, closed forms and other libraries, in double precision."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax as np_softmax
from scipy.stats import entropy
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.errors import UserError
from dfkd.losses import contrast, divergence, priors, regions, statistics
from dfkd.types import Moments

N, K, D = 5, 4, 6


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradcheck(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(function, leaves)


def moments(seed: int, channels: tuple[int, ...] = (3, 7)) -> list[Moments]:
    return [Moments(draw(c, seed=seed + i), draw(c, seed=seed + 50 + i).abs() + 0.1) for i, c in enumerate(channels)]


# --- divergence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_kl_is_scipys(temperature: float) -> None:
    t, s = draw(N, K, scale=3), draw(N, K, seed=1, scale=3)
    p = np_softmax(t.numpy() / temperature, axis=1)
    q = np_softmax(s.numpy() / temperature, axis=1)
    torch.testing.assert_close(divergence.kl_per_image(t, s, temperature), torch.from_numpy(entropy(p, q, axis=1)))


@pytest.mark.parametrize(("reduction", "entries"), [("batchmean", N), ("element_mean", N * K)])
def test_knowledge_distillation_is_torchs_kl_times_temperature_squared(reduction: str, entries: int) -> None:
    t, s, tau = draw(N, K, scale=3), draw(N, K, seed=1), 7.0
    summed = F.kl_div(F.log_softmax(s / tau, 1), F.softmax(t / tau, 1), reduction="sum")
    expected = tau**2 * summed / entries
    torch.testing.assert_close(divergence.knowledge_distillation(t, s, tau, reduction), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 30), st.floats(-5, 5))
def test_kl_is_never_negative_zero_on_itself_and_ignores_a_constant(seed: int, tau: float, shift: float) -> None:
    t, s = draw(3, K, seed=seed, scale=5), draw(3, K, seed=seed + 1, scale=5)
    assert (divergence.kl_per_image(t, s, tau) >= -1e-12).all()
    torch.testing.assert_close(divergence.kl_per_image(t, t + shift, tau), torch.zeros(3).double())


def test_kl_stays_finite_where_a_probability_underflows() -> None:
    t = torch.tensor([[0.0, -1e4]], requires_grad=True)
    s = torch.tensor([[-1e4, 0.0]], requires_grad=True)
    loss = divergence.knowledge_distillation(t, s, 1.0)
    loss.backward()
    assert t.grad is not None
    assert s.grad is not None
    assert loss.isfinite()
    assert t.grad.isfinite().all()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("masked", [True, False])
def test_agreeing_divergence_counts_agreement_and_averages_over_everybody(masked: bool) -> None:
    t, s = draw(12, 3, scale=2), draw(12, 3, seed=1, scale=2)
    total = 0.0
    for row_t, row_s in zip(t, s, strict=True):
        if not masked or row_t.argmax() == row_s.argmax():
            total += entropy(row_t.softmax(0).numpy(), row_s.softmax(0).numpy())
    agreed = int((t.argmax(1) == s.argmax(1)).sum())
    assert 0 < agreed < 12
    assert float(divergence.agreeing_divergence(t, s, masked=masked)) == pytest.approx(total / 12)


def test_cross_entropies() -> None:
    t, s, tau = draw(N, K), draw(N, K, seed=1), 20.0
    labels = torch.tensor([0, 3, 1, 2, 2])
    expected = -torch.stack([s[i].log_softmax(0)[labels[i]] for i in range(N)]).mean()
    torch.testing.assert_close(divergence.cross_entropy(s, labels), expected)
    expected = F.cross_entropy(s / tau, (t / tau).softmax(1))
    torch.testing.assert_close(divergence.soft_cross_entropy(t, s, tau), expected)


def test_divergences_are_smooth() -> None:
    t, s = draw(3, K), draw(3, K, seed=1)
    gradcheck(lambda a, b: divergence.knowledge_distillation(a, b, 3.0), t, s)
    gradcheck(lambda a, b: divergence.soft_cross_entropy(a, b, 3.0), t, s)
    gradcheck(lambda a, b: divergence.agreeing_divergence(a, b, masked=False), t, s)


# --- BatchNorm statistics -----------------------------------------------------------------------------------


def test_moment_distance_is_the_sum_of_unsquared_norms() -> None:
    batch, stored = moments(0), moments(9)
    expected = sum(
        math.sqrt(sum(float(a - b) ** 2 for a, b in zip(x, y, strict=True)))
        for seen, kept in zip(batch, stored, strict=True)
        for x, y in zip(seen, kept, strict=True)
    )
    assert float(statistics.moment_distance(batch, stored)) == pytest.approx(expected)


def test_gaussian_divergence_is_torchs_kl_of_generated_from_stored() -> None:
    batch, stored = moments(0), moments(9)
    normal = torch.distributions.Normal
    expected = sum(
        torch.distributions.kl_divergence(normal(seen.mean, seen.var.sqrt()), normal(kept.mean, kept.var.sqrt())).sum()
        for seen, kept in zip(batch, stored, strict=True)
    )
    torch.testing.assert_close(statistics.gaussian_divergence(batch, stored, eps=0.0), expected)


def test_statistics_losses_are_zero_on_the_batch_that_made_the_statistics() -> None:
    x = draw(8, 3, 4, 4)
    layer = nn.BatchNorm2d(3, momentum=1.0).double()
    layer(x)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count = x.numel() / 3
    stored = [Moments(layer.running_mean, layer.running_var * (count - 1) / count)]  # stored unbiased
    batch = [Moments(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))]
    assert float(statistics.moment_distance(batch, stored)) == pytest.approx(0, abs=1e-12)
    assert float(statistics.gaussian_divergence(batch, stored)) == pytest.approx(0, abs=1e-12)


def test_statistics_losses_are_smooth_and_finite_on_a_dead_channel() -> None:
    stored = moments(9, (3,))

    def both(mean: Tensor, var: Tensor) -> Tensor:
        batch = [Moments(mean, var)]
        return statistics.moment_distance(batch, stored) + statistics.gaussian_divergence(batch, stored)

    gradcheck(both, draw(3, seed=3), draw(3, seed=4).abs() + 0.2)
    dead, alive = torch.zeros(2), torch.tensor([1.0, 0.0])
    assert statistics.gaussian_divergence([Moments(dead, dead)], [Moments(dead, alive)]).isfinite()


def test_blend_and_average_of_moments() -> None:
    batch, average = moments(0), moments(9)
    for got, seen, kept in zip(statistics.blend_moments(batch, average, 0.9), batch, average, strict=True):
        torch.testing.assert_close(got.mean, 0.1 * seen.mean + 0.9 * kept.mean)
        torch.testing.assert_close(got.var, 0.1 * seen.var + 0.9 * kept.var)
    first = statistics.update_moments([], batch, 0.9)
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(first, batch, strict=True))
    grown = [Moments(m.mean.clone().requires_grad_(), m.var) for m in batch]
    second = statistics.update_moments(average, grown, 0.9)
    torch.testing.assert_close(second[1].var, 0.9 * average[1].var + 0.1 * batch[1].var)
    assert not second[0].mean.requires_grad


# --- regions ------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """Two convolutional stages, pooling, linear head; smooth, double precision, no coupling of images."""

    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width, K)
        self.double()
        for i, parameter in enumerate(self.parameters()):
            parameter.data = draw(*parameter.shape, seed=seed + i, scale=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = torch.tanh(self.one(x))
        second = F.softplus(self.two(first))
        return self.head(second.mean((2, 3))), (first, second)


def hooked_grad_cam(net: Small, layer: str, images: Tensor, classes: Tensor) -> list[Tensor]:
    """Grad-CAM the usual way: hooks on an activation, one image and one backward pass at a time."""
    found: list[Tensor] = []
    for image, label in zip(images, classes, strict=True):
        kept: dict[str, Tensor] = {}
        x = image[None]
        activation = nn.Sequential(net.one, nn.Tanh())
        if layer == "two":
            activation = nn.Sequential(activation, net.two, nn.Softplus())
        rest = nn.Sequential() if layer == "two" else nn.Sequential(net.two, nn.Softplus())
        target = activation[-1]

        def keep_output(module: nn.Module, inputs: Any, output: Tensor, kept: Any = kept) -> None:
            kept["a"] = output

        def keep_gradient(module: nn.Module, inputs: Any, outputs: Any, kept: Any = kept) -> None:
            kept["g"] = outputs[0]

        forward = target.register_forward_hook(keep_output)
        backward = target.register_full_backward_hook(keep_gradient)
        logits = net.head(rest(activation(x)).mean((2, 3)))
        logits[0, label].backward()
        forward.remove()
        backward.remove()
        gradient, value = kept["g"][0], kept["a"][0].detach()
        cam = torch.zeros(value.shape[1:], dtype=torch.float64)
        for c in range(value.shape[0]):
            cam += gradient[c].mean() * value[c]
        found.append(cam)
    return found


def test_grad_cam_is_that_of_hooks_and_loops() -> None:
    net, images = Small(), draw(3, 3, 8, 8, seed=20)
    classes = torch.tensor([0, 3, 1])
    logits, maps = net(images)
    cams = regions.grad_cams(logits, maps, classes)
    for layer, cam in zip(("one", "two"), cams, strict=True):
        torch.testing.assert_close(cam, torch.stack(hooked_grad_cam(net, layer, images, classes)))
    torch.testing.assert_close(regions.grad_cam(logits, maps[0], classes), cams[0])
    assert any((cam < 0).any() for cam in cams)  # nothing was rectified


def test_cams_of_channels_last_maps_are_the_same_and_keep_the_format_of_their_gradient() -> None:
    net, images = Small(), draw(3, 3, 8, 8, seed=23)
    classes, weight = torch.tensor([0, 3, 1]), draw(4, 5, seed=24)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        logits, maps = net(images)
        stage = draw(3, 5, 4, 6, seed=25).to(memory_format=memory_format).requires_grad_(True)
        both = regions.class_activation_maps(stage, weight), regions._weigh_channels(stage, draw(3, 5, 4, 6, seed=26))
        (gradient,) = torch.autograd.grad(both[0].sin().sum() + both[1].sin().sum(), (stage,))
        assert gradient.is_contiguous(memory_format=memory_format)
        found.append((*both, gradient, *regions.grad_cams(logits, maps, classes)))
    torch.testing.assert_close(found[0], found[1])


def test_grad_cam_sends_its_gradient_through_the_maps_only() -> None:
    net, images = Small(), draw(2, 3, 6, 6, seed=21)
    logits, maps = net(images)
    classes = torch.tensor([1, 2])
    cam = regions.grad_cam(logits, maps[1], classes)
    weight = net.head.weight.detach()[classes] / maps[1][0, 0].numel()  # closed form behind pooling
    torch.testing.assert_close(cam, torch.einsum("nc,nchw->nhw", weight, maps[1]))
    upstream = draw(*cam.shape, seed=22)
    got, untouched = torch.autograd.grad(
        (cam * upstream).sum(), (maps[1], net.head.weight), allow_unused=True, retain_graph=True
    )
    torch.testing.assert_close(got, torch.einsum("nc,nhw->nchw", weight, upstream))
    assert untouched is None
    second = regions.grad_cam(logits, maps[1], classes, create_graph=True)
    (through,) = torch.autograd.grad(second.sum(), (net.head.weight,))
    assert float(through.abs().sum()) > 0


def test_class_activation_maps_average_to_the_logits_without_bias() -> None:
    net, images = Small(), draw(2, 3, 6, 6, seed=21)
    logits, (_, last) = net(images)
    cams = regions.class_activation_maps(last, net.head.weight)
    assert cams.shape == (2, K, 3, 3)
    torch.testing.assert_close(cams.mean((2, 3)), logits - net.head.bias)
    expected = sum(net.head.weight[2, c].item() * last[1, c] for c in range(6))
    torch.testing.assert_close(cams[1, 2], expected)
    cams.sum().backward()
    assert net.head.weight.grad is None
    assert net.two.weight.grad is not None


def test_msarc_is_a_sum_over_stages_of_means() -> None:
    images, classes = draw(2, 3, 6, 6, seed=21), torch.tensor([1, 2])
    student, teacher = Small(5, seed=1), Small(7, seed=30)
    both = []
    for net in (student, teacher):
        logits, maps = net(images)
        both.append(regions.regions(logits, maps[-1], net.head.weight, maps, classes))
    ours, theirs = both
    loss = regions.msarc(ours, theirs, cam_weight=2.0, stage_weight=0.5)
    expected = 2.0 * np.mean((ours.classes.detach().numpy() - theirs.classes.detach().numpy()) ** 2)
    for a, b in zip(ours.stages, theirs.stages, strict=True):
        expected += 0.5 * np.mean((a.detach().numpy() - b.detach().numpy()) ** 2)
    assert loss.item() == pytest.approx(float(expected))
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.one.weight.grad is not None
    assert regions.msarc(ours, ours).item() == 0
    assert regions.regions(draw(2, K), draw(2, 5, 3, 3), draw(K, 5), (), classes).stages == ()
    with pytest.raises(ValueError, match="zip"):
        regions.msarc(ours, theirs._replace(stages=theirs.stages[:1]))


def slow_attention(maps: Tensor) -> Tensor:
    n, c, h, w = maps.shape
    rows = []
    for i in range(n):
        row = [sum(float(maps[i, k, y, x]) ** 2 for k in range(c)) / c for y in range(h) for x in range(w)]
        length = math.sqrt(sum(value**2 for value in row))
        rows.append([value / length for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def test_attention_transfer_and_fitnets() -> None:
    student, teacher = draw(2, 3, 4, 4), draw(2, 5, 4, 4, seed=1)
    expected = (slow_attention(student) - slow_attention(teacher)).pow(2).mean()
    torch.testing.assert_close(regions.attention_transfer(student, teacher), expected)
    torch.testing.assert_close(
        regions.attention_transfer(-3 * student, teacher), expected
    )  # scale and sign do not matter
    gradcheck(lambda s: regions.attention_transfer(s, teacher), student)
    features = draw(2, 5, 4, 4, seed=2)
    assert float(regions.fitnets(features, teacher)) == pytest.approx(
        float(np.mean((features.numpy() - teacher.numpy()) ** 2))
    )
    constant = teacher.clone().requires_grad_()
    loss = regions.fitnets(features.requires_grad_(), constant)
    loss = loss + regions.attention_transfer(student, constant)
    loss.backward()
    assert constant.grad is None


def test_cam_difference_is_in_grey_levels_per_image() -> None:
    student, teacher = draw(3, 4, 4), draw(3, 4, 4, seed=1)
    grey = []
    for cams in (student.numpy(), teacher.numpy()):
        grey.append(np.stack([255 * (cam - cam.min()) / (cam.max() - cam.min()) for cam in cams]))
    got = regions.cam_difference(student, teacher)
    assert float(got.mae) == pytest.approx(float(np.abs(grey[0] - grey[1]).mean()))
    assert float(got.mse) == pytest.approx(float(((grey[0] - grey[1]) ** 2).mean()))
    same = regions.cam_difference(3 * student + 7, student)
    assert float(same.mae) == pytest.approx(0, abs=1e-10)
    flat = regions.cam_difference(torch.full((1, 2, 2), 5.0), torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]))
    assert float(flat.mae) == pytest.approx(255 * 3 / 4)


# --- contrast -----------------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_distribution_contrast_excludes_the_positive(reduction: contrast.Reduction) -> None:
    z, zhat, tau = draw(N, D), draw(N, D, seed=1), 0.3
    total = 0.0
    for i in range(N):
        negatives = sum(math.exp(cosine(z[i], zhat[j]) / tau) for j in range(N) if j != i)
        total -= math.log(math.exp(cosine(z[i], zhat[i]) / tau) / negatives)
    expected = total if reduction == "sum" else total / N
    assert float(contrast.distribution_contrast(z, zhat, tau, reduction)) == pytest.approx(expected)


def test_distribution_contrast_may_be_negative_and_needs_two_images() -> None:
    z = torch.eye(3, dtype=torch.float64)
    assert float(contrast.distribution_contrast(z, z)) == pytest.approx(3 * (math.log(2) - 1 / 0.3))
    with pytest.raises(UserError, match="needs at least 2 images, got 1;"):
        contrast.distribution_contrast(z[:1], z[:1])


def test_info_nce_is_cross_entropy_on_the_diagonal() -> None:
    a, b, tau = draw(3, D), draw(N, D, seed=1), 0.2
    for i, loss in enumerate(contrast.info_nce(a, b, tau).tolist()):
        everybody = sum(math.exp(cosine(a[i], b[j]) / tau) for j in range(N))
        assert loss == pytest.approx(-math.log(math.exp(cosine(a[i], b[i]) / tau) / everybody))


def test_cmi_contrast_adds_the_mean_over_the_bank() -> None:
    local, global_ = draw(N, D).requires_grad_(), draw(N, D, seed=1).requires_grad_()
    logits = F.normalize(local) @ F.normalize(global_).T / 0.1
    rows = F.cross_entropy(logits, torch.arange(N), reduction="none")
    loss = contrast.cmi_contrast(local, global_, fresh=2)
    torch.testing.assert_close(loss, rows[:2].mean() + rows[2:].mean())
    torch.testing.assert_close(contrast.cmi_contrast(local, global_, fresh=N), rows.mean())
    loss.backward()
    assert local.grad is not None
    assert global_.grad is None


def test_agreement_weight_and_weighted_alignment() -> None:
    s, t = draw(N, K, scale=2).requires_grad_(), draw(N, K, seed=1, scale=2)
    weight = contrast.agreement_weight(s, t)
    assert not weight.requires_grad
    fs, ft = draw(N, D, seed=2), draw(N, D, seed=3)
    total = 0.0
    for i in range(N):
        gap = (s[i].softmax(0) - t[i].softmax(0)).abs().sum().item()
        w = 1 - 1 / (1 + math.exp(-gap))
        assert float(weight[i]) == pytest.approx(w)
        total += w * float(((fs[i] - ft[i]) ** 2).mean())
    assert float(contrast.weighted_feature_alignment(fs, ft, weight)) == pytest.approx(total / N)
    assert float(contrast.weighted_feature_alignment(fs, ft, weight, "sum")) == pytest.approx(D * total / N)
    extremes = contrast.agreement_weight(
        torch.tensor([[99.0, -99.0], [1.0, 2.0]]), torch.tensor([[-99.0, 99.0], [1.0, 2.0]])
    )
    torch.testing.assert_close(extremes, torch.tensor([1 / (1 + math.exp(2)), 0.5]))


def test_contrasts_are_smooth() -> None:
    a, b = draw(3, D), draw(3, D, seed=1)
    gradcheck(lambda x, y: contrast.distribution_contrast(x, y), a, b)
    gradcheck(lambda x, y: contrast.info_nce(x, y, 0.5), a, b)
    gradcheck(lambda x: contrast.cmi_contrast(x, b, 1, 0.5), a)
    gradcheck(lambda x: contrast.weighted_feature_alignment(x, b, torch.tensor([0.2, 0.3, 0.5]).double()), a)


# --- priors -------------------------------------------------------------------------------------------------


def slow_differences(x: Tensor) -> list[list[float]]:
    n, c, h, w = x.shape
    found: list[list[float]] = []
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        found.append(
            [
                float(x[i, k, y, z] - x[i, k, y + dy, z + dx])
                for i in range(n)
                for k in range(c)
                for y in range(h)
                for z in range(w)
                if y + dy < h and 0 <= z + dx < w
            ]
        )
    return found


def test_total_variation() -> None:
    x = draw(2, 3, 4, 5)
    lists = slow_differences(x)
    l2 = sum(math.sqrt(sum(d * d for d in ds)) for ds in lists)
    l1 = sum(sum(abs(d) for d in ds) / len(ds) for ds in lists)
    assert float(priors.total_variation_l2(x)) == pytest.approx(l2)
    assert float(priors.total_variation_l1(x)) == pytest.approx(l1)
    assert float(priors.total_variation_l2(x + 3)) == pytest.approx(l2)
    assert float(priors.total_variation_l1(x.flip(2, 3))) == pytest.approx(l1)
    gradcheck(priors.total_variation_l2, x)
    flat = torch.ones(1, 1, 3, 3, requires_grad=True)
    priors.total_variation_l2(flat).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_norms_and_activations() -> None:
    x = draw(3, 2, 4, 4)
    array = x.numpy()
    assert float(priors.image_norm(x)) == pytest.approx(float(np.linalg.norm(array)))
    each = np.mean([np.linalg.norm(image) for image in array])
    assert float(priors.image_norm(x, per="image")) == pytest.approx(float(each))
    assert float(priors.activation_loss(x)) == pytest.approx(-float(np.abs(array).mean()))
    summed = -np.mean([np.abs(image).sum() for image in array])
    assert float(priors.activation_loss(x, "sum")) == pytest.approx(float(summed))


@pytest.mark.parametrize("base", [math.e, 10.0])
def test_class_balance_is_negative_entropy_of_the_mean(base: float) -> None:
    t = draw(N, K, scale=3)
    mean = np_softmax(t.numpy(), axis=1).mean(axis=0)
    assert float(priors.class_balance(t, base)) == pytest.approx(-float(entropy(mean, base=base)))
    gradcheck(lambda x: priors.class_balance(x, base), t)


def test_class_balance_is_lowest_when_balanced_and_finite_when_not() -> None:
    assert float(priors.class_balance(50 * torch.eye(K))) == pytest.approx(-math.log(K))
    one_sided = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = priors.class_balance(one_sided)
    loss.backward()
    assert float(loss.detach()) == 0
    assert one_sided.grad is not None
    assert one_sided.grad.isfinite().all()


def test_deepinversions_js_is_as_coded() -> None:
    s, t = draw(N, K, scale=9), draw(N, K, seed=1, scale=9)
    p, q = (s / 3).softmax(1), (t / 3).softmax(1)
    m = 0.5 * (p + q)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, m))
    js = sum(0.5 * F.kl_div(x.log(), m, reduction="batchmean") for x in (p, q))
    assert isinstance(js, Tensor)
    torch.testing.assert_close(priors.jensen_shannon_as_coded(s, t), js)
    torch.testing.assert_close(priors.competition(s, t), 1 - js.clamp(0, 1))
    assert float(priors.competition(s, s)) == 1
    gradcheck(lambda a, b: priors.competition(a, b), draw(3, K), draw(3, K, seed=1))


# --- all of them --------------------------------------------------------------------------------------------

A, B, IMAGES = draw(N, D), draw(N, D, seed=1), draw(2, 3, 4, 4)
EVERY: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("kd", divergence.knowledge_distillation, (A, B, 4.0)),
    ("agreeing", divergence.agreeing_divergence, (A, B)),
    ("soft_ce", divergence.soft_cross_entropy, (A, B, 4.0)),
    ("moments", statistics.moment_distance, (moments(0), moments(9))),
    ("gaussian", statistics.gaussian_divergence, (moments(0), moments(9))),
    ("cam", regions.class_activation_maps, (IMAGES, draw(K, 3))),
    ("consistency", regions.region_consistency, (A, B)),
    ("attention", regions.attention_transfer, (IMAGES, draw(2, 5, 4, 4))),
    ("fitnets", regions.fitnets, (A, B)),
    ("cam_difference", regions.cam_difference, (IMAGES[0], IMAGES[1])),
    ("contrast", contrast.distribution_contrast, (A, B)),
    ("cmi", contrast.cmi_contrast, (A, B, 2)),
    ("agreement", contrast.agreement_weight, (A, B)),
    ("alignment", contrast.weighted_feature_alignment, (A, B, draw(N).abs())),
    ("tv2", priors.total_variation_l2, (IMAGES,)),
    ("tv1", priors.total_variation_l1, (IMAGES,)),
    ("norm", priors.image_norm, (IMAGES, "image")),
    ("activation", priors.activation_loss, (A, "sum")),
    ("balance", priors.class_balance, (A, 10.0)),
    ("competition", priors.competition, (A, B)),
]


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for item in value for leaf in leaves(item)]


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    if isinstance(value, Moments):
        return Moments(value.mean.to(dtype), value.var.to(dtype))
    return [cast(item, dtype) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("function", "arguments"), [e[1:] for e in EVERY], ids=[e[0] for e in EVERY])
def test_every_loss_is_one_graph(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(leaves(compiled(*arguments)), leaves(function(*arguments)))


@pytest.mark.parametrize(("function", "arguments"), [e[1:] for e in EVERY], ids=[e[0] for e in EVERY])
def test_every_loss_takes_any_precision(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for dtype, rtol in ((torch.float32, 1e-4), (torch.bfloat16, 0.08)):
        got = leaves(function(*(cast(a, dtype) for a in arguments)))
        for value, exact in zip(got, leaves(function(*arguments)), strict=True):
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), exact, rtol=rtol, atol=rtol)


def test_grad_cam_is_one_graph_where_dynamo_may_trace_autograd() -> None:
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch cannot trace torch.autograd.grad")
    net, images, classes = Small(), draw(2, 3, 6, 6, seed=21), torch.tensor([1, 2])

    def loss(x: Tensor) -> Tensor:
        logits, maps = net(x)
        cams = regions.grad_cams(logits, maps, classes)
        return logits.sum() + sum((cam.square().mean() for cam in cams), torch.zeros(()))

    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(images), loss(images))
