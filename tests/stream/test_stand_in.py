"""A session needs a few methods, not a pipeline: with a network that predicts nothing, chunks are their noise."""

from __future__ import annotations

import pytest
import torch
from streams import equal, take

from nearstep import rng
from nearstep.flow.live_plan import live_plan
from nearstep.nets.cache import KVCache
from nearstep.nets.text import Tokens
from nearstep.stream.recording import Opening
from nearstep.stream.request import Conditioning
from nearstep.stream.session import Session
from nearstep.stream.setup import Setup, StreamModel

FRAME = (4, 2, 2)


class Nothing:
    """Velocity 0: a step at t = 1 leaves x0 = x."""

    def __call__(self, x, t, *, cache=None, start=0):
        return torch.zeros_like(x)

    def commit(self, x, *, cache, start):
        keys = torch.zeros(1, x.shape[1], 1, 2)
        cache.commit(start, [(keys, keys)])

    def commit_then(self, clean, x, t, *, cache, start):
        self.commit(clean, cache=cache, start=start - clean.shape[1])
        return self(x, t, cache=cache, start=start)

    def new_cache(self, batch, frames, height, width, *, reach=None):
        capacity = reach.window + reach.sink + 2
        return KVCache(
            layers=1, batch=1, capacity_frames=capacity, tokens_per_frame=1, heads=1, head_dim=2, reach=reach,
            chunk_frames=2,
        )  # fmt: skip


class Means:
    """Decodes a frame as its mean, four times."""

    def decode(self, latents):
        return latents.mean((2, 3, 4), keepdim=True).expand(-1, -1, 3, 2, 2).repeat_interleave(4, 1)

    def copy(self):
        return self


class StandIn:
    chunk_frames = 2
    network_device = decoder_device = torch.device("cpu")

    def __init__(self) -> None:
        self.bound: list[str] = []
        self.freed = 0

    def conditioning(self, prompt, *, negative_prompt="", guidance_scale=None, seed=None, samples=None):
        tokens = Tokens(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long))
        return Conditioning(
            prompts=(prompt,), negative=("",), guidance=1.0, seed=seed, samples=tuple(samples), tokens=tokens
        )

    def denoiser(self, conditioning):
        self.bound.append(conditioning.prompts[0])
        return Nothing()

    def live_plan(self, text):
        return live_plan(text, shift=1.0, grid=4, frames=8)

    def latent_stream(self):
        return Means()

    def maybe_free_model_hooks(self):
        self.freed += 1


@pytest.fixture
def model() -> StandIn:
    return StandIn()


def opened(model: StandIn, **options) -> Session:
    opening = Opening(
        prompt="one", negative_prompt="", plan="1", seed=7, sample=3, guidance=1.0, height=4, width=4, window=4, sink=2,
        relative_sink=True,
    )  # fmt: skip
    conditioning = model.conditioning("one", seed=7, samples=[3])
    return Session(Setup(model=model, opening=opening, conditioning=conditioning, frame=FRAME, **options))


def noise(chunk: int, seed: int = 7) -> torch.Tensor:
    return rng.noise((2, *FRAME), seed=seed, samples=[3], chunk=chunk, step=0)


def test_chunks_are_the_noise_of_their_names(model: StandIn) -> None:
    assert isinstance(model, StreamModel)
    with opened(model) as session:
        made = take(session, 4)
        assert all(torch.equal(part.latents, noise(part.index)) for part in made)
        session.change(seed=8)
        made += take(session, 2)
        assert all(torch.equal(part.latents, noise(part.index, seed=8)) for part in made[4:])
    assert model.freed == 1


def test_a_rewind_to_a_state_that_was_kept_binds_no_text_again(model: StandIn) -> None:
    session = opened(model, undo_depth=3)
    made = take(session, 2)
    session.change(prompt="two")
    made += take(session, 2)
    assert model.bound == ["one", "two"]
    session.rewind(3)
    assert (session.prompt, model.bound) == ("two", ["one", "two"])
    assert equal(take(session, 1), made[3:])
    session.rewind(2)
    assert (session.prompt, model.bound) == ("one", ["one", "two"])


@pytest.mark.parametrize("prefetch", [False, True])
def test_forks_go_on_from_a_state_and_share_none(model: StandIn, prefetch: bool) -> None:
    session = opened(model, prefetch=prefetch)
    take(session, 3)
    with session.fork(seed=8) as fork, session.fork(1) as early:
        first = 4 if prefetch else 3  # a chunk that is begun is made as it was
        made = [part for part in take(fork, 3) if part.index >= first]
        assert made and all(torch.equal(part.latents, noise(part.index, seed=8)) for part in made)
        assert [part.index for part in take(early, 2)] == [1, 2]
        assert all(torch.equal(part.latents, noise(part.index)) for part in take(session, 3))
    session.close()
