"""A session that is meddled with, or broken off half-way: it refuses, or goes on as if nothing had been."""

from __future__ import annotations

import pytest
import torch
from streams import RED, take, video

from nearstep.errors import NearstepError
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.session import Session


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


class Meddling:
    """A denoiser that does something before each of its calls."""

    def __init__(self, inner, meddle) -> None:
        self.inner, self.meddle = inner, meddle

    def __call__(self, *arguments, **options):
        self.meddle()
        return self.inner(*arguments, **options)

    def commit_then(self, *arguments, **options):
        self.meddle()
        return self.inner.commit_then(*arguments, **options)

    def commit(self, *arguments, **options):
        return self.inner.commit(*arguments, **options)

    def new_cache(self, *arguments, **options):
        return self.inner.new_cache(*arguments, **options)


@pytest.fixture
def meddled(playground, monkeypatch):
    """``meddled(meddle)``: a session of two steps a chunk, seed 3, whose network calls ``meddle`` first."""

    def opened(meddle) -> Session:
        bind = playground.denoiser
        with monkeypatch.context() as patch:
            patch.setattr(playground, "denoiser", lambda told: Meddling(bind(told), meddle))
            return playground.open(RED, "2", seed=3)

    return opened


def test_one_thing_at_a_time_and_nothing_after_the_end(meddled) -> None:
    inside: list[str] = []

    def meddle() -> None:
        for attempt in (lambda: session.change(plan="2"), lambda: next(session), session.close):
            with pytest.raises(NearstepError) as caught:
                attempt()
            inside.append(str(caught.value))

    session = meddled(meddle)
    take(session, 1)
    assert len(inside) == 6
    assert all("being made" in text for text in inside)
    session.close()
    with pytest.raises(NearstepError, match="closed"):
        next(session)


def test_a_chunk_that_was_broken_off_is_made_anew(playground, meddled) -> None:
    calls: list[None] = []

    def meddle() -> None:
        calls.append(None)
        if len(calls) == 4:  # the second step of the second chunk: the first is committed by then
            raise KeyboardInterrupt

    session, other = meddled(meddle), playground.open(RED, "2", seed=3)
    take(session, 1), take(other, 1)
    with pytest.raises(KeyboardInterrupt):
        next(session)
    torch.testing.assert_close(video(take(session, 2)), video(take(other, 2)), rtol=0, atol=1e-4)


def test_a_decoding_that_was_broken_off_is_made_anew(playground, monkeypatch) -> None:
    session, other = (playground.open(RED, "2", seed=3) for _ in range(2))
    take(session, 1), take(other, 1)
    kind = type(playground.latent_stream())
    whole = kind.decode

    def interrupted(self, latents, **options):
        whole(self, latents[:, :1], **options)  # a part of it is done
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(session)
    monkeypatch.undo()
    torch.testing.assert_close(video(take(session, 2)), video(take(other, 2)), rtol=0, atol=1e-4)
