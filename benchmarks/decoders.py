"""What decoding costs at Wan's size: FLOPs, time and memory of the Wan and of the tiny decoder.

    python benchmarks/decoders.py --flops
    python benchmarks/decoders.py --height 240 --width 416

Weights are random: time, memory and FLOPs do not depend on them. Each cell is measured in a process of its own, so that
the peak is that cell's; what the process held before it decoded is not counted. On a machine that does other work too,
CPU seconds (of all threads) tell more than seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from nearstep.nets.codec import VideoCodec
from nearstep.nets.tiny_decoder import TinyDecoder

CHUNK = 3  # latent frames


def main(
    *,
    height: int = 480,
    width: int = 832,
    flops: bool = False,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    tiles: tuple[int, ...] = (0, 128),
    frames: int = CHUNK,
    threads: int = 2,
) -> None:
    """Measure and print.

    Args:
        height: pixels.
        width: pixels.
        flops: count FLOPs of a later chunk instead (on the meta device, no weights).
        dtypes: of the Wan decoder.
        tiles: side of a tile in pixels, a quarter of it shared; 0 for none.
        frames: latent frames to decode, the clip's first among them.
        threads: of torch.
    """
    if flops:
        count(height, width)
        return
    print(f"{frames} latent frames at {height} x {width}, {threads} threads\n")
    titles = ("decoder", "dtype", "tile", "seconds", "CPU s", "peak GiB", "kept for the next chunk")
    print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
    for name in ("wan", "tiny"):
        for dtype in dtypes:
            for tile in tiles if name == "wan" else (0,):
                cell = (name, dtype, tile, height, width, frames, threads)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, cpu, peak, kept = pool.apply(timed, cell)
                row = f"{name} | {dtype} | {tile or 'none'} | {seconds:.1f} | {cpu:.1f} | {peak:.2f} | {kept:.2f}"
                print(f"| {row} |", flush=True)


def count(height: int, width: int) -> None:
    """FLOPs of one later chunk (2 for a multiply-add)."""
    made = {}
    for name in ("wan", "tiny"):
        with torch.device("meta"):
            stream = decoder(name, torch.float32).stream()
            latents = torch.zeros(1, CHUNK, 16, height // 8, width // 8)
            with torch.no_grad():
                stream.decode(latents)
                with FlopCounterMode(display=False) as counter:
                    video = stream.decode(latents)
        made[name] = counter.get_total_flops()
        print(f"{name}: {made[name] / 1e12:.2f} TFLOP for {video.shape[1]} frames of {height} x {width}")
    print(f"Wan / tiny: {made['wan'] / made['tiny']:.1f}")


def decoder(name: str, dtype: torch.dtype) -> Any:
    """An untrained decoder of Wan 2.1's size."""
    made = VideoCodec(AutoencoderKLWan()) if name == "wan" else TinyDecoder()
    return made.to(dtype).eval().requires_grad_(False)


@torch.no_grad()
def timed(
    name: str, dtype: str, tile: int, height: int, width: int, frames: int, threads: int
) -> tuple[float, float, float, float]:
    """Seconds, CPU seconds, and GiB above what was held before: at the peak, and when done."""
    torch.set_num_threads(threads)
    codec = decoder(name, getattr(torch, dtype))
    if tile:
        codec.vae.enable_tiling(tile, tile, tile - tile // 4, tile - tile // 4)
    stream, latents = codec.stream(), torch.randn(1, frames, 16, height // 8, width // 8)
    before, began, cpu = resident(), time.perf_counter(), time.process_time()
    video = stream.decode(latents)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del video
    return seconds, cpu, (peak - before) / 2**30, (resident() - before) / 2**30


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    tyro.cli(main)
