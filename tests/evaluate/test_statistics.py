"""Intervals: coverage, pairing, repeatability."""

from __future__ import annotations

import math

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import (
    counts,
    difference,
    mean,
    mean_rows,
    paired,
    pooled,
    rank_correlation,
    statistic,
    statistics,
    student_t,
)
from nearstep.rng import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("statistics", seed), dtype=torch.float64)


def test_width_is_that_of_the_standard_error():
    found = mean(normal(400))
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.1)
    assert found.low < found.value < found.high


def test_ninety_five_percent_hold_the_truth():
    intervals = [mean(3 + normal(60, seed=seed), seed=seed, resamples=400) for seed in range(200)]
    held = sum(interval.low <= 3 <= interval.high for interval in intervals) / len(intervals)
    assert 0.89 <= held <= 0.985


def test_equal_values_have_no_width():
    found = mean(torch.full((10,), 0.7))
    assert (found.low, found.high) == pytest.approx((0.7, 0.7))


def test_repeatable_by_seed():
    assert mean(normal(30), seed=1) == mean(normal(30), seed=1)
    assert mean(normal(30), seed=1) != mean(normal(30), seed=2)


def test_missing_values_are_left_out():
    values = torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0, 0.0])
    assert mean(values).value == 0.5
    rows = mean_rows(torch.stack([values, torch.ones(6)]))
    assert [row.value for row in rows] == [0.5, 1.0]


def test_nothing_to_average_is_refused():
    with pytest.raises(NearstepError, match="at least one value"):
        mean(torch.full((4,), torch.nan))


def test_pairing_removes_what_clips_share():
    shared, gain = 10 * normal(200), 0.2
    first, second = shared + gain + 0.1 * normal(200, seed=1), shared + 0.1 * normal(200, seed=2)
    difference = paired(first, second)
    assert difference.excludes_zero
    assert difference.low < gain < difference.high
    assert mean(first).low < mean(second).high  # alone, the intervals overlap


def test_unequal_sets_cannot_be_paired():
    with pytest.raises(NearstepError, match="cannot be paired"):
        paired(torch.zeros(3), torch.zeros(4))


def test_resamples_draw_every_clip_once_on_average():
    drawn = counts(50, seed=0, resamples=2000)
    assert (drawn.sum(dim=1) == 50).all()
    assert torch.allclose(drawn.mean(dim=0), torch.ones(50, dtype=torch.float64), atol=0.15)


def test_a_statistic_of_rows_lies_inside_its_interval():
    rows = normal(300, 2)
    found = statistic(rows, lambda part: float(part.std(dim=0).sum()))
    assert found.value == float(rows.std(dim=0).sum())
    assert found.low < found.value < found.high


def test_rank_correlation_sees_order_alone_and_shares_ties():
    values = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert rank_correlation(values, values.exp()) == pytest.approx(1.0)
    assert rank_correlation(values, -values) == pytest.approx(-1.0)
    # Ranks 2, 2, 2, 4 and 1, 2, 3, 4: covariance 3, variances 3 and 5.
    tied = rank_correlation(torch.tensor([1.0, 1.0, 1.0, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert tied == pytest.approx(3 / (3 * 5) ** 0.5)


def test_figures_of_a_set_that_a_resample_lacks_are_left_out_of_its_spread():
    values = normal(40)

    def measure(rows: torch.Tensor) -> dict[str, float]:
        found = {"mean": float(values[rows].mean())}
        return {**found, "rare": 1.0} if bool((rows == 0).any()) else found

    found = statistics(len(values), measure)
    assert found["mean"] == statistic(values[:, None], lambda part: float(part.mean()))
    assert (found["rare"].low, found["rare"].value, found["rare"].high) == (1.0, 1.0, 1.0)
    assert "absent" not in found


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (2.9, 3.2454), (10, 2.2281), (1e6, 1.96)])
def test_students_t(freedom: float, expected: float):
    assert student_t(freedom) == pytest.approx(expected, rel=1e-3)


def runs(seed: int, *, gain: float = 0.0) -> torch.Tensor:
    """Three runs that differ by .04 on 100 captions that differ by .2, which all runs share."""
    shared = 0.2 * normal(100, seed=seed % 1000)
    return 0.5 + gain + 0.04 * normal(3, 1, seed=10_000 + seed) + shared + 0.1 * normal(3, 100, seed=20_000 + seed)


def test_few_runs_hold_the_truth_as_often_as_is_said():
    single, gained, paired_up = [], [], []
    for seed in range(400):
        one, other = runs(seed), runs(seed + 1000, gain=0.1)  # on the same captions
        single.append((found := pooled(one)).low <= 0.5 <= found.high)
        gained.append((found := difference(other, one)).low <= 0.1 <= found.high)
        again = one + 0.05 + 0.1 * normal(3, 100, seed=30_000 + seed)
        paired_up.append((found := difference(again, one, same_runs=True)).low <= 0.05 <= found.high)
    for held in (single, gained, paired_up):
        assert 0.92 <= sum(held) / len(held) <= 0.995


def test_plans_of_the_same_runs_are_sharper_than_of_others():
    one = runs(0)
    again = one + 0.05 + 0.01 * normal(3, 100, seed=1)
    sharp, blunt = difference(again, one, same_runs=True), difference(again, one)
    assert sharp.value == pytest.approx(blunt.value)
    assert sharp.high - sharp.low < (blunt.high - blunt.low) / 4
    assert difference(again[:1], one[:1]) == paired(again[0], one[0])
