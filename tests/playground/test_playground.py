"""The playground is a World, and whatever a codec, a teacher or an evaluation asks of it fits together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.playground import PLAYGROUND, Playground
from nearstep.playground.world import WorldConfig
from nearstep.protocols import Verdict, World
from nearstep.recipes import playground as recipes
from nearstep.recipes.worlds import WORLDS, find_world
from nearstep.train.phases import Phase
from nearstep.train.stages.codec import CodecSize, CodecStage


def test_it_is_a_world_and_its_name_tells_its_dials():
    assert isinstance(PLAYGROUND, World)
    assert find_world("playground") is PLAYGROUND
    larger = Playground(WorldConfig(size=96, pairs=0.0))
    assert larger.name == "playground size 96 pairs 0" and larger.size == 96
    with pytest.raises(NearstepError, match="did you mean playground"):
        find_world("plaground")


def test_clips_prompts_foreground_and_focus_are_of_the_same_scenes():
    world, clips = PLAYGROUND, range(6)
    video, prompts = world.clips(3, clips), world.prompts(3, clips)
    assert video.shape == (6, 33, 3, 48, 48) and len(prompts) == 6
    assert torch.equal(world.clips(3, [4]), video[4:5])
    part = world.clips(3, clips, frames=5, first=7)
    assert torch.equal(part, video[:, 7:12])
    shown = world.foreground(3, clips, frames=5, first=7)
    assert shown.shape == (6, 5, 1, 48, 48) and 0.01 < float(shown.mean()) < 0.5
    # A thing hides its background, and nothing else differs between a clip and its place.
    still = (part.diff(dim=1).abs().amax(dim=2, keepdim=True) > 0.05) & (shown[:, 1:] == 0) & (shown[:, :-1] == 0)
    assert not still.any()
    for place, mask in zip(world.focus(3, clips, frames=1, first=7), shown[:, 0, 0], strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert columns.min() - 1 <= place[0] <= columns.max() + 1 and rows.min() - 1 <= place[1] <= rows.max() + 1
    words = set(world.vocabulary())
    assert all(set(prompt.replace(",", " ").split()) <= words for prompt in prompts)


def test_true_clips_are_judged_right_and_clips_of_others_not():
    world, clips = PLAYGROUND, range(4)
    video, prompts = world.clips(5, clips), world.prompts(5, clips)
    verdicts = world.judge(video, prompts)
    assert all(isinstance(verdict, Verdict) and verdict.correct for verdict in verdicts)
    assert not any(verdict.correct for verdict in world.judge(video, prompts[1:] + prompts[:1]))


def test_features_feel_blur_and_noise_and_an_odd_first_frame():
    video = PLAYGROUND.clips(9, range(24))
    true = PLAYGROUND.features(video)

    def distance(broken: torch.Tensor) -> float:
        return float((PLAYGROUND.features(broken).mean(0) - true.mean(0)).square().sum())

    blurred = torch.nn.functional.avg_pool3d(video.transpose(1, 2), (1, 3, 3), 1, (0, 1, 1)).transpose(1, 2)
    first = torch.cat([blurred[:, :1], video[:, 1:]], dim=1)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert distance(video) == 0
    assert 0 < distance(first) < distance(blurred)
    assert 0 < distance((video + 0.02 * noise).clamp(0, 1)) < distance((video + 0.1 * noise).clamp(0, 1))


@pytest.mark.parametrize("size", [64, 96])
def test_a_codec_of_it_trains_by_configuration_alone(size: int, tmp_path: Path):
    recipe = recipes.codec()
    tiny = CodecSize(
        base_dim=4, decoder_base_dim=4, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1,
        temperal_downsample=(True, True), patch_size=2,
    )  # fmt: skip
    stage = CodecStage(
        replace(
            recipe,
            world=Playground(WorldConfig(size=size)),
            loop=replace(recipe.loop, folder=tmp_path, steps=2),
            phases=(Phase(1, 1, 2, 32), Phase(1, 5, 2)),
            size=tiny,
        )
    )
    for index, side in enumerate((32, size)):
        video, weight = stage.batch(index)
        assert video.shape[-1] == weight.shape[-1] == side
        assert float(weight.mean()) == pytest.approx(1) and weight.unique().numel() > 1
        assert stage.step(index)["loss"].isfinite()


def test_weights_are_above_zero():
    with pytest.raises(NearstepError, match="foreground_weight=0"):
        replace(recipes.codec(), foreground_weight=0)
    assert isinstance(recipes.codec().phases[0], Phase)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_clips_are_the_same_whatever_the_caller_computes_in(world: World) -> None:
    parts = (world.clips, world.foreground)
    plain = [part(0, range(16), frames=2) for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = [part(0, range(16), frames=2) for part in parts]
    assert all(torch.equal(first, second) for first, second in zip(plain, narrow, strict=True))
