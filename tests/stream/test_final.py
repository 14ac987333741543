"""A preview at once and the codec's pixels later: each is what a stream of its own would show, bit for bit."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from streams import equal, take
from torch import Tensor

from nearstep import CausalVideoPipeline, NearstepError
from nearstep.stream.decoding import Deferred
from nearstep.stream.results import ChunkVideo

RED, BLUE = "a small red ball slides left on snow", "the large blue football bounces"


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def previewed(model_folder: Path, tiny_file: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder, tiny_decoder=tiny_file)


def finals(chunks: list[ChunkVideo]) -> list[Tensor]:
    return [chunk.final() for chunk in chunks]


def same(found: list[Tensor], chunks: list[ChunkVideo]) -> bool:
    return len(found) == len(chunks) and all(torch.equal(a, b.video) for a, b in zip(found, chunks, strict=True))


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("picture", [False, True])
def test_both_are_what_streams_of_their_own_show(
    plain: CausalVideoPipeline, previewed: CausalVideoPipeline, prefetch: bool, picture: bool
) -> None:
    start = dict(image=torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))) if picture else {}
    options = dict(plan="2,1x", seed=3, undo_depth=1, **start)
    with (
        previewed.open(RED, **options, prefetch=prefetch, final=True) as both,
        plain.open(RED, **options, prefetch=prefetch) as fine,
        previewed.open(RED, **options, prefetch=prefetch) as coarse,
    ):
        for session in (both, fine, coarse):
            session.change(prompt=BLUE)
        made, finer = take(both, 4), take(fine, 4)
        assert equal(made, take(coarse, 4)) and same(finals(made), finer)
        assert not torch.equal(made[1].video, made[1].final())
        for chunk in (3, 1):  # from what undo_depth keeps, and anew
            both.rewind(chunk)
            assert same(finals(take(both, 4 - chunk)), finer[chunk:])
        with both.fork() as fork:
            assert same(finals(take(fork, 2)), take(fine, 2))
    with previewed.replay(both.recording, final=True, **start) as again:
        assert same(finals(list(again)), finer)


def test_what_is_not_ready_when_a_session_closes_is_made_when_it_is_asked_for(
    plain: CausalVideoPipeline, previewed: CausalVideoPipeline
) -> None:
    with previewed.open(RED, "1", seed=3, final=True) as session:
        session.warm_up()
        chunks = take(session, 3)
    assert not any(thread.name.startswith("nearstep-decoding") for thread in threading.enumerate())
    with plain.open(RED, "1", seed=3) as fine:
        assert same(finals(chunks)[::-1], take(fine, 3)[::-1])


def test_the_preview_does_not_wait_for_the_codec(previewed: CausalVideoPipeline, monkeypatch) -> None:
    may_go = threading.Event()
    stream = type(previewed.codec.stream())
    decode = stream.decode

    def slow(self, latents: Tensor) -> Tensor:
        assert may_go.wait(60)
        return decode(self, latents)

    monkeypatch.setattr(stream, "decode", slow)
    with previewed.open(RED, "1", seed=3, final=True) as session:
        chunks = take(session, 3)  # while the codec has not made one
        with ThreadPoolExecutor(1) as another:
            waited = another.submit(chunks[0].final)
            assert not chunks[0].later.done  # at once, though somebody waits
            may_go.set()
            assert waited.result() is chunks[0].final()
        assert [chunk.final().shape for chunk in chunks] == [chunk.video.shape for chunk in chunks]
        assert chunks[0].later.done


def test_a_chunk_that_is_kept_keeps_no_decoder() -> None:
    class Decoder:
        pass

    decoder = Decoder()
    gone = weakref.ref(decoder)

    def make(used: Decoder = decoder) -> int:
        return 7 if used is not None else 0

    with ThreadPoolExecutor(1) as pool:
        kept = Deferred(make, pool)
    del make, decoder  # all that holds it now is what was made of it, which nobody has asked for yet
    gc.collect()
    assert gone() is None and kept.done and kept.result() == 7


def test_misuse_is_refused_before_anything_is_made(
    plain: CausalVideoPipeline, previewed: CausalVideoPipeline, model_folder: Path, tiny_file: Path
) -> None:
    with pytest.raises(NearstepError, match="final=True: the codec makes the pixels already; load.*tiny_decoder"):
        plain.open(RED, final=True)
    with previewed.open(RED, "1") as session, pytest.raises(NearstepError, match="open it with final=True"):
        next(session).final()


@pytest.mark.parametrize(("tiny", "option", "refused"), [
    (False, "prefetch", True), (True, "prefetch", False), (True, "final", True)
])  # fmt: skip
def test_network_and_codec_are_not_at_work_at_once_where_they_take_turns_on_the_device(
    model_folder: Path, tiny_file: Path, tiny: bool, option: str, refused: bool
) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, tiny_decoder=tiny_file if tiny else None)
    pipe.enable_model_cpu_offload(device="cpu")
    if refused:
        with pytest.raises(NearstepError, match=f"{option}=True has network and codec at work at once.*leave {option}"):
            pipe.open(RED, "1", **{option: True})
    else:
        with pipe.open(RED, "1", **{option: True}) as session:
            assert len(take(session, 2)) == 2
