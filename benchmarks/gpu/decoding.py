"""Pixels: each decoder by dtype and layout, beside the making of the next chunk, and the time to the first frame.

A decoder is timed on a chunk in the middle of a clip. Streams run as users run them (stream/session.py): with
``prefetch=True`` a chunk is decoded in a CUDA stream of its own while the next is made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.sizes import SIZES, Size, codec, pipeline, prompt, text_encoder, tiny_decoder
from benchmarks.gpu.task import NARROW, Task, relative
from nearstep.cost.clock import peak_memory, synchronise
from nearstep.cost.flops import decode_flops
from nearstep.precision import tf32
from nearstep.stream.pipeline import CausalVideoPipeline

CHUNKS = 7
"""Of a stream; the first two are not counted, as with decoding ahead the second waits for the first."""
BFLOAT16 = 0.1
"""Relative error that bfloat16 may make of a decoding, and float32 in TF32 as well."""


@torch.no_grad()
def run(task: Task) -> None:
    """Decoders, then streams by both, then the first frame, then the text encoder."""
    size = SIZES[task.size]
    rate = task.floor().rate
    _decoders(task, size, rate)
    pipe = pipeline(size, task.device, NARROW)
    tiny = tiny_decoder(size, task.device, NARROW)
    words = prompt(size.prompt)
    for plan in ("1", "4,1x"):
        for name, decoder in (("tiny decoder", tiny), ("codec", None)):
            pipe.tiny_decoder = decoder
            with task.record.trying(f"first frame, plan {plan}, {name}"):
                _first(task, pipe, words, plan, name)
    for name, decoder in (("tiny decoder", tiny), ("codec", None)):
        pipe.tiny_decoder = decoder
        for prefetch in (False, True):
            what = f"stream, plan 1, {name}, {'decoding beside' if prefetch else 'one after the other'}"
            if prefetch and task.needs_cuda(what):
                continue
            with task.record.trying(what):
                _stream(task, pipe, words, size, what, prefetch=prefetch)
    if "text" not in task.skip and task.enough(15 if task.cuda else 0, "text encoder"):
        with task.record.trying("text encoder"):
            _text(task, pipe, words, size)


def _decoders(task: Task, size: Size, rate: float) -> None:
    draw = torch.Generator(task.device).manual_seed(6)
    latents = torch.randn(1, size.chunk, 16, *size.grid, generator=draw, device=task.device)
    made: dict[str, Callable[[], Any]] = {
        "codec": lambda: codec(size, task.device, torch.float32),
        "tiny decoder": lambda: tiny_decoder(size, task.device, torch.float32),
    }
    for name, make in made.items():
        decoder = make()
        flops = decode_flops(decoder, (size.chunk,) * 2, channels=16, height=size.grid[0], width=size.grid[1])[1]
        truth = _decoded(decoder, latents)
        kinds: list[tuple[str, Callable[[], Any]]] = [
            ("bfloat16", lambda decoder=decoder: decoder.to(NARROW)),
            ("bfloat16, channels last", lambda decoder=decoder: channels_last(decoder)),
            ("float32", lambda decoder=decoder, make=make: make()),
        ]
        for kind, change in kinds:
            with task.record.trying(f"{name}, {kind}"):
                _decoder(task, f"{name}, {kind}", change(), latents, truth, flops, rate)
        if not task.needs_cuda(f"{name}, TF32"):
            with task.record.trying(f"{name}, TF32"), tf32():
                _decoder(task, f"{name}, TF32", make(), latents, truth, flops, rate)


def _decoder(task: Task, name: str, decoder: Any, latents: Tensor, truth: Tensor, flops: int, rate: float) -> None:
    error = relative(_decoded(decoder, latents), truth)
    stream = decoder.stream()
    stream.decode(latents)
    with peak_memory(task.device) as memory:
        seconds = task.seconds(lambda: stream.copy().decode(latents), budget=1.0)
    task.record(
        name, seconds=seconds, flops=flops, share_of_floor=flops / rate / seconds,
        peak_bytes=memory[0].peak - memory[0].before, error=error, allowed=BFLOAT16, passed=error <= BFLOAT16,
    )  # fmt: skip


def _decoded(decoder: Any, latents: Tensor) -> Tensor:
    # Unclamped, as random weights leave the picture's range.
    return decoder.stream().decode(latents, clamp=False).float()


def channels_last(module: nn.Module) -> nn.Module:
    """Kernels in the layout that tensor cores read, by their number of dimensions; what flows through follows them."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
    return module


def _first(task: Task, pipe: CausalVideoPipeline, words: str, plan: str, name: str) -> None:
    """From the prompt to the first chunk's pixels, its text by the small encoder; the second time counts."""
    for _ in range(2):
        synchronise(task.device)
        began = time.perf_counter()
        first = next(iter(pipe.stream(words, plan=plan, seed=0)))
        synchronise(task.device)
        spent = time.perf_counter() - began
    task.record(f"first frame, plan {plan}, {name}", seconds=spent, frames=first.video.shape[1])


def _stream(task: Task, pipe: CausalVideoPipeline, words: str, size: Size, name: str, *, prefetch: bool) -> None:
    """Seconds of a chunk in the middle of a stream."""
    taken, frames = [], 0
    with pipe.open(words, plan="1", seed=0, window=size.windows[0], prefetch=prefetch) as session:
        for _ in range(CHUNKS):
            began = time.perf_counter()
            frames = next(session).video.shape[1]
            if not prefetch:  # the next chunk is being made, and these pixels are there
                synchronise(task.device)
            taken.append(time.perf_counter() - began)
    middle = statistics.median(taken[2:])
    task.record(name, seconds=middle, fps=frames / middle, taken=taken, window=size.windows[0])


def _text(task: Task, pipe: CausalVideoPipeline, words: str, size: Size) -> None:
    """A prompt through an encoder of UMT5-xxl's size, which "first frame" leaves out."""
    pipe.register_modules(text_encoder=text_encoder(size, task.device, NARROW, whole=True))
    encoder = pipe.prompt_encoder
    task.record("text encoder", seconds=task.seconds(lambda: encoder([words])))
