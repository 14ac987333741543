"""What a clip costs: stages, frame rates as different systems count them, memory, and the distance to the floor.

The pipeline runs as it always does, its parts under a clock (cost/clock.py); what it makes is the same bit for bit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nearstep.cost.clock import Clock, Floor, Memory, Timed, matmul_floor, peak_memory
from nearstep.cost.flops import call_flops, decode_flops, text_encoder_flops, text_keys_flops
from nearstep.cost.rates import CALLS, CODEC, DECODE, FILE, TEXT, ChunkTime, rates, summary
from nearstep.nets.codec import VideoCodec
from nearstep.nets.text import text_length
from nearstep.nets.transformer import VideoTransformer
from nearstep.stream.output import write_video
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.request import Request
from nearstep.stream.results import ChunkVideo


@dataclass(frozen=True, kw_only=True)
class TimedClip:
    """One clip, and what each of its parts took."""

    chunks: tuple[ChunkTime, ...]
    file: float | None
    """Seconds that its mp4 took."""
    wall: float
    """From the prompt to the last pixel, or to the file where one is written."""


def play_timed(
    pipe: CausalVideoPipeline, request: Request, clock: Clock, *, fused: bool = True
) -> Iterator[tuple[ChunkVideo, ChunkTime]]:
    """The chunks of a request, and what each took; the first one's time includes the text's."""
    began = time.perf_counter()
    with clock.stage(TEXT):
        denoiser: Any = pipe.denoiser(request)
    denoiser = Timed(denoiser, clock, CALLS)
    stream: Any = Timed(pipe.latent_stream(), clock, {"decode": DECODE})
    for chunk in pipe.play(request, denoiser=denoiser, stream=stream, fused=fused):
        clock.wait()
        ended = time.perf_counter()
        yield chunk, ChunkTime(pixel_frames=chunk.video.shape[1], wall=ended - began, spans=tuple(clock.spans()))
        began = time.perf_counter()


def time_clip(
    pipe: CausalVideoPipeline,
    request: Request,
    clock: Clock,
    *,
    fused: bool = True,
    file: Path | None = None,
    beside: VideoCodec | None = None,
) -> tuple[TimedClip, Tensor]:
    """Make a clip under the clock.

    Args:
        pipe: the pipeline.
        request: what to make.
        clock: of the network's device.
        fused: as for ``pipe.play``.
        file: an mp4 to write of the first clip.
        beside: a second decoder to time on the same latents, when the clip is done.

    Returns:
        The times, and the clips [B, T, 3, H, W].
    """
    videos, latents, chunks = [], [], []
    for chunk, spent in play_timed(pipe, request, clock, fused=fused):
        videos.append(chunk.video)
        latents.append(chunk.latents)
        chunks.append(spent)
    video, encoding = torch.cat(videos, dim=1), None
    if file is not None:
        with clock.stage(FILE):
            write_video(file, video[0], fps=pipe.settings.fps)
        encoding = clock.spans()[0].seconds
    if beside is not None:
        chunks = list(_decoded_beside(beside, latents, chunks, clock))
    wall = sum(chunk.wall for chunk in chunks) + (encoding or 0.0)
    return TimedClip(chunks=tuple(chunks), file=encoding, wall=wall), video


@torch.no_grad()
def _decoded_beside(
    codec: VideoCodec, latents: Sequence[Tensor], chunks: Sequence[ChunkTime], clock: Clock
) -> Iterator[ChunkTime]:
    stream = Timed(codec.stream(), clock, {"decode": CODEC})
    for clean, chunk in zip(latents, chunks, strict=True):
        stream.decode(clean)
        yield ChunkTime(
            pixel_frames=chunk.pixel_frames, wall=chunk.wall, spans=chunk.spans, beside=tuple(clock.spans())
        )


def measure(
    pipe: CausalVideoPipeline,
    request: Request,
    *,
    repeats: int,
    floors: Mapping[torch.dtype, Floor] | None = None,
    file: bool = True,
) -> dict[str, Any]:
    """Everything about one request, as plain data.

    A first clip of each kind is made to warm up and not counted. Clips with fused commits, as the pipeline makes them,
    and with separate ones take turns, so that what else the machine does meets them alike. Figures of one clip are
    those of the clip with the middle wall time.

    Args:
        pipe: the pipeline.
        request: what to make.
        repeats: timed clips of each kind.
        floors: of the dtypes that network and decoder compute in (:func:`dtypes`); without them no share is given.
        file: write an mp4, too, and time that.
    """
    plan, began = request.clip.plan, time.perf_counter()
    kinds = {"fused": True, "separate": False} if plan.commits else {"fused": True}
    beside = pipe.codec if pipe.tiny_decoder is not None else None
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4" if file else None
        clips_of = partial(_time_kinds, pipe, request, kinds, file=path, beside=beside)
        clips_of()
        warm = time.perf_counter() - began
        rounds = [clips_of() for _ in range(repeats)]
    clips = {name: [each[name][0] for each in rounds] for name in kinds}
    middle = {name: sorted(some, key=lambda one: one.wall)[(len(some) - 1) // 2] for name, some in clips.items()}
    counted = {name: flops(pipe, request, fused=fused) for name, fused in kinds.items()}
    peak = max(memory for each in rounds for _, memory in each.values())
    return {
        "plan": str(plan),
        "steps": plan.steps,
        "commits": plan.commits,
        "guidance": request.guidance,
        "prompts": len(request.prompts),
        "chunks": len(plan.lengths),
        "pixel_frames": sum(chunk.pixel_frames for chunk in middle["fused"].chunks),
        "repeats": repeats,
        "warm_up_seconds": warm,
        **{
            name: summary(
                middle[name].chunks,
                [one.chunks for one in clips[name]],
                counted[name],
                _stage_floors(pipe, floors or {}),
                file=middle[name].file,
                wall=middle[name].wall,
            )
            for name in kinds
        },
        "fps": rates({name: one.chunks for name, one in middle.items()}, tiny=beside is not None),
        "memory": {"peak_bytes": peak.peak, "before_bytes": peak.before, "by": peak.by},
    }


def _time_kinds(
    pipe: CausalVideoPipeline,
    request: Request,
    kinds: Mapping[str, bool],
    *,
    file: Path | None,
    beside: VideoCodec | None,
) -> dict[str, tuple[TimedClip, Memory]]:
    """A clip of each kind, name -> fused, and the memory that it took."""
    clips, clock = {}, Clock(pipe.network_device)
    for name, fused in kinds.items():
        with peak_memory(pipe.network_device) as memory:
            clip, _ = time_clip(pipe, request, clock, fused=fused, file=file, beside=beside)
        clips[name] = clip, memory[0]
    clock.wait()
    return clips


def dtypes(pipe: CausalVideoPipeline) -> dict[str, torch.dtype]:
    """What each stage's products are made in."""
    network = cast(VideoTransformer, pipe.transformer).dtype
    decoder: Any = pipe.decoder
    text = network if pipe.text_encoder is None else cast(Any, pipe.text_encoder).dtype
    return {
        TEXT: text,
        **dict.fromkeys(CALLS.values(), network),
        DECODE: next(decoder.parameters()).dtype,
        CODEC: cast(Any, pipe.vae).dtype,
    }


def floors(pipe: CausalVideoPipeline) -> dict[torch.dtype, Floor]:
    """The floor of every dtype that the pipeline computes in, measured now."""
    device = pipe.network_device
    return {dtype: matmul_floor(dtype, device) for dtype in dict.fromkeys(dtypes(pipe).values())}


def _stage_floors(pipe: CausalVideoPipeline, floors: Mapping[torch.dtype, Floor]) -> dict[str, float]:
    return {stage: floors[dtype].rate for stage, dtype in dtypes(pipe).items() if dtype in floors}


def flops(pipe: CausalVideoPipeline, request: Request, *, fused: bool) -> list[dict[str, int]]:
    """FLOPs of each chunk's stages, in closed form but for the decoder (cost/flops.py)."""
    network, clip, count = cast(VideoTransformer, pipe.transformer), request.clip, len(request.prompts)
    config, shape, batch = network.config, clip.shape, count * (2 if request.guided else 1)
    size = {"height": shape.height, "width": shape.width}
    common = {**size, "text": text_length(pipe.tokenizer), "batch": batch,
              "reach": network.reach}  # fmt: skip
    chunks: list[dict[str, int]] = []
    start = before = 0
    for length, schedule in zip(clip.plan.lengths, clip.plan.schedules, strict=True):
        step = call_flops(config, lengths=(length,), start=start, **common).total
        stages = {CALLS["__call__"]: len(schedule) * step}
        if before and fused:
            both = call_flops(config, lengths=(before, length), start=start - before, commit=before, **common)
            stages = {CALLS["__call__"]: (len(schedule) - 1) * step, CALLS["commit_then"]: both.total}
        elif before:
            only = call_flops(config, lengths=(before,), start=start - before, commit=before, **common)
            stages[CALLS["commit"]] = only.total
        chunks.append(stages)
        start, before = start + length, length
    chunks[0][TEXT] = text_flops(pipe, request)
    decoders = {DECODE: pipe.decoder} | ({CODEC: pipe.codec} if pipe.tiny_decoder is not None else {})
    for stage, decoder in decoders.items():
        for stages, cost in zip(
            chunks, decode_flops(decoder, clip.plan.lengths, channels=shape.channels, **size), strict=True
        ):
            stages[stage] = count * cost
    return chunks


def text_flops(pipe: CausalVideoPipeline, request: Request) -> int:
    """FLOPs of the text: its encoder, where one is loaded, and every block's keys and values."""
    length, config = text_length(pipe.tokenizer), cast(VideoTransformer, pipe.transformer).config
    both = [request.prompts, request.negative] if request.guided else [request.prompts]
    keys = text_keys_flops(config, length, len(both) * len(request.prompts))
    if pipe.text_encoder is None:
        return keys
    encoder = cast(Any, pipe.text_encoder).config.to_dict()
    different = [tuple(dict.fromkeys(texts)) for texts in both]  # each text is encoded once
    longest = [int(request.tokens_of(texts).mask.sum(1).max()) for texts in different]
    counts = zip(longest, different, strict=True)
    return keys + sum(text_encoder_flops(encoder, most, len(texts)) for most, texts in counts)
