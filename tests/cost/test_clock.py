"""The clock looks on and changes nothing; its times add up; rates follow from them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from nearstep import CausalVideoPipeline
from nearstep.cost import clock as timing
from nearstep.cost.bench import flops, measure, play_timed, time_clip
from nearstep.cost.clock import Clock, Floor, Span, Timed, matmul_floor, peak_memory
from nearstep.cost.flops import counter
from nearstep.cost.rates import CALLS, COMMIT, DECODE, FUSED, STEP, TEXT, ChunkTime, quantile, rates
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.protocols import CausalDenoiser, LatentStream

PROMPT = "a small red ball slides left"


@pytest.fixture
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


def test_stages_in_each_other_add_up_to_the_wall() -> None:
    clock, began = Clock(), time.perf_counter()
    with clock.stage("outer"):
        time.sleep(0.01)
        for _ in range(2):
            with clock.stage("inner"):
                time.sleep(0.02)
    wall = time.perf_counter() - began
    spans = clock.spans()
    assert [span.stage for span in spans] == ["inner", "inner", "outer"]
    assert 0.05 <= sum(span.seconds for span in spans) <= wall
    assert spans[0].seconds >= 0.02 and 0.01 <= spans[2].seconds <= wall - 0.04
    assert clock.spans() == []


def test_a_stage_that_fails_is_timed_and_fails() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError):
        clock.timed("bad", lambda: 1 / 0)()
    with clock.stage("good"):
        pass
    assert [span.stage for span in clock.spans()] == ["bad", "good"]


def test_named_methods_are_timed_and_others_are_not(pipe: CausalVideoPipeline) -> None:
    clock, inner = Clock(), pipe.denoiser(pipe.request(PROMPT))
    timed = Timed(inner, clock, CALLS)
    assert isinstance(timed, CausalDenoiser)
    assert timed.text is inner.text and timed.net is pipe.transformer
    x, t, cache = torch.zeros(1, 2, 4, 4, 4), torch.ones(1, 2), timed.new_cache(1, 4, 4, 4)
    assert torch.equal(timed(x, t), inner(x, t))
    timed.commit(x, cache=cache, start=0)
    assert cache.end == 2
    assert [span.stage for span in clock.spans()] == ["cache", STEP, COMMIT]
    stream = Timed(pipe.decoder.stream(), clock, {"decode": DECODE})
    assert isinstance(stream, LatentStream) and stream.decode(x).shape[1] == 5 and stream.frames == 2
    with pytest.raises(AttributeError):
        timed.nothing  # noqa: B018


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("fused", [True, False])
def test_timed_clips_are_the_same_bit_for_bit(pipe: CausalVideoPipeline, fused: bool, guidance: float) -> None:
    asked = pipe.request([PROMPT, "a blue football"], "4,1x", seed=3, guidance_scale=guidance)
    plain = torch.cat([frames.video for frames in pipe.play(asked, fused=fused)], dim=1)
    made, chunks = zip(*play_timed(pipe, asked, Clock(), fused=fused), strict=True)
    assert torch.equal(torch.cat([frames.video for frames in made], dim=1), plain)
    stages = [[span.stage for span in chunk.spans] for chunk in chunks]
    later = [FUSED, DECODE] if fused else [COMMIT, STEP, DECODE]
    assert stages == [[TEXT, "cache", *[STEP] * 4, DECODE], later, later]
    assert all(sum(span.seconds for span in chunk.spans) <= chunk.wall for chunk in chunks)
    assert [chunk.pixel_frames for chunk in chunks] == [frames.video.shape[1] for frames in made]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("plan", ["3,1x", "2"])
def test_a_clip_costs_what_torch_counts(pipe: CausalVideoPipeline, plan: str, fused: bool, guidance: float) -> None:
    asked = pipe.request([PROMPT, "a blue football"], plan, seed=3, guidance_scale=guidance)
    with counter() as count:
        time_clip(pipe, asked, Clock(), fused=fused)
    assert count.get_total_flops() == sum(sum(chunk.values()) for chunk in flops(pipe, asked, fused=fused))


def test_a_bidirectional_clip_is_one_chunk(model_folder: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher")
    asked = pipe.request(PROMPT, seed=1)
    found = measure(pipe, asked, repeats=1)
    assert found["fused"]["calls"] == found["steps"] == 3 and "separate" not in found
    assert found["fused"]["first_frame_seconds"] == found["fused"]["chunk_seconds"]["p50"]
    assert "steady" not in [rate["name"] for rate in found["fps"]]
    with counter() as count:
        time_clip(pipe, asked, Clock())
    assert found["fused"]["flops"] == count.get_total_flops()


def test_another_decoder_is_timed_beside_the_clip(pipe: CausalVideoPipeline) -> None:
    pipe.tiny_decoder = TinyDecoder(channels=4, widths=(8, 8, 8, 8))
    found = measure(pipe, pipe.request(PROMPT, "1", seed=1), repeats=2, floors={torch.float32: Floor(1e9, 8)})
    stages, fps = found["fused"]["stages"], {rate["name"]: rate["fps"] for rate in found["fps"]}
    assert stages["codec decode"]["times"] == stages["decode"]["times"] == found["chunks"]
    assert stages["codec decode"]["flops"] != stages["decode"]["flops"]
    assert fps["tiny decoder, no commits"] > fps["tiny decoder"] and fps["own decoder"] > 0
    for has in stages.values():
        if "flops" in has:
            assert has["share_of_floor"] == pytest.approx(has["flops"] / 1e9 / has["seconds"])
    assert found["fused"]["flops"] == sum(h.get("flops", 0) for name, h in stages.items() if name != "codec decode")


def chunk(frames: int, wall: float, **stages: float) -> ChunkTime:
    names = {"step": STEP, "fused": FUSED, "commit": COMMIT, "decode": DECODE, "text": TEXT}
    return ChunkTime(
        pixel_frames=frames, wall=wall, spans=tuple(Span(names[key], seconds) for key, seconds in stages.items())
    )


def test_rates_count_what_they_say() -> None:
    fused = [chunk(9, 4.0, text=1, step=2, decode=1), chunk(12, 3.0, fused=2, decode=0.5)]
    separate = [chunk(9, 4.0, text=1, step=2, decode=1), chunk(12, 4.0, commit=1, step=2, decode=0.5)]
    both = {"fused": fused, "separate": separate}
    found = {rate["name"]: rate["fps"] for rate in rates(both, tiny=True)}
    assert found["steady"] == pytest.approx(12 / 3)
    assert found["clip"] == pytest.approx(21 / 7)
    assert found["no decoding"] == pytest.approx(21 / 5)
    assert found["no decoding, fused"] == pytest.approx(21 / 4)
    assert found["no commits"] == pytest.approx(21 / 4)
    assert found["tiny decoder"] == pytest.approx(12 / 3.5)
    assert found["tiny decoder, no commits"] == pytest.approx(12 / 2.5)
    assert not [rate for rate in rates(both, tiny=False) if "decoder" in rate["name"]]


def test_quantiles_are_torchs() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    for part in (0.0, 0.5, 0.95, 1.0):
        assert quantile(values, part) == pytest.approx(torch.quantile(torch.tensor(values), part).item())
    assert quantile([2.0], 0.95) == 2.0


def test_the_floor_is_the_best_of_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATRICES", {"cpu": (8, 256)})
    floor = matmul_floor(torch.float32)
    assert floor.side == 256 and floor.rate > 1e8  # products of 8 are all overhead
    assert matmul_floor(torch.bfloat16).rate > 0


def test_larger_products_than_one_that_is_slow_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MATRICES", {"cpu": (8, 16, 32)})
    now, sides, mm = [0.0], [], torch.mm

    def slow(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        now[0] += len(a) ** 3 / 4096  # a second for 16, eight for 32
        sides.append(len(a))
        return mm(a, b)

    monkeypatch.setattr(torch, "mm", slow)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    assert matmul_floor(torch.float32) == Floor(2 * 4096, 16)
    assert set(sides) == {8, 16} and sides.count(16) == 2


def test_the_peak_is_above_what_was_held() -> None:
    with peak_memory() as found:
        held = torch.ones(2**25)  # 128 MiB
        del held
    (memory,) = found
    assert memory.peak - memory.before > 2**26
    with peak_memory() as again:
        pass
    if memory.by == "peak resident memory of the process":
        assert again[0].peak < memory.peak
