"""Fréchet distance: closed forms."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.evaluate.frechet import frechet, gaussian, gaussian_distance
from nearstep.rng import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("frechet", seed), dtype=torch.float64)


def test_equal_sets_have_no_distance():
    features = normal(100, 8)
    assert frechet(features, features) == pytest.approx(0.0, abs=1e-9)


def test_a_shift_costs_its_square():
    features, shift = normal(100, 8), normal(8, seed=1)
    assert frechet(features, features + shift) == pytest.approx(float(shift.square().sum()))


def test_scaling_costs_the_squared_differences_of_deviations():
    features, scale = normal(100, 8), torch.linspace(0.5, 2, 8, dtype=torch.float64)
    centred, deviations = features - features.mean(dim=0), torch.linspace(1, 3, 8, dtype=torch.float64)
    covariance = torch.diag(deviations.square())
    found = gaussian_distance(centred[0], covariance, centred[0], torch.diag((deviations * scale).square()))
    assert found == pytest.approx(float((deviations * (1 - scale)).square().sum()))


def test_covariances_that_commute_in_no_basis_match_the_matrix_root():
    first, second = normal(50, 5), normal(60, 5, seed=1) @ normal(5, 5, seed=2)
    mean1, cov1 = gaussian(first)
    mean2, cov2 = gaussian(second)
    values = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0)
    plain = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * values.sqrt().sum()
    assert frechet(first, second) == pytest.approx(float(plain))
    assert frechet(first, second) == pytest.approx(frechet(second, first))


def test_fewer_clips_than_features_are_no_problem():
    assert frechet(normal(5, 20), normal(5, 20, seed=1)) > 0


def test_one_clip_is_refused():
    with pytest.raises(NearstepError, match="at least 2 clips"):
        gaussian(torch.zeros(1, 4))


def test_rotating_both_sets_changes_nothing():
    first, second = normal(80, 6), 2 * normal(80, 6, seed=1) + 1
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    assert frechet(first @ rotation, second @ rotation) == pytest.approx(frechet(first, second))
