"""Batches that other processes make ahead are those that would have been made here."""

from __future__ import annotations

import os

import torch

from nearstep.data.ahead import Ahead
from nearstep.playground import PLAYGROUND


def numbered(number: int) -> tuple[torch.Tensor, list[str], int]:
    return torch.full((2, 3), float(number)), [f"clip {number}"], os.getpid()


def test_batches_come_in_order_and_from_other_processes():
    ahead = Ahead(numbered, 2)
    makers = set()
    for number in range(3, 9):
        values, captions, maker = ahead(number)
        assert torch.equal(values, torch.full((2, 3), float(number))) and captions == [f"clip {number}"]
        makers.add(maker)
    assert len(makers) == 2 and os.getpid() not in makers


def test_a_number_that_does_not_follow_begins_anew():
    ahead = Ahead(numbered, 1)
    assert [int(ahead(number)[0][0, 0]) for number in (5, 6, 2, 3, 3, 9)] == [5, 6, 2, 3, 3, 9]


def test_without_workers_each_is_made_here_when_it_is_asked_for():
    asked = []
    ahead = Ahead(lambda number: asked.append(number) or number, 0)
    assert [ahead(4), ahead(7)] == [4, 7] and asked == [4, 7]


def test_clips_drawn_by_others_are_those_drawn_here():
    def clips(number: int) -> torch.Tensor:
        return PLAYGROUND.clips(0, range(2 * number, 2 * number + 2), frames=5)

    here = [clips(number) for number in range(3)]  # as a parent does that has computed before it starts them
    ahead = Ahead(clips, 2)
    assert all(torch.equal(ahead(number), here[number]) for number in range(3))
