"""Who sees whom, against tables written out by hand."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.nets.masks import Visibility, block_causal, full, teacher_forcing, token_groups
from nearstep.reach import Reach


def table(text: str) -> torch.Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in text.split()])


def test_full_sees_all() -> None:
    assert full(3).frame_mask().all()
    assert token_groups(full(3), (), 4) == ()


def test_a_chunk_sees_itself_and_the_past() -> None:
    expected = table("x.... xxx.. xxx.. xxxxx xxxxx")
    assert torch.equal(block_causal((1, 2, 2)).frame_mask(), expected)


def test_window_and_sink_count_frames_from_the_end_of_the_chunk() -> None:
    expected = table("xx...... xx...... xxxx.... xxxx.... x.xxxx.. x.xxxx.. x...xxxx x...xxxx")
    assert torch.equal(block_causal((2, 2, 2, 2), Reach(window=4, sink=1)).frame_mask(), expected)
    uneven = table("x..... xx.... .xx... ..xx.. ...xx. ....xx")
    assert torch.equal(block_causal((1,) * 6, Reach(window=2)).frame_mask(), uneven)


def test_teacher_forcing_shows_noisy_chunks_the_clean_past_and_themselves() -> None:
    clean = table("x.. xxx xxx")
    noisy_to_clean = table("... x.. x..")
    noisy_to_noisy = table("x.. .xx .xx")
    expected = torch.cat(
        [torch.cat([clean, torch.zeros(3, 3, dtype=bool)], 1), torch.cat([noisy_to_clean, noisy_to_noisy], 1)]
    )
    visibility = teacher_forcing((1, 2))
    assert torch.equal(visibility.frame_mask(), expected)
    assert visibility.positions == (0, 1, 2, 0, 1, 2)


def test_the_past_is_what_the_masked_forward_would_show() -> None:
    whole = block_causal((2, 2, 2, 2), Reach(window=5, sink=1))
    chunk = block_causal((2,), Reach(window=5, sink=1)).shifted(6)
    past = chunk.past()
    assert past == (0, 3, 4, 5)
    assert torch.equal(whole.frame_mask()[6:, (*past, 6, 7)], chunk.frame_mask(past))
    pair = block_causal((2, 2), Reach(window=5, sink=1)).shifted(4)
    assert pair.past() == (0, 1, 2, 3)
    assert torch.equal(whole.frame_mask()[4:], pair.frame_mask((0, 1, 2, 3)))


@pytest.mark.parametrize(
    ("visibility", "past"),
    [
        (block_causal((1, 2, 2)), ()),
        (block_causal((2, 2, 2, 2), Reach(window=4, sink=1)), ()),
        (teacher_forcing((1, 2, 1), Reach(window=3, sink=1)), ()),
        (block_causal((2, 2), Reach(window=5, sink=1)).shifted(4), (0, 1, 2, 3)),
    ],
)
def test_groups_of_tokens_are_the_frame_mask(visibility: Visibility, past: tuple[int, ...]) -> None:
    frames = visibility.frame_mask(past)
    tokens = torch.zeros(frames.shape[0] * 3, frames.shape[1] * 3, dtype=torch.bool)
    for group in token_groups(visibility, past, 3):
        for first, end in group.keys:
            tokens[group.first : group.end, first:end] = True
    assert torch.equal(tokens, frames.repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_bad_chunks_and_windows_are_refused() -> None:
    with pytest.raises(NearstepError, match="positive"):
        block_causal((3, 0))
    with pytest.raises(NearstepError, match="at least 3"):
        block_causal((1, 3), Reach(window=2))
