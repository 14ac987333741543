"""Plans: the grid's lists, the strings, and the counts of method.md section 3."""

from __future__ import annotations

import pytest

from nearstep.errors import NearstepError
from nearstep.flow.live_plan import live_plan
from nearstep.flow.plan import (
    GRAMMAR,
    Schedule,
    first_frame_enhanced,
    make_plan,
    parse_steps,
    prefix,
    respaced,
    subset,
)


def times(schedule: Schedule) -> list[float]:
    return [round(t, 6) for t in schedule.times]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [1]), (2, [1, 0.5]), (3, [1, 0.5, 0.25]), (4, [1, 0.75, 0.5, 0.25]), (8, [1 - k / 8 for k in range(8)])],
)
def test_respaced_lists_on_the_grid(steps: int, expected: list[float]):
    assert times(respaced(steps, shift=1.0)) == expected


def test_prefix_lists_stop_early():
    assert times(prefix(2, shift=1.0)) == [1, 0.75]
    assert times(prefix(4, shift=5.0)) == times(respaced(4, shift=5.0)) == [1, 0.9375, 0.833333, 0.625]


def test_a_subset_begins_with_noise_and_stays_on_the_grid():
    assert times(subset([0, 3], shift=1.0)) == [1, 0.25]
    for cells in ([1, 2], [0, 4], [], [0, 2, 1]):
        with pytest.raises(NearstepError):
            subset(cells, shift=1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", (4, 4, 4, 4, 4, 4, 4)),
        ("1", (1,) * 7),
        ("4,1x", (4, 1, 1, 1, 1, 1, 1)),
        ("4,2,1x", (4, 2, 1, 1, 1, 1, 1)),
        ("4,3,2,1x", (4, 3, 2, 1, 1, 1, 1)),
        ("7,6,5,4,3,2,1", (7, 6, 5, 4, 3, 2, 1)),
    ],
)
def test_strings(text: str, expected: tuple[int, ...]):
    assert parse_steps(text, 7) == expected


@pytest.mark.parametrize("text", ["", "x", "4,", "0", "4,0x", "-1", "4;1", "4,1x,1", "four", "4,2", "4.5"])
def test_strings_that_are_refused(text: str):
    with pytest.raises(NearstepError):
        parse_steps(text, 7)


@pytest.mark.parametrize("text", ["adaptive", "adaptive:.95", "fps:16"])
def test_a_plan_of_streams_is_none_of_a_clip_and_the_error_says_so(text: str):
    with pytest.raises(NearstepError, match="is for streams alone"):
        make_plan(text, frames=21, chunk_frames=3, shift=5.0)


def test_every_error_names_the_whole_grammar():
    for text in ("four", "4,2", "0", "fps", "fps:0", "adaptive:2", "adaptive"):
        with pytest.raises(NearstepError) as caught:
            parse_steps(text, 7)
        assert GRAMMAR in str(caught.value)
    for text in ("four", "4,2", "8", "fps"):
        with pytest.raises(NearstepError) as caught:
            live_plan(text, shift=5.0, grid=4, frames=12)
        assert GRAMMAR in str(caught.value)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("4", 28), ("2", 14), ("1", 7), (first_frame_enhanced(4, 2), 16), (first_frame_enhanced(4, 1), 10)],
)
def test_the_calls_of_seven_chunks(text: str, steps: int):
    plan = make_plan(text, frames=21, chunk_frames=3, shift=5.0)
    assert (plan.steps, plan.commits, plan.calls) == (steps, 6, steps + 6)
    assert str(plan) == text
    assert plan.frames == 21


def test_a_bidirectional_network_is_one_chunk():
    plan = make_plan("50", frames=21, chunk_frames=None, shift=5.0)
    assert plan.lengths == (21,)
    assert plan.calls == 50


def test_frames_that_are_no_whole_chunks_are_refused_with_what_would_do():
    with pytest.raises(NearstepError, match="num_frames 81 or 93"):
        make_plan("4", frames=22, chunk_frames=3, shift=5.0)


@pytest.mark.parametrize("bad", [(), (0.9,), (1.0, 1.0), (1.0, 0.5, 0.6), (1.0, 0.0)])
def test_schedules_fall_from_one(bad: tuple[float, ...]):
    with pytest.raises(NearstepError):
        Schedule(bad)
