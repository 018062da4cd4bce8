"""Soft targets and the affine augmentation, against SciPy, NumPy and slow loops."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from dfkd.errors import UserError
from dfkd.ops.affine import affine, draw_affine
from dfkd.ops.targets import (
    check_class_rows,
    class_correlation,
    dirichlet_concentration,
    draw_dirichlet,
    draw_normal,
)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(k: int, d: int) -> Tensor:
    return torch.randn(k, d, generator=stream(7), dtype=torch.float64)


def test_correlations_are_cosines_of_rows() -> None:
    w = weight(4, 6)
    for i in range(4):
        for j in range(4):
            cosine = float(w[i] @ w[j]) / math.sqrt(float(w[i] @ w[i]) * float(w[j] @ w[j]))
            assert float(class_correlation(w)[i, j]) == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize(("k", "d"), [(5, 8), (6, 3)])  # the second has a singular R
def test_normal_targets_have_mean_zero_and_covariance_sigma_r(k: int, d: int) -> None:
    w, sigma, n = weight(k, d), 2.5, 40_000
    s = draw_normal(w, n, sigma, stream())
    rows = w.numpy() / np.linalg.norm(w.numpy(), axis=1, keepdims=True)
    expected = sigma * rows @ rows.T
    assert np.abs(s.mean(dim=0).numpy()).max() < 5 * math.sqrt(sigma / n)
    assert np.abs(np.cov(s.T.numpy()) - expected).max() < 6 * sigma * math.sqrt(2 / n)
    assert np.linalg.matrix_rank(s.numpy(), tol=1e-8) == min(k, d)
    assert stats.kstest(s[:, 0].numpy(), "norm", args=(0, math.sqrt(sigma))).pvalue > 1e-3


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_concentrations_follow_the_recipe_entry_by_entry(beta: float) -> None:
    w = weight(5, 7)
    c = class_correlation(w).numpy()
    lowest, highest = c.min(), c.max()
    for i in range(5):
        row = [(value - lowest) / (highest - lowest) for value in c[i]]
        fixed = [beta * (value - min(row)) / (max(row) - min(row)) + 1e-4 for value in row]
        coded = [(value - min(row)) / (max(row) - min(row)) + 1e-4 for value in row]
        np.testing.assert_allclose(dirichlet_concentration(w, beta)[i], fixed, atol=1e-12)
        np.testing.assert_allclose(dirichlet_concentration(w, beta, "coded")[i], coded, atol=1e-12)
        assert dirichlet_concentration(w, beta)[i].argmax() == i


def test_dirichlet_draws_have_the_moments_of_the_dirichlet_distribution() -> None:
    a = torch.tensor([[0.3, 1.2, 2.0], [5.0, 0.05, 1.0]], dtype=torch.float64)
    n = 60_000
    for row in range(2):
        p = draw_dirichlet(a, torch.full((n,), row), stream(row)).exp().numpy()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
        law = stats.dirichlet(a[row].numpy())
        np.testing.assert_allclose(p.mean(axis=0), law.mean(), atol=0.008)
        np.testing.assert_allclose(p.var(axis=0), law.var(), atol=0.006)
        marginal = stats.beta(float(a[row, 0]), float(a[row].sum() - a[row, 0]))
        assert stats.kstest(p[:, 0], marginal.cdf).pvalue > 1e-3


def test_tiny_concentrations_stay_finite() -> None:
    a = torch.full((1, 4), 1e-4)
    logs = draw_dirichlet(a, torch.zeros(500, dtype=torch.int64), stream())
    assert bool(logs.isfinite().all())
    torch.testing.assert_close(logs.exp().sum(dim=1), torch.ones(500))


def test_draws_depend_on_the_generator_alone() -> None:
    w, a, y = weight(3, 4), torch.rand(3, 3) + 0.1, torch.tensor([0, 2, 2])
    assert torch.equal(draw_normal(w, 5, 1.0, stream(3)), draw_normal(w, 5, 1.0, stream(3)))
    assert torch.equal(draw_dirichlet(a, y, stream(3)), draw_dirichlet(a, y, stream(3)))
    assert not torch.equal(draw_dirichlet(a, y, stream(3)), draw_dirichlet(a, y, stream(4)))


def test_no_limits_means_no_change() -> None:
    x = torch.rand(3, 2, 6, 6, generator=stream())
    matrices = draw_affine(3, stream(), degrees=0, scale=0, shift=0)
    torch.testing.assert_close(affine(x, matrices), x)


def test_a_whole_pixel_is_moved_without_blur() -> None:
    x = torch.rand(1, 1, 5, 8, generator=stream())
    right = torch.tensor([[[1.0, 0.0, 2 / 8], [0.0, 1.0, 0.0]]])  # read one pixel further right
    moved = affine(x, right)
    torch.testing.assert_close(moved[..., :-1], x[..., 1:], atol=1e-5, rtol=0)
    assert float(moved[..., -1].abs().max()) < 1e-5


@pytest.mark.parametrize(("h", "w"), [(9, 9), (5, 12), (12, 7)])
def test_affine_turns_and_scales_pixels_as_ndimage_does(h: int, w: int) -> None:
    x = torch.rand(4, 1, h, w, generator=stream(), dtype=torch.float64)
    matrices = draw_affine(4, stream(1), 20, 0.2, 0.15).double()
    got = affine(x, matrices)
    for image, matrix, result in zip(x[:, 0].numpy(), matrices.numpy(), got[:, 0].numpy(), strict=True):
        # From (x, y) to (row, column), both in pixels from the middle; the shift is in halves of the sides.
        linear = matrix[::-1, 1::-1]
        centre = np.array([h - 1, w - 1]) / 2
        offset = centre + matrix[::-1, 2] * np.array([h, w]) / 2 - linear @ centre
        wide = np.pad(image, 4)  # ndimage fades out half a pixel earlier than torch does
        expected = ndimage.affine_transform(wide, linear, offset + 4 - linear @ np.array([4.0, 4.0]), order=1)
        np.testing.assert_allclose(result, expected[4:-4, 4:-4], atol=1e-6)


def test_a_batch_of_square_images_is_that_of_affine_grid_bit_for_bit() -> None:
    x, matrices = torch.rand(4, 3, 8, 8, generator=stream()), draw_affine(4, stream(1))
    grid = torch.nn.functional.affine_grid(matrices, [4, 3, 8, 8], align_corners=False)
    assert torch.equal(affine(x, matrices), torch.nn.functional.grid_sample(x, grid, align_corners=False))


def test_a_class_without_a_direction_has_no_dirichlet_targets() -> None:
    w = weight(4, 6)
    check_class_rows(w)
    check_class_rows(torch.cat([-w[:1], w[:1]]))  # of one logit
    with pytest.raises(UserError, match=r"got weights that are in the direction of those of every class in row 0; "):
        check_class_rows(w[:1].expand(4, 6))
    w[2] = 0
    assert bool(dirichlet_concentration(w, 1.0)[2].isnan().all())
    with pytest.raises(UserError, match=r"Dirichlet targets need .*, got weights that are all 0 in row 2; train this"):
        check_class_rows(w)


def test_affine_draws_stay_within_their_limits() -> None:
    m = draw_affine(2000, stream(), degrees=15, scale=0.1, shift=0.1)
    size = 1 / m[:, :, :2].det().sqrt()
    angle = torch.rad2deg(torch.atan2(m[:, 1, 0], m[:, 0, 0]))
    assert 0.9 - 1e-4 <= float(size.min()) < 0.91
    assert 1.09 < float(size.max()) <= 1.1 + 1e-4
    assert 14 < float(angle.abs().max()) <= 15 + 1e-3
    assert 0.19 < float(m[:, :, 2].abs().max()) <= 0.2
