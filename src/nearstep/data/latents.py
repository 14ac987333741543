"""Clips as latents, encoded ahead and kept on disk: an encoder in the training loop would cost more than the network.

A folder holds shards ``00000.safetensors`` with ``latents`` [n, F, C, H, W] in float16, and ``index.json`` with what
they were made from. Captions are not stored: a scene is a function of ``(seed, index)``, and each epoch words it anew.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nearstep import rng
from nearstep.data.captions import caption
from nearstep.data.playground import Scene, render, sample_scenes
from nearstep.errors import NearstepError
from nearstep.files import replacing
from nearstep.protocols import Codec

SHARD = 512
_ENCODED_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Which clips, and where their latents lie."""

    folder: Path
    clips: int
    """How many; a folder that holds fewer is extended."""
    seed: int = 0


class LatentClips:
    """Latents and captions of the playground's clips, in an order that is a function of how many were seen before."""

    def __init__(self, config: LatentsConfig, latents: Tensor) -> None:
        self.config, self.latents = config, latents
        self.scenes: list[Scene] = sample_scenes(config.seed, range(config.clips))

    def batch(self, first: int, size: int) -> tuple[Tensor, list[str]]:
        """Latents [size, F, C, H, W] in float32 and captions of the clips that come after the first ``first``."""
        places = range(first, first + size)
        epochs = [place // self.config.clips for place in places]
        orders = {epoch: self._order(epoch) for epoch in set(epochs)}
        rows = [int(orders[epoch][place % self.config.clips]) for place, epoch in zip(places, epochs, strict=True)]
        captions = [
            caption(self.scenes[row], seed=epoch, index=row, complete=False)
            for row, epoch in zip(rows, epochs, strict=True)
        ]
        return self.latents[rows].float(), captions

    def _order(self, epoch: int) -> Tensor:
        return torch.randperm(self.config.clips, generator=rng.generator("epoch", self.config.seed, epoch))


def load_latents(config: LatentsConfig, codec: Codec, source: str) -> LatentClips:
    """The latents of ``config``, encoding what the folder lacks (a killed run goes on after its last whole shard).

    Args:
        config: which clips.
        codec: encodes them.
        source: names the codec's weights; a folder made by another codec is refused.

    Raises:
        NearstepError: if the folder belongs to another codec or seed.
    """
    from tqdm import tqdm

    _claim(config, source)
    shards = range(-(-config.clips // SHARD))
    parts = []
    for shard in tqdm(shards, desc="latents", unit="shard", disable=not sys.stderr.isatty()):
        path = config.folder / f"{shard:05d}.safetensors"
        if not path.exists():
            latents = _encode(config.seed, range(shard * SHARD, (shard + 1) * SHARD), codec)
            with replacing(path) as part:
                save_file({"latents": latents}, part)
        parts.append(load_file(path)["latents"])
    return LatentClips(config, torch.cat(parts)[: config.clips])


@torch.no_grad()
def _encode(seed: int, indices: range, codec: Codec) -> Tensor:
    parts = []
    for first in range(indices.start, indices.stop, _ENCODED_TOGETHER):
        video = render(sample_scenes(seed, range(first, first + _ENCODED_TOGETHER)))
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(codec.encode(video).half())
    return torch.cat(parts)


def _claim(config: LatentsConfig, source: str) -> None:
    config.folder.mkdir(parents=True, exist_ok=True)
    index, made_from = config.folder / "index.json", {"seed": config.seed, "codec": source}
    if index.exists() and (found := json.loads(index.read_text())) != made_from:
        raise NearstepError(f"{config.folder} holds latents of {found}, not of {made_from}; use another latents folder")
    index.write_text(json.dumps(made_from))
