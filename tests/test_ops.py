"""Operations on batches against slow loops, other libraries and their invariances."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from torch import Tensor

from dfkd.errors import UserError
from dfkd.ops import augment, distances, exchange, hashing, keep_best, labels, mixing, pixels, selection


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


# --- augment ------------------------------------------------------------------------------------------------


def candidates(image: Tensor, pad: int) -> list[Tensor]:
    """Every crop of the padded image, plain and mirrored."""
    c, h, w = image.shape
    found = []
    for mirrored in (image, image.flip(2)):
        padded = torch.zeros(c, h + 2 * pad, w + 2 * pad, dtype=image.dtype)
        padded[:, pad : pad + h, pad : pad + w] = mirrored
        found += [padded[:, y : y + h, x : x + w] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8])
def test_crop_flip_is_one_of_the_crops_of_the_padded_image(dtype: torch.dtype) -> None:
    images = (draw(200, 2, 5, 6) * 254 + 1).to(dtype)
    out = augment.crop_flip(images, seeded(1), pad=2)
    assert out.dtype == dtype
    seen: Counter[int] = Counter()
    for image, got in zip(images, out, strict=True):
        matches = [i for i, crop in enumerate(candidates(image, 2)) if torch.equal(crop, got)]
        assert len(matches) == 1
        seen[matches[0]] += 1
    assert len(seen) >= 45  # of 50 equally likely ones
    assert 70 < sum(count for i, count in seen.items() if i < 25) < 130


def test_crop_flip_can_do_nothing_only_one_or_differentiate() -> None:
    images = draw(6, 3, 4, 4)
    assert torch.equal(augment.crop_flip(images, seeded(), pad=0, flip=False), images)
    for image, got in zip(images, augment.crop_flip(images, seeded(), pad=0), strict=True):
        assert torch.equal(got, image) or torch.equal(got, image.flip(2))
    for image, got in zip(images, augment.crop_flip(images, seeded(), pad=1, flip=False), strict=True):
        assert any(torch.equal(got, crop) for crop in candidates(image, 1)[:9])
    leaf = images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment.crop_flip(x, seeded(3), pad=1), leaf)
    assert torch.equal(augment.crop_flip(leaf, seeded(3)), augment.crop_flip(leaf, seeded(3)))


# --- labels, keep_best, pixels ------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 1000))
def test_balanced_labels_differ_by_at_most_one(n: int, classes: int, seed: int) -> None:
    got = labels.balanced_labels(n, classes, seeded(seed), torch.device("cpu"))
    counts = torch.bincount(got, minlength=classes)
    assert got.shape == (n,)
    assert got.dtype == torch.int64
    assert int(counts.max() - counts.min()) <= 1
    whole = n - n % classes
    assert got[:whole].tolist() == list(range(classes)) * (n // classes)


def test_uniform_labels_are_uniform() -> None:
    got = labels.uniform_labels(6000, 5, seeded(), torch.device("cpu"))
    assert stats.chisquare(np.bincount(got.numpy(), minlength=5)).pvalue > 0.01


def test_keep_best_keeps_the_images_of_the_lowest_loss() -> None:
    losses = [3.0, 1.0, 2.0, math.nan, 1.0, 5.0]
    images = torch.zeros(2, 1, 2, 2)
    best = keep_best.no_best(images)
    for step, loss in enumerate(losses):
        images.fill_(step)  # the live tensor is overwritten, as an optimiser would
        best = keep_best.keep_best(best, torch.tensor(loss, requires_grad=True), images)
    assert float(best.loss) == 1.0
    assert torch.equal(best.images, torch.ones(2, 1, 2, 2))
    assert not best.images.requires_grad


def test_bytes_are_rounded_clipped_and_come_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(pixels.as_bytes(pixels.as_images(every)), every)
    images = torch.tensor([-0.5, 0.0, 0.0021, 0.4999, 1.0, 1.7]).view(1, 1, 2, 3)
    before = images.clone()
    assert pixels.as_bytes(images).flatten().tolist() == [0, 0, 1, 127, 255, 255]
    assert torch.equal(images, before)


def test_a_batch_is_rolled_and_mirrored_as_one() -> None:
    images = draw(3, 2, 6, 9)
    turns = [
        torch.roll(base, (i, j), (2, 3))
        for base in (images, images.flip(3))
        for i in range(-2, 3)
        for j in range(-2, 3)
    ]
    found = set()
    for seed in range(60):
        got = augment.roll_flip(images, seeded(seed), 2)
        (which,) = [index for index, turn in enumerate(turns) if torch.equal(got, turn)]
        found.add(which)
    assert len(found) > 25  # of 50
    assert torch.equal(augment.roll_flip(images, seeded(), 0, flip=False), images)


# --- exchange -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from(["complementary", "independent"]),
    st.integers(0, 1000),
)
def test_exchange_takes_exactly_that_many_channels_from_the_mirrored_row(
    n: int, c: int, fraction: float, pairs: exchange.Pairs, seed: int
) -> None:
    features = draw(n, c, 2, 3, seed=seed)
    out = exchange.exchange_channels(features, fraction, seeded(seed), pairs)
    for i in range(n):
        other = n - 1 - i
        kept = sum(torch.equal(out[i, k], features[i, k]) for k in range(c))
        taken = sum(torch.equal(out[i, k], features[other, k]) for k in range(c))
        count = math.floor(round(fraction * c, 6))
        assert (kept, taken) == ((c, c) if other == i else (c - count, count))


@pytest.mark.parametrize(("fraction", "channels", "count"), [(0.29, 100, 29), (0.5, 63, 31), (0.0, 4, 0), (1.0, 4, 4)])
def test_number_of_exchanged_channels(fraction: float, channels: int, count: int) -> None:
    mask = exchange.draw_channel_mask(4, channels, fraction, seeded())
    assert mask.sum(dim=1).tolist() == [count] * 4


@pytest.mark.parametrize("n", [6, 7])
def test_complementary_pairs_keep_their_channels_independent_ones_need_not(n: int) -> None:
    features = draw(n, 8, 2, 2)
    out = exchange.exchange_channels(features, 0.5, seeded(1))
    for i in range(n):
        for k in range(8):
            before = {tuple(features[row, k].flatten().tolist()) for row in (i, n - 1 - i)}
            after = {tuple(out[row, k].flatten().tolist()) for row in (i, n - 1 - i)}
            assert before == after
    mask = exchange.draw_channel_mask(n, 8, 0.5, seeded(1), "independent")
    assert not torch.equal(mask, mask.flip(0))


def test_every_channel_is_exchanged_equally_often() -> None:
    mask = exchange.draw_channel_mask(4000, 10, 0.3, seeded())
    share = mask.double().mean(dim=0)  # 2000 independent rows
    assert (share - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_mixup_and_cutmix_are_those_of_loops() -> None:
    images, partner = draw(4, 2, 6, 8), torch.tensor([2, 0, 3, 1])
    lam = torch.tensor([0.0, 0.3, 0.9, 1.0], dtype=torch.float64)
    centres = torch.tensor([[0.5, 0.5], [0.0, 0.99], [0.3, 0.6], [0.2, 0.2]], dtype=torch.float64)
    mixed, cut = exchange.mixup(images, lam, partner), exchange.cutmix(images, lam, centres, partner)
    for i in range(4):
        other = images[partner[i]]
        torch.testing.assert_close(mixed[i], lam[i] * images[i] + (1 - lam[i]) * other)
        expected = images[i].clone()
        height, width = (math.floor(math.sqrt(1 - float(lam[i])) * side) for side in (6, 8))
        top = math.floor(float(centres[i, 0]) * 6) - height // 2
        left = math.floor(float(centres[i, 1]) * 8) - width // 2
        rows = slice(max(top, 0), max(top + height, 0))
        columns = slice(max(left, 0), max(left + width, 0))
        expected[:, rows, columns] = other[:, rows, columns]
        assert torch.equal(cut[i], expected)
    assert torch.equal(cut[0], images[2])
    assert torch.equal(cut[3], images[3])


@pytest.mark.parametrize("mix", [exchange.draw_mixup, exchange.draw_cutmix, mixing.draw_mix_distribution])
def test_drawn_mixtures_repeat_with_the_generator(mix: Callable[..., Tensor]) -> None:
    images = draw(8, 3, 8, 8).float()
    first = mix(images, 1.0, seeded(4))
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert torch.equal(first, mix(images, 1.0, seeded(4)))
    assert not torch.equal(first, mix(images, 1.0, seeded(5)))


def test_a_batch_is_mixed_together_as_in_spaceship_nets_code() -> None:
    """One share or window for all, the partners are the batch in reverse order."""
    images = draw(5, 2, 6, 8)
    mixed = exchange.draw_mixup(images, 1.0, seeded(3), together=True)
    lam = float(mixing.draw_beta(1.0, 1.0, 1, seeded(3)))
    for i in range(5):
        torch.testing.assert_close(mixed[i], lam * images[i] + (1 - lam) * images[4 - i], rtol=1e-6, atol=1e-7)
    cut = exchange.draw_cutmix(images, 1.0, seeded(3), together=True)
    pasted = [(cut[i] != images[i]).any(dim=0) for i in (0, 1, 3, 4)]
    assert all(torch.equal(window, pasted[0]) for window in pasted)
    assert bool(pasted[0].any())
    for i in range(5):
        torch.testing.assert_close(cut[i], torch.where(pasted[0], images[4 - i], images[i]))


# --- mixing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.5, 2.0), (2.0, 3.0), (1.0, 1.0), (0.4, 0.4)])
def test_beta_draws_have_scipys_law(a: float, b: float) -> None:
    sample = mixing.draw_beta(a, b, 20_000, seeded()).double().numpy()
    assert stats.kstest(sample, stats.beta(a, b).cdf).pvalue > 0.001


@pytest.mark.parametrize("delta", [0.1, 0.01, 1e-4])
def test_small_beta_parameters_do_not_underflow(delta: float) -> None:
    sample = mixing.draw_beta(delta, delta, 20_000, seeded()).double().numpy()
    assert ((sample >= 0) & (sample <= 1)).all()
    for x in (0.001, 0.2, 0.5, 0.9):
        p = float(stats.beta(delta, delta).cdf(x))
        assert abs((sample <= x).mean() - p) < 5 * math.sqrt(p * (1 - p) / 20_000)


def test_mix_draw() -> None:
    lam, permutation = mixing.draw_mix(50, 0.1, seeded())
    assert sorted(permutation.tolist()) == list(range(50))
    assert lam.shape == (50,)
    assert len(set(lam.tolist())) > 25  # one per image


def test_mix_distribution_is_that_of_a_loop() -> None:
    images, partner = draw(3, 2, 4, 5), torch.tensor([1, 2, 0])
    lam = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for eps in (0.0, 1e-6, 0.1):  # large enough to tell a deviation's from a variance's
        got = mixing.mix_distribution(images, lam, partner, eps)
        for i in range(3):
            for c in range(2):
                x, y = images[i, c].numpy(), images[partner[i], c].numpy()
                share = float(lam[i])
                gamma = share * (x.std() + eps) + (1 - share) * (y.std() + eps)
                beta = share * x.mean() + (1 - share) * y.mean()
                np.testing.assert_allclose(got[i, c].numpy(), gamma * (x - x.mean()) / (x.std() + eps) + beta)
    assert torch.equal(
        mixing.mix_distribution(images, lam, partner), mixing.mix_distribution(images, lam, partner, 1e-6)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_mix_distribution_identity_exchange_and_affine_normalisation(seed: int) -> None:
    images = draw(4, 3, 6, 6, seed=seed).float()
    partner = torch.tensor([1, 0, 3, 2])
    own = mixing.mix_distribution(images, torch.ones(4), partner)
    torch.testing.assert_close(own, images, rtol=0, atol=1e-5)
    swapped = mixing.mix_distribution(images, torch.zeros(4), partner)
    torch.testing.assert_close(swapped.mean((2, 3)), images[partner].mean((2, 3)), rtol=0, atol=1e-5)
    lam = torch.full((4,), 0.3)
    normalised = mixing.mix_distribution((images - 0.4) / 0.2, lam, partner)
    expected = (mixing.mix_distribution(images, lam, partner) - 0.4) / 0.2
    torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-3)


def test_mix_distribution_is_smooth_and_finite_on_flat_images() -> None:
    partner, lam = torch.tensor([1, 0]), torch.tensor([0.2, 0.7], dtype=torch.float64)
    leaf = draw(2, 1, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixing.mix_distribution(x, lam, partner), leaf)
    flat = torch.full((2, 1, 3, 3), 0.5)
    torch.testing.assert_close(mixing.mix_distribution(flat, lam.float(), partner), flat)
    flat[0] = torch.rand(1, 3, 3, generator=seeded())  # one colour, mixed with a picture, takes the mixed mean
    mixed = mixing.mix_distribution(flat, lam.float(), partner)
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed[1], (0.7 * flat[1] + 0.3 * flat[0].mean()).expand(1, 3, 3))


# --- D-Dhash ------------------------------------------------------------------------------------------------


def slow_dhash(image: Tensor, pool: int) -> list[int]:
    c, h, w = image.shape
    flat = []
    for y in range(0, h - pool + 1, pool):
        for x in range(0, w - pool + 1, pool):
            means = [float(image[k, y : y + pool, x : x + pool].mean()) for k in range(c)]
            weights = [0.299, 0.587, 0.114] if c == 3 else [1 / c] * c
            flat.append(sum(a * b for a, b in zip(weights, means, strict=True)))
    centre = sum(flat) / len(flat)
    flat = [value - centre for value in flat]
    return [int(flat[i] > flat[i + 1]) for i in range(len(flat) - 1)]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_dhash_codes_are_those_of_a_loop(channels: int) -> None:
    images = draw(3, channels, 16, 12)
    codes = hashing.dhash_codes(images)
    assert codes.shape == (3, 4 * 3 - 1)
    assert [[int(bit) for bit in code] for code in codes] == [slow_dhash(image, 4) for image in images]
    assert hashing.dhash_codes(draw(1, 3, 32, 32)).shape == (1, 63)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(-64, 64), st.sampled_from([0.25, 1.0, 4.0]))
def test_dhash_ignores_brightness_and_contrast(seed: int, shift: int, gain: float) -> None:
    images = (draw(2, 1, 16, 16, seed=seed) * 255).round() / 256  # exact in binary
    codes = hashing.dhash_codes(images)
    assert torch.equal(hashing.dhash_codes(gain * images + shift / 64), codes)
    assert set(codes.flatten().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("ste", ["literal", "difference"])
def test_dhash_surrogate_gradient(ste: hashing.StraightThrough) -> None:
    images, upstream = draw(1, 1, 2, 3).requires_grad_(), draw(1, 5, seed=1)
    hashing.dhash_codes(images, pool=1, ste=ste, strength=0.6).backward(upstream)
    to_centred = [0.0] * 6
    for i in range(5):
        to_centred[i] += 0.6 * float(upstream[0, i])
        if ste == "difference":
            to_centred[i + 1] -= 0.6 * float(upstream[0, i])
    mean = sum(to_centred) / 6  # backward of subtracting the mean
    assert images.grad is not None
    assert images.grad.flatten().tolist() == pytest.approx([g - mean for g in to_centred])


def bits(*shape: int, seed: int = 0) -> Tensor:
    return (draw(*shape, seed=seed) > 0.5).double()


def test_all_pairs_loss_has_value_and_gradient_of_all_pairs() -> None:
    new, bank = bits(4, 9).requires_grad_(), bits(6, 9, seed=1).requires_grad_()
    loss = hashing.dhash_loss(new, bank)
    slow = -torch.stack([(a - b).square().mean() for a in new for b in bank.detach()]).mean()
    torch.testing.assert_close(loss, slow)
    got, expected = (torch.autograd.grad(value, new)[0] for value in (loss, slow))
    torch.testing.assert_close(got, expected)
    assert -1 <= loss.item() <= 0
    loss = hashing.dhash_loss(new, bank)
    loss.backward()
    assert bank.grad is None


@pytest.mark.parametrize("pairing", ["all", "index"])
def test_the_exclusive_or_has_the_value_of_the_square_and_pushes_away_from_the_majority(pairing: Any) -> None:
    new, bank = bits(4, 9).requires_grad_(), bits(6, 9, seed=1)
    loss = hashing.dhash_loss(new, bank, pairing, form="xor")
    assert loss.item() == pytest.approx(hashing.dhash_loss(new, bank, pairing).item())
    (slope,) = torch.autograd.grad(loss, new)
    others = bank if pairing == "all" else bank[:4]
    for i in range(4):
        share = others.mean(dim=0) if pairing == "all" else others[i]
        torch.testing.assert_close(slope[i], -(1 - 2 * share) / (4 * 9))


def test_paired_losses() -> None:
    new, bank = bits(5, 9).requires_grad_(), bits(3, 9, seed=1)
    loss = hashing.dhash_loss(new, bank, "index")
    expected = -sum(float((new[i].detach() - bank[i % 3]).square().mean()) for i in range(5)) / 5
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert new.grad is not None
    agrees = new.detach() == bank[[0, 1, 2, 0, 1]]
    assert (new.grad[agrees] == 0).all()  # what the method sheet warns of
    rows = torch.randint(3, (5,), generator=seeded(2))
    got = hashing.dhash_loss(new, bank, "random", seeded(2))
    torch.testing.assert_close(got, -(new - bank[rows]).square().mean())
    with pytest.raises(UserError, match="needs a generator, got None; pass"):
        hashing.dhash_loss(new, bank, "random")
    assert hashing.dhash_loss(new, bank[:0]).item() == 0


# --- classical hash -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8])
def test_difference_hash_is_imagehashs(size: int) -> None:
    gray = (draw(10, 1, size, size + 1) * 255).round().to(torch.uint8)
    codes = hashing.difference_hash(pixels.as_images(gray), size)
    assert codes.shape == (10, size * size)
    for image, code in zip(gray, codes, strict=True):
        expected = imagehash.dhash(Image.fromarray(image[0].numpy()), hash_size=size).hash
        assert np.array_equal(code.numpy().reshape(size, size), expected)


def test_difference_hash_survives_noise_and_tells_images_apart() -> None:
    coarse = torch.nn.functional.interpolate(draw(6, 3, 8, 8).float(), size=32, mode="bicubic")
    noisy = coarse + 0.01 * torch.randn(coarse.shape, generator=seeded(9))
    distance = hashing.hamming(hashing.difference_hash(coarse), hashing.difference_hash(noisy))
    assert int(distance.diagonal().max()) <= 6
    assert int((distance + 100 * torch.eye(6, dtype=torch.int64)).min()) > 12


@pytest.mark.parametrize("block", [1, 3, 100])
def test_hamming_is_that_of_a_loop(block: int) -> None:
    a, b = bits(7, 20), bits(5, 20, seed=1)
    slow = torch.tensor([[int((x != y).sum()) for y in b] for x in a])
    assert torch.equal(hashing.hamming(a, b, block), slow)
    assert torch.equal(hashing.hamming(a.bool(), b.bool(), block), slow)
    assert hashing.hamming(a[:0], b).shape == (0, 5)


# --- selection ----------------------------------------------------------------------------------------------


def test_mixing_rate() -> None:
    assert selection.mixing_rate(0, 240) == pytest.approx(math.exp(-5))
    assert selection.mixing_rate(60, 240) == pytest.approx(math.exp(-5 / 4))
    assert selection.mixing_rate(120, 240) == 1
    assert selection.mixing_rate(200, 240) == 1
    rates = [selection.mixing_rate(t, 240) for t in range(241)]
    assert rates == sorted(rates)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_selection_is_that_of_a_loop(rate: float) -> None:
    teacher, student = (4 * draw(60, 5)).softmax(1), (4 * draw(60, 5, seed=1)).softmax(1)
    v_th = 0.5
    got = selection.dynamic_selection(teacher, student, rate, v_th)
    mixed = [[(1 - rate) * t + rate * s for t, s in zip(a, b, strict=True)]
             for a, b in zip(teacher.tolist(), student.tolist(), strict=True)]  # fmt: skip
    predicted = [row.index(max(row)) for row in mixed]
    counts = Counter(predicted)
    thresholds = [v_th * counts[k] / max(counts.values()) for k in range(5)]
    mask = [max(row) > thresholds[k] for row, k in zip(mixed, predicted, strict=True)]
    assert got.predicted.tolist() == predicted
    assert got.confidence.tolist() == pytest.approx([max(row) for row in mixed])
    assert got.candidates.tolist() == [counts[k] for k in range(5)]
    assert got.thresholds.tolist() == pytest.approx(thresholds)
    assert got.mask.tolist() == mask
    kept = Counter(k for k, keep in zip(predicted, mask, strict=True) if keep)
    assert got.kept.tolist() == [kept[k] for k in range(5)]
    assert float(got.share) == pytest.approx(sum(mask) / 60)
    assert 0 < sum(mask) < 60


def test_selection_is_strict_and_survives_empty_classes() -> None:
    predicted, confidence = torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.75, 0.25])
    mask = selection.select(confidence, predicted, torch.tensor([0.5, 0.25, 0.0]))
    assert mask.tolist() == [False, True, False]
    counts = selection.class_counts(torch.empty(0, dtype=torch.int64), 3)
    assert counts.tolist() == [0, 0, 0]
    assert selection.class_thresholds(counts).tolist() == [0, 0, 0]
    assert selection.class_thresholds(torch.tensor([0, 2, 4])).tolist() == pytest.approx([0, 0.475, 0.95])


# --- distances ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 30])
def test_distances_within_a_class_are_those_of_a_loop(n: int) -> None:
    images, classes = draw(n, 2, 3, 4), 4
    y = torch.randint(classes, (n,), generator=seeded())
    got = distances.within_class_distance(images, y, classes)["within_class_distance"]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and y[i] == y[j]]
    loop = sum(math.sqrt(float(((images[i] - images[j]) ** 2).mean())) for i, j in pairs) / len(pairs)
    assert float(got) == pytest.approx(loop, rel=1e-5)


def test_one_image_a_class_has_no_distance_within_it() -> None:
    y = torch.arange(40) % 4
    images = draw(4, 1, 8, 8).float()[y]
    assert float(distances.within_class_distance(images, y, 4)["within_class_distance"]) == 0
    assert distances.within_class_distance(images[:4], y[:4], 4) == {}


# --- all of them --------------------------------------------------------------------------------------------

IMAGES = draw(4, 3, 8, 8).float()
HALF = torch.full((4,), 0.5)
PARTNER = torch.tensor([1, 0, 3, 2])
PROBS = draw(4, 5).float().softmax(1)
EVERY: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("exchange", exchange.exchange, (IMAGES, torch.rand(4, 3, generator=seeded()) > 0.5)),
    ("mixup", exchange.mixup, (IMAGES, HALF, PARTNER)),
    ("cutmix", exchange.cutmix, (IMAGES, HALF, draw(4, 2).float(), PARTNER)),
    ("mix_distribution", mixing.mix_distribution, (IMAGES, HALF, PARTNER)),
    ("dhash_codes", hashing.dhash_codes, (IMAGES,)),
    ("dhash_loss", hashing.dhash_loss, (bits(4, 9).float(), bits(6, 9).float())),
    ("difference_hash", hashing.difference_hash, (IMAGES, 4)),
    ("hamming", hashing.hamming, (bits(4, 9), bits(6, 9))),
    ("selection", selection.dynamic_selection, (PROBS, PROBS.flip(0), torch.tensor(0.3))),
    ("keep_best", keep_best.keep_best, (keep_best.no_best(IMAGES), torch.tensor(1.0), IMAGES)),
]


@pytest.mark.parametrize(("function", "arguments"), [e[1:] for e in EVERY], ids=[e[0] for e in EVERY])
def test_every_op_is_one_graph(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_image_ops_keep_the_precision_they_get(dtype: torch.dtype) -> None:
    images = IMAGES.to(dtype)
    for out in (
        exchange.exchange_channels(images, 0.5, seeded()),
        exchange.draw_mixup(images, 1.0, seeded()),
        exchange.draw_cutmix(images, 1.0, seeded()),
        mixing.draw_mix_distribution(images, 0.1, seeded()),
        hashing.dhash_codes(images),
        augment.crop_flip(images, seeded()),
        augment.roll_flip(images, seeded(), 2),
    ):
        assert out.dtype == dtype
        assert out.isfinite().all()
    assert hashing.difference_hash(images).dtype == torch.bool


# --- parts of images ------------------------------------------------------------------------------------------------


def test_boxes_are_parts_of_the_image_of_the_right_size_and_shape() -> None:
    h, w = 32, 24
    top, left, height, width = augment.draw_boxes(4000, (h, w), seeded(3)).T
    assert int(top.min()) == int(left.min()) == 0
    assert int((top + height).max()) == h
    assert int((left + width).max()) == w
    assert int(height.min()) >= 1
    share = (height * width).double() / (h * w)
    assert 0.22 < float(share.min()) < 0.28
    assert float(share.max()) <= 1
    ratio = width.double() / height
    assert 0.68 < float(ratio.min()) < 0.82
    assert 1.22 < float(ratio.max()) < 1.45
    # Small enough to fit at once: the area is uniform, the ratio log-uniform, the place uniform.
    top, left, height, width = augment.draw_boxes(4000, (400, 400), seeded(4), scale=(0.1, 0.3)).T
    share = (height * width).double() / 160_000
    assert float(share.mean()) == pytest.approx(0.2, abs=0.005)
    assert float((width / height).log().mean()) == pytest.approx(0, abs=0.01)
    assert float((top / (400 - height)).mean()) == pytest.approx(0.5, abs=0.02)
    assert augment.draw_boxes(3, (5, 20), seeded(0), scale=(1.0, 1.0)).tolist() == [[0, 0, 5, 20]] * 3  # nothing fits


@pytest.mark.parametrize(("h", "w"), [(8, 8), (6, 9), (1, 4)])
def test_enlarged_parts_are_interpolated_cuts(h: int, w: int) -> None:
    images = draw(30, 2, h, w)
    boxes = augment.draw_boxes(30, (h, w), seeded(5))
    got = augment.resize_boxes(images, boxes)
    for image, (top, left, height, width), enlarged in zip(images, boxes.tolist(), got, strict=True):
        cut = image[None, :, top : top + height, left : left + width]
        want = torch.nn.functional.interpolate(cut, size=(h, w), mode="bilinear", align_corners=True)[0]
        torch.testing.assert_close(enlarged, want)


def test_enlarging_has_gradients() -> None:
    images = draw(3, 1, 4, 5).requires_grad_(True)
    boxes = augment.draw_boxes(3, (4, 5), seeded(6))
    assert torch.autograd.gradcheck(lambda x: augment.resize_boxes(x, boxes), (images,))
