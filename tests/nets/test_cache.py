"""The cache: reads change nothing, commits are in order and detached, what must stay stays."""

from __future__ import annotations

import pytest
import torch
from faults import Injected, TorchFault

from nearstep.errors import NearstepError
from nearstep.nets.cache import KVCache
from nearstep.reach import Reach

TOKENS = 2


def make(capacity: int, **options) -> KVCache:
    return KVCache(layers=2, batch=1, capacity_frames=capacity, tokens_per_frame=TOKENS, heads=1, head_dim=2, **options)


def frames(start: int, count: int) -> list:
    """Keys (and values) that hold their own frame number, for two layers."""
    numbers = torch.arange(start, start + count).float().repeat_interleave(TOKENS)
    keys = numbers.view(1, -1, 1, 1).expand(1, -1, 1, 2)
    return [(keys + 0.25 * layer, -keys) for layer in range(2)]


def held(cache: KVCache, positions: tuple[int, ...], layer: int = 0) -> list[float]:
    with torch.enable_grad():
        past = cache.read(layer, cache.find(positions), frames=1)
    return [] if past is None else past.keys[0, ::TOKENS, 0, 0].tolist()


def test_what_was_committed_is_read() -> None:
    cache = make(5)
    cache.commit(0, frames(0, 2))
    cache.commit(2, frames(2, 3))
    assert cache.end == 5
    assert held(cache, (0, 1, 2, 3, 4)) == [0, 1, 2, 3, 4]
    assert held(cache, (0, 3), layer=1) == [0.25, 3.25]
    assert held(cache, ()) == []


def test_a_contiguous_read_is_a_view_with_room_for_the_call() -> None:
    cache = make(5)
    cache.commit(0, frames(0, 3))
    with torch.no_grad():
        past = cache.read(0, cache.find((0, 1, 2)), frames=2)
        assert past is not None
        assert past.room
        assert past.keys.shape[1] == 5 * TOKENS
        assert past.keys.data_ptr() == cache.keys[0].data_ptr()
        assert not cache.read(0, cache.find((0, 1, 2)), frames=3).room  # does not fit
        assert not cache.read(0, cache.find((0, 1)), frames=1).room  # frame 2 lies there
    assert not cache.read(0, cache.find((0, 1, 2)), frames=2).room  # under grad


def test_commits_are_detached() -> None:
    cache = make(3)
    cache.commit(0, [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in frames(0, 2)])
    assert not any(buffer.requires_grad for buffer in (*cache.keys, *cache.values))


def test_only_frames_out_of_sight_are_dropped() -> None:
    cache = make(5, reach=Reach(window=4, sink=1))
    for start in range(0, 10, 2):
        cache.commit(start, frames(start, 2))
    assert cache.end == 10
    assert held(cache, cache.positions) == list(cache.positions)
    assert set(cache.positions) >= {0, 7, 8, 9}  # a next chunk of one frame sees 7, 8, 9 and itself
    with pytest.raises(NearstepError, match="dropped"):
        cache.find((0, 3))


def test_append_only_refuses_to_drop() -> None:
    cache = make(4, reach=Reach(window=2), append_only=True)
    cache.commit(0, frames(0, 2))
    cache.commit(2, frames(2, 2))
    with pytest.raises(NearstepError, match=r"append-only .* at least 6 frames"):
        cache.commit(4, frames(4, 2))


def test_a_full_cache_without_a_window_says_so() -> None:
    cache = make(3)
    cache.commit(0, frames(0, 3))
    with pytest.raises(NearstepError, match="at least 4 frames or set a shorter window"):
        cache.commit(3, frames(3, 1))


def test_commits_out_of_order_and_reads_of_gaps_are_refused() -> None:
    cache = make(6)
    cache.commit(0, frames(0, 2))
    with pytest.raises(NearstepError, match="in order"):
        cache.commit(3, frames(3, 1))
    with pytest.raises(NearstepError, match=r"\[2\] are not in the cache"):
        cache.find((0, 1, 2))


@pytest.mark.parametrize("relative", [False, True])
def test_a_branch_leaves_the_cache_as_it_was_and_goes_on_as_a_copy_would(relative: bool) -> None:
    cache = make(9, reach=Reach(window=4, sink=2, relative_sink=relative), chunk_frames=2)
    for start in range(0, 20, 2):
        copied = cache.copy()
        for _ in range(2):  # the first is given up
            branch = cache.branch()
            seen = [held(cache, cache.positions, layer) for layer in range(2)]
            branch.commit(start, frames(start, 2))
            assert [held(cache, cache.positions, layer) for layer in range(2)] == seen
        copied.commit(start, frames(start, 2))
        cache = branch
        after = cache.branch()
        assert set(after.positions) == set(copied.positions)
        assert held(after, after.positions) == held(copied, after.positions)


@pytest.mark.parametrize("sink", [0, 1, 2])
@pytest.mark.parametrize("done_first", [False, True])
def test_a_branch_that_breaks_off_anywhere_is_made_by_the_next_one(sink: int, done_first: bool) -> None:
    """What is kept moves down by less than it is long, and the keys of a sink are rotated: no part is done twice."""
    started = make(10 + sink, reach=Reach(window=8, sink=sink, relative_sink=True), chunk_frames=2)
    for start in range(0, 14, 2):
        started = started.branch()
        started.commit(start, frames(start, 2))
    whole = started.copy().branch()
    for number in range(100):
        cut, fault = started.copy(), TorchFault(number, done_first=done_first)
        try:
            with fault:
                cut.branch()
            break
        except Injected:
            branch = cut.branch()
        assert branch.positions == whole.positions
        for one, other in zip((*branch.keys, *branch.values), (*whole.keys, *whole.values), strict=True):
            held = len(whole.positions) * TOKENS
            assert torch.equal(one[:, :held], other[:, :held])
    assert 8 <= number < 99
