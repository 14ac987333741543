"""Plans without an end: what repeats, what stops, what keeps pace."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.flow.live import LivePlan, agreement, live_plan
from nearstep.flow.plan import prefix, respaced


def plan(text: str, thresholds: tuple[float, ...] = ()) -> LivePlan:
    return live_plan(text, shift=5.0, grid=4, frames=12, thresholds=thresholds)


def steps(live: LivePlan, since: int) -> int:
    return len(live.next(since)[0])


@pytest.mark.parametrize(
    ("text", "expected"), [("4", [4, 4, 4]), ("1", [1, 1, 1]), ("4,1x", [4, 1, 1]), (" 4,2,1x", [4, 2, 1, 1])]
)
def test_a_written_plan_repeats_its_last_entry(text: str, expected: list[int]) -> None:
    assert [steps(plan(text), since) for since in range(len(expected))] == expected
    assert plan(text).next(99) == (respaced(expected[-1], shift=5.0), None)


def test_an_adaptive_chunk_may_stop_where_a_prefix_ends() -> None:
    x0 = torch.randn(2, 3, 1, 4, 4)
    for since, threshold in enumerate((0.9, 0.5, 0.5)):
        schedule, enough = plan("adaptive", (0.9, 0.5)).next(since)
        assert schedule == prefix(4, shift=5.0)
        assert enough is not None
        mixed = [x0 + level * torch.randn_like(x0) for level in (0.1, 0.3, 1.0, 3.0)]
        assert [enough(x0, other) for other in mixed] == [agreement(x0, other) >= threshold for other in mixed]
        assert enough(x0, 2 * x0)  # a cosine
        assert not enough(x0, torch.cat([x0[:1], -x0[1:]]))  # all of a batch must agree
    _, enough = plan("adaptive:.2").next(0)
    assert enough is not None
    assert enough(x0, x0 + torch.randn_like(x0))


def test_a_paced_plan_takes_what_the_frame_rate_leaves() -> None:
    live = plan("fps:12")  # a second for 12 frames
    assert [steps(live, since) for since in (0, 1)] == [4, 1]  # nothing is known yet
    live.made(steps=4, calls=1.0, rest=0.2)  # .2 s a call, the commit's included
    assert steps(live, 1) == 3  # .8 s are left: three steps and a commit
    for _ in range(20):
        live.made(steps=3, calls=4.0, rest=0.5)
    assert steps(live, 1) == 1  # too slow, but one there must be
    for _ in range(20):
        live.made(steps=1, calls=0.02, rest=0.0)
    assert steps(live, 1) == 4
    assert steps(live, 0) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "asks for 5 steps and the student was trained for 1 to 4"),
        ("4,1", "end it with x"),
        ("", "none that a stream can follow"),
        ("0", "at least 1 step"),
        ("adaptive:2", "does not parse"),
        ("adaptive:high", "does not parse"),
        ("fps:", "does not parse"),
        ("fps:0", "does not parse"),
        ("quick", "none that a stream can follow"),
    ],
)
def test_what_a_stream_cannot_follow_is_refused(text: str, said: str) -> None:
    with pytest.raises(NearstepError, match=said):
        plan(text)
