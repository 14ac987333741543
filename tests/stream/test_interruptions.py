"""A session that is meddled with, or broken off half-way: it refuses, or goes on as if nothing had been."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from streams import BLUE, RED, equal, take

from nearstep.errors import NearstepError
from nearstep.nets.denoiser import TextDenoiser
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Recording
from nearstep.stream.session import Session


@pytest.fixture(scope="module")
def playground() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


def out_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


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
    assert equal(take(session, 2), take(other, 2))


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
    assert equal(take(session, 2), take(other, 2))


def test_a_change_whose_frames_are_not_committed_is_committed_by_the_next_call(playground, monkeypatch) -> None:
    session, other = (playground.open(RED, "1", seed=1) for _ in range(2))
    take(session, 3), take(other, 3)
    session.change(prompt=BLUE), other.change(prompt=BLUE)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(TextDenoiser, "commit", out_of_memory)
        next(session)
    assert (session.prompt, session.index) == (BLUE, 3)
    assert equal(take(session, 2), take(other, 2))


@pytest.mark.parametrize("undo_depth", [0, 2])
def test_a_rewind_that_breaks_off_has_not_happened(playground, undo_depth: int, monkeypatch) -> None:
    session, other = playground.open(RED, "1", seed=1, undo_depth=undo_depth), playground.open(RED, "1", seed=1)
    made = take(session, 4)
    take(other, 4)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(TextDenoiser, "__call__", out_of_memory)
        session.rewind(1)
    assert len(session.recording.chunks) == session.index == 4
    assert equal(take(session, 1), take(other, 1))
    session.rewind(1)
    assert equal(take(session, 3), made[1:])


@pytest.mark.parametrize("sink", [0, 1, 3, 6])
def test_a_window_of_one_chunk_goes_on_under_another_prompt(playground, sink: int) -> None:
    session = playground.open(RED, "1", seed=1, window=1, sink=sink)
    take(session, 3)
    session.change(prompt=BLUE)
    made = take(session, 2)
    with playground.replay(session.recording) as again:
        assert equal(take(again, 5)[3:], made)


def test_a_log_says_what_was_handed_out_and_no_more(playground, tmp_path: Path, monkeypatch) -> None:
    log = tmp_path / "take.jsonl"
    with playground.open(RED, "1", seed=1, log=log) as session:
        take(session, 2)
        whole = Recording.append_last

        def interrupted(recording: Recording, path: Path) -> None:
            whole(recording, path)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Recording, "append_last", interrupted)
            next(session)
        assert [chunk.index for chunk in take(session, 2)] == [2, 3]
        assert Recording.load(log) == session.recording
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Recording, "append_last", interrupted)
            next(session)
    assert Recording.load(log) == session.recording
    assert len(session.recording.chunks) == 4


@pytest.mark.parametrize("forked", [False, True])
def test_a_session_that_nobody_closes_leaves_no_thread(playground, forked: bool) -> None:
    before = set(threading.enumerate())
    session = playground.open(RED, "1", seed=1, prefetch=True)
    take(session, 3)
    assert any(thread.name.startswith("nearstep-decoding") for thread in set(threading.enumerate()) - before)
    fork = session.fork() if forked else None
    session = weakref.ref(session)
    assert session() is None  # at once: nothing goes round in a circle
    assert fork is None or take(fork, 1)[0].index == 3
    del fork
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert not [thread for thread in threading.enumerate() if thread not in before and "nearstep" in thread.name]


def test_threads_that_need_the_text_encoder_at_once_load_it_once(model_folder: Path, tmp_path: Path) -> None:
    prompts = [f"a {size} {colour} ball" for size in ("small", "large") for colour in ("red", "blue")]
    plain = CausalVideoPipeline.from_pretrained(model_folder)
    (tmp_path / "text").mkdir()
    pipe = CausalVideoPipeline.from_pretrained(model_folder, text_cache=tmp_path / "text")
    encoders = []

    def first(prompt: str):
        with pipe.open(prompt, "1", seed=1) as session:
            chunk = next(session)
        encoders.append(id(pipe.text_encoder))
        return chunk

    with ThreadPoolExecutor(len(prompts)) as pool:
        made = list(pool.map(first, prompts))
    assert len(encoders) == len(prompts) and len(set(encoders)) == 1
    for prompt, chunk in zip(prompts, made, strict=True):
        with plain.open(prompt, "1", seed=1) as session:
            assert torch.equal(next(session).video, chunk.video)
