"""Fréchet distance between two sets of clips, as between two Gaussians of their features.

    d^2 = |m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2))        (Dowson and Landau, 1982)

The trace of the root is the sum of the roots of the eigenvalues of S1 S2, which are those of the symmetric
S1^(1/2) S2 S1^(1/2); everything in float64. The value depends on the number of clips: compare equal numbers only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearstep.errors import NearstepError


def frechet(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance between the Gaussians of two sets of features, [N, D] and [M, D]."""
    return gaussian_distance(*gaussian(first), *gaussian(second))


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D], float64.

    Raises:
        NearstepError: on fewer than two clips.
    """
    if len(features) < 2:
        raise NearstepError(f"a covariance needs at least 2 clips, got {len(features)}; use more captions")
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).view(features.shape[1], -1)


def gaussian_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The formula above; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0.0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * shared
    return max(0.0, float(distance))
