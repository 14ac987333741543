"""Chunks made while others are decoded: the same frames, in the same order, with the same record."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from streams import BLUE, RED, equal, take

from nearstep.stream.decoding import Deferred
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.session import Session


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


@pytest.fixture
def both(playground: CausalVideoPipeline):
    opened: list[Session] = []

    def pair(plan: str, **options) -> tuple[Session, Session]:
        opened.extend(playground.open(RED, plan, seed=3, prefetch=ahead, **options) for ahead in (False, True))
        return opened[-2], opened[-1]

    yield pair
    for session in opened:
        session.close()


@pytest.mark.parametrize("plan", ["2,1x", "adaptive"])
def test_prefetching_makes_the_same_frames_and_a_change_acts_a_chunk_later(both, plan: str) -> None:
    plain, ahead = both(plan)
    assert equal(take(plain, 3), first := take(ahead, 3))
    assert [chunk.index for chunk in first] == [0, 1, 2]
    assert plain.index == ahead.index == len(ahead.recording.chunks) == 3  # though another is made already
    ahead.change(prompt=BLUE, seed=5)
    (late,) = take(plain, 1)
    plain.change(prompt=BLUE, seed=5)
    assert equal([late, *take(plain, 3)], take(ahead, 4))
    assert ahead.recording.chunks == plain.recording.chunks


def test_prefetched_streams_are_replayed_rewound_and_forked_bit_for_bit(playground: CausalVideoPipeline, both) -> None:
    plain, ahead = both("2,1x", undo_depth=2)
    made = take(ahead, 5)
    assert equal(made, take(plain, 5))
    with ahead.fork() as fork:
        assert equal(take(fork, 2), take(plain, 2))
    for chunk in (4, 1):  # from what undo_depth keeps, and anew
        ahead.rewind(chunk)
        assert ahead.index == chunk
        assert equal(take(ahead, 5 - chunk), made[chunk:])
    for again in (True, False):
        with playground.replay(ahead.recording, prefetch=again) as session:
            assert equal(list(session), made)


def test_a_session_may_be_closed_with_a_chunk_in_waiting(both) -> None:
    _, ahead = both("1")
    take(ahead, 2)
    ahead.close()
    assert not any(thread.name.startswith("nearstep-decoding") for thread in threading.enumerate())


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_deferred_is_made_once_and_made_anew_where_it_broke_off(beside: bool) -> None:
    calls = []

    def make() -> int:
        calls.append(torch.is_grad_enabled())
        if len(calls) == 1:
            raise MemoryError
        return 7

    with ThreadPoolExecutor(1) as pool:
        later = Deferred(make, pool if beside else None)
        with pytest.raises(MemoryError):
            later.result()
        assert [later.result(), later.result()] == [7, 7]
    assert len(calls) == 2


def test_who_is_interrupted_while_waiting_may_ask_again() -> None:
    with ThreadPoolExecutor(1) as pool:
        go, begun = threading.Event(), threading.Event()

        def slow() -> int:
            begun.set()
            go.wait(10)
            return 7

        deferred = Deferred(slow, pool)
        begun.wait(10)
        started = deferred._started
        assert started is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(started, "result", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                deferred.result()
        assert not deferred.done
        go.set()
        assert deferred.result() == deferred.result() == 7
