"""What a change of prompt makes of the past: it stays as it was made, or is committed anew under the new prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from streams import BLUE, RED, equal, take

from nearstep import rng
from nearstep.flow.plan import Schedule
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.script import Script
from nearstep.reach import Reach
from nearstep.rollout.rollout import PlannedChunk, unroll
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Recording

BOTH = pytest.mark.parametrize("recommit", [False, True])
FIRST, SECOND = 2, 5
"""Chunks before which the prompt changes."""


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


def scripted(
    pipe: CausalVideoPipeline, recording: Recording, prompts: list[str], starts: tuple[int, ...], reach: Reach
) -> list[torch.Tensor]:
    """Latents of a rollout as training makes it: each frame reads the prompt of its place."""
    texts = [pipe.features(pipe.conditioning(prompt))[0] for prompt in prompts]
    denoiser = TextDenoiser(pipe.transformer, Script(torch.stack(texts, dim=1), starts))
    shape = pipe.codec.latent_shape(1, 48, 48)

    def draw(chunk: int, frames: int, step: int) -> torch.Tensor:
        return rng.noise((frames, *shape.frame), seed=3, samples=[0], chunk=chunk, step=step)

    cache = denoiser.new_cache(1, None, *shape.frame[1:], reach=reach)
    planned = [PlannedChunk(1, Schedule(entry.times)) for entry in recording.chunks]
    with torch.no_grad():
        return [chunk.latents for chunk in unroll(denoiser, planned, draw, cache=cache)]


@pytest.mark.parametrize("window", [None, 3])
def test_where_the_past_stays_as_it_was_made_a_stream_is_the_rollout_of_a_story(
    playground: CausalVideoPipeline, window: int | None
) -> None:
    with playground.open(RED, "2", seed=3, window=window) as session:
        made = take(session, FIRST)
        session.change(prompt=BLUE)
        made += take(session, SECOND - FIRST)
        session.change(prompt="a large blue ball rests on snow"), session.change(prompt=RED)
        made += take(session, 4)
        reach = session._setup.reach
    expected = scripted(playground, session.recording, [RED, BLUE, RED], (FIRST, SECOND), reach)
    for ours, theirs in zip(made, expected, strict=True):  # each chunk goes on from rounding of all before it
        torch.testing.assert_close(ours.latents, theirs, rtol=0, atol=1e-3)
    with playground.open(RED, "2", seed=3, window=window, recommit=True) as other:
        take(other, FIRST)
        other.change(prompt=BLUE)
        (turned,) = take(other, 1)
    assert float((turned.latents - expected[FIRST]).abs().max()) > 0.1  # a past under another prompt is another past


def test_a_past_committed_anew_is_one_under_the_new_prompt(playground: CausalVideoPipeline) -> None:
    session = playground.open(RED, "1", seed=3, recommit=True)
    made = take(session, 2)
    session.change(prompt=BLUE)
    (turned,) = take(session, 1)
    anew = playground.denoiser(playground.conditioning(BLUE))
    cache = anew.new_cache(1, 9, *turned.latents.shape[-2:])
    with torch.no_grad():
        for part in made:
            anew.commit(part.latents, cache=cache, start=cache.end)
        noise = rng.noise(turned.latents.shape[1:], seed=3, samples=[0], chunk=2, step=0)
        x0 = noise - anew(noise, torch.ones(1, 1), cache=cache, start=2)
    torch.testing.assert_close(turned.latents, x0, rtol=0, atol=1e-4)


@BOTH
def test_a_recording_says_which_and_is_made_again_bit_for_bit(
    playground: CausalVideoPipeline, tmp_path: Path, recommit: bool
) -> None:
    session = playground.open(RED, "1", seed=3, recommit=recommit, undo_depth=1)
    made = take(session, FIRST)
    session.change(prompt=BLUE)
    made += take(session, 3)
    path = session.recording.save(tmp_path / "stream.jsonl")
    opening = json.loads(path.read_text().splitlines()[0])
    assert opening.pop("recommit") is recommit
    assert equal(list(playground.replay(path)), made)
    for chunk in (4, 1):  # from what undo_depth keeps, and anew
        session.rewind(chunk)
        if chunk <= FIRST:
            (_,) = take(session, 1)
            session.change(prompt=BLUE)
            chunk += 1
        assert equal(take(session, 5 - chunk), made[chunk:])
    lines = [json.dumps(opening), *path.read_text().splitlines()[1:]]
    assert Recording.of_text("\n".join(lines), "older").opening.recommit  # which all did then


def test_the_default_is_the_models(playground: CausalVideoPipeline) -> None:
    with playground.open(RED, "1", seed=3) as session:
        assert session.recording.opening.recommit is playground.settings.recommit is False


@BOTH
def test_a_change_before_anything_is_made_is_as_if_it_had_begun_so(
    playground: CausalVideoPipeline, recommit: bool
) -> None:
    picture = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
    turned = playground.open(RED, "1", seed=3, image=picture, recommit=recommit)
    turned.change(prompt=BLUE)
    assert equal(take(turned, 3), take(playground.open(BLUE, "1", seed=3, image=picture), 3))
