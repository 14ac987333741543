"""Plans without an end: what repeats, what stops, what keeps pace."""

from __future__ import annotations

import itertools

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.flow.live_plan import Levels, LivePlan, agreement, ladder, live_plan
from nearstep.flow.plan import respaced, subset


def plan(text: str, levels: Levels = ()) -> LivePlan:
    return live_plan(text, shift=5.0, grid=4, frames=12, levels=levels)


def steps(live: LivePlan, since: int) -> int:
    return len(live.next(since)[0])


@pytest.mark.parametrize(
    ("text", "expected"), [("4", [4, 4, 4]), ("1", [1, 1, 1]), ("4,1x", [4, 1, 1]), (" 4,2,1x", [4, 2, 1, 1])]
)
def test_a_written_plan_repeats_its_last_entry(text: str, expected: list[int]) -> None:
    assert [steps(plan(text), since) for since in range(len(expected))] == expected
    assert plan(text).next(99) == (respaced(expected[-1], shift=5.0), None)


def test_an_adaptive_chunk_climbs_down_a_ladder_of_the_grid() -> None:
    assert plan("adaptive").next(0)[0] == ladder(shift=5.0, grid=4) == subset((0, 2, 3), shift=5.0)
    assert ladder(shift=5.0, grid=4).times[:2] == respaced(2, shift=5.0).times  # stopped at two, it is plan "2"
    assert [len(ladder(shift=1.0, grid=grid)) for grid in (1, 2, 3, 8)] == [1, 2, 2, 7]


def test_an_adaptive_chunk_stops_by_the_level_of_its_chunk_and_step() -> None:
    before, x0 = torch.randn(2, 2, 3, 1, 4, 4).unbind()
    nearby = [x0 + level * torch.randn_like(x0) for level in (0.1, 0.3, 1.0, 3.0)]
    levels = ((0.9, 0.5), (0.8,))
    for since, wanted in enumerate((levels[0], (0.8, 0.8), (0.8, 0.8))):
        stop = plan("adaptive", levels).next(since, before)[1]
        assert stop is not None
        for step, earlier in itertools.product((2, 3), nearby):
            assert stop(step, earlier, x0) == (agreement(step, earlier, x0, before) >= wanted[1])
        assert stop(1, None, x0) == (agreement(1, None, x0, before) >= wanted[0])
    stop = plan("adaptive:.2").next(0)[1]
    assert stop is not None
    assert stop(2, x0, x0 + torch.randn_like(x0))


def test_agreement_is_a_cosine_with_what_was_known() -> None:
    before, x0 = torch.randn(2, 2, 3, 1, 4, 4).unbind()
    assert agreement(2, x0, 2 * x0, None) == pytest.approx(1.0)
    assert agreement(2, x0, torch.cat([x0[:1], -x0[1:]]), None) == pytest.approx(-1.0)  # the least of a batch
    goes_on = torch.cat([before[:, -1:], x0[:, 1:]], dim=1)
    assert agreement(1, None, goes_on, before) == pytest.approx(1.0)  # its first frame is their last
    assert agreement(1, None, goes_on, None) == -1.0  # nothing to go on from


def test_a_paced_plan_takes_what_the_frame_rate_leaves() -> None:
    live = plan("fps:12")  # a second for 12 frames
    assert [steps(live, since) for since in (0, 1)] == [4, 1]  # nothing is known yet
    live.observe(steps=4, calls=1.0, rest=0.2)  # .2 s a call, the commit's included
    assert steps(live, 1) == 3  # .8 s are left: three steps and a commit
    for _ in range(20):
        live.observe(steps=3, calls=4.0, rest=0.5)
    assert steps(live, 1) == 1  # too slow, but one there must be
    for _ in range(20):
        live.observe(steps=1, calls=0.02, rest=0.0)
    assert steps(live, 1) == 4
    assert steps(live, 0) == 4


def test_a_copy_goes_on_with_the_same_timings_and_measures_its_own() -> None:
    live = plan("fps:12")
    live.observe(steps=4, calls=1.0, rest=0.2)
    twin = live.copy()
    for _ in range(20):
        twin.observe(steps=1, calls=4.0, rest=0.5)
    assert (steps(live, 1), steps(twin, 1)) == (3, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "asks for 5 steps and the student was trained for 1 to 4"),
        ("4,1", "end it with x"),
        ("", "does not parse"),
        ("0", "at least 1 step"),
        ("adaptive:2", "does not parse"),
        ("adaptive:high", "does not parse"),
        ("fps:", "does not parse"),
        ("fps:0", "does not parse"),
        ("quick", "does not parse"),
    ],
)
def test_what_a_stream_cannot_follow_is_refused(text: str, said: str) -> None:
    with pytest.raises(NearstepError, match=said):
        plan(text)
