"""The playground as a World: what it hands out is its scenes, captions and judge, named alike."""

from __future__ import annotations

import pytest
import torch

from nearstep.playground import PLAYGROUND
from nearstep.playground.captions import caption, parse
from nearstep.playground.world import positions, render, sample_scenes
from nearstep.protocols import Verdict, World

SEED = 7_000_000
INDICES = (3, 0, 11)


def test_it_is_a_world():
    assert isinstance(PLAYGROUND, World)


def test_clips_and_prompts_are_those_of_the_scenes_so_named():
    scenes = sample_scenes(SEED, INDICES)
    video = PLAYGROUND.clips(SEED, INDICES)
    assert video.shape == (3, PLAYGROUND.frames, 3, PLAYGROUND.size, PLAYGROUND.size)
    assert torch.equal(video, render(scenes))
    torch.testing.assert_close(PLAYGROUND.clips(SEED, INDICES, frames=5, first=7), video[:, 7:12])
    for scene, text in zip(scenes, PLAYGROUND.prompts(SEED, INDICES), strict=True):
        assert parse(text) == {name: value for name, value in scene.attributes.items() if value is not None}


def test_another_wording_says_the_same_of_the_same_clip_or_less():
    plain = PLAYGROUND.prompts(SEED, range(20))
    again = PLAYGROUND.prompts(SEED, range(20), wording=1)
    short = PLAYGROUND.prompts(SEED, range(20), wording=1, complete=False)
    assert again != plain and [parse(text) for text in again] == [parse(text) for text in plain]
    assert all(parse(less).items() <= parse(more).items() for less, more in zip(short, plain, strict=True))
    assert any(len(parse(less)) < len(parse(more)) for less, more in zip(short, plain, strict=True))
    (scene,) = sample_scenes(SEED, [4])
    assert short[4] == caption(scene, seed=1, index=4, complete=False)
    assert {word for text in plain + short for word in text.replace(",", "").split()} <= set(PLAYGROUND.vocabulary())


def test_the_focus_is_where_the_object_is():
    (scene,) = sample_scenes(SEED, [5])
    assert torch.equal(PLAYGROUND.focus(SEED, [5]), positions(scene).mean(dim=0)[None])
    assert torch.equal(PLAYGROUND.focus(SEED, [5], frames=1, first=9), positions(scene, 1, 9))


def test_true_clips_are_right_and_swapped_ones_are_not():
    video, prompts = PLAYGROUND.clips(SEED, range(8)), PLAYGROUND.prompts(SEED, range(8))
    verdicts = PLAYGROUND.judge(video, prompts)
    assert all(isinstance(verdict, Verdict) and verdict.correct for verdict in verdicts)
    assert min(verdict.total for verdict in verdicts) > 0.97
    swapped = PLAYGROUND.judge(video, prompts[1:] + prompts[:1])
    assert max(verdict.semantic for verdict in swapped) < 1
    assert [verdict.quality for verdict in swapped] == pytest.approx([v.quality for v in verdicts], abs=0.15)
    features = PLAYGROUND.features(video)
    assert features.shape[0] == 8 and features.dim() == 2
