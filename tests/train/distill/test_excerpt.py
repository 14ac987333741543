"""Excerpts of long samples: clips of their own, whose gradients reach the sample, with the text that holds there."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from nearstep.nets.codec import VideoCodec
from nearstep.nets.script import Script
from nearstep.train.distill.excerpt import Excerpt, draw_excerpt


@pytest.fixture(scope="module")
def codec() -> VideoCodec:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], in_channels=12,
        out_channels=12, patch_size=2, latents_mean=[0.1] * 4, latents_std=[0.8] * 4,
    )  # fmt: skip
    return VideoCodec(vae).eval().requires_grad_(False)


@pytest.mark.parametrize("first", [0, 1, 4])
def test_an_excerpt_begins_with_a_picture_and_goes_on_as_the_sample(codec: VideoCodec, first: int):
    x = torch.randn(2, 9, 4, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    clip = Excerpt(first=first, frames=5).clip(x, codec)
    assert torch.equal(clip[:, 1:], x[:, first + 1 : first + 5])
    shown = codec.decode(x[:, : first + 1])[:, -1:]
    expected = x[:, :1] if first == 0 else codec.encode(shown)
    torch.testing.assert_close(clip[:, :1], expected)
    clip.sum().backward()
    reached = x.grad.abs().amax(dim=(0, 2, 3, 4)) > 0
    assert reached.tolist() == [first + (first > 0) <= frame < first + 5 for frame in range(9)]


def test_a_picture_of_a_clip_at_rest_is_the_picture_it_began_with(codec: VideoCodec):
    # Whatever the weights: an excerpt's first frame depends on what its own frame shows, not on how far it lies in.
    still = codec.encode(torch.rand(1, 1, 3, 32, 32).expand(1, 33, 3, 32, 32))
    shown = codec.decode(still)
    for first in (2, 5):
        again = codec.encode(shown[:, 4 * first : 4 * first + 1])
        torch.testing.assert_close(Excerpt(first=first, frames=3).clip(still, codec)[:, :1], again)


def test_an_excerpt_reads_the_prompts_that_hold_in_it():
    script = Script(torch.arange(4.0).view(1, 4, 1, 1), (3, 6, 12))

    def read(first: int, frames: int) -> tuple[list[float], tuple[int, ...]]:
        text = Excerpt(first=first, frames=frames).text(script)
        if isinstance(text, Script):
            return text.features.flatten().tolist(), text.starts
        return text.flatten().tolist(), ()

    assert read(0, 15) == ([0, 1, 2, 3], (3, 6, 12))
    assert read(0, 3) == ([0], ())
    assert read(3, 3) == ([1], ())  # the picture, and all after it, is of the second scene
    assert read(2, 9) == ([0, 1, 2], (1, 4))
    assert read(7, 9) == ([2, 3], (5,))
    one = torch.zeros(1, 5, 2)
    assert Excerpt(first=4, frames=3).text(one) is one


def test_excerpts_begin_anywhere_and_follow_from_their_names():
    drawn = [draw_excerpt(12, 9, 0, step) for step in range(80)]
    assert {one.first for one in drawn} == {0, 1, 2, 3} and {one.frames for one in drawn} == {9}
    assert drawn == [draw_excerpt(12, 9, 0, step) for step in range(80)]
    for most in (None, 9, 12):
        assert draw_excerpt(9, most, 0, 1) == Excerpt(first=0, frames=9)
