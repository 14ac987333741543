"""Clips as latents, encoded ahead and kept on disk: an encoder in the training loop would cost more than the network.

A folder of latents (data/shards.py) is either made by ``nearstep prepare``, with a caption for every clip, or made here
from a world (protocols.py). A world's captions are not stored: a clip is a function of ``(seed, index)``, and each
epoch words it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count as count_from_zero
from pathlib import Path

import torch
from torch import Tensor

from nearstep.data.ahead import Ahead
from nearstep.data.order import rows_after
from nearstep.data.shards import INDEX, PREPARED, Index, Shards, add_shard, check_same, read_index
from nearstep.errors import NearstepError
from nearstep.files import check_name, sweep
from nearstep.precision import narrowed
from nearstep.protocols import Caption, Codec, StoryWorld, World
from nearstep.ranges import check_count, grows
from nearstep.shapes import first_pixel_frame, latent_frames

SHARD = 512
_ENCODED_TOGETHER, _ENCODED_AHEAD = 16, 64
"""Clips that a codec sees at once: as many as a processor's cache likes, and as a GPU does, whose clips others draw."""
_EXAMPLES_SEED = 2


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Which clips, and where their latents lie."""

    folder: Path
    clips: int | None = None
    """How many; None is all of a prepared folder. A folder of a world's clips that holds fewer is extended."""
    seed: int = 0
    """Names the order, and the world's clips."""
    world: World | None = None
    """What makes the clips that the folder lacks; None: all were made by ``nearstep prepare``."""
    frames: int | None = None
    """Pixel frames of a clip that is made here, 4n + 1, by default as many as the world's clips have; clips of
    ``nearstep prepare`` are as long as they are."""
    changes: tuple[int, ...] = ()
    """Latent frames from which another scene of the same clip is shown, with a caption of its own."""

    def __post_init__(self) -> None:
        if self.frames is not None:
            latent_frames(self.frames)
        check_name(self.folder)
        check_count("clips", self.clips)
        check_count("seed", self.seed, least=-(2**63), most=2**63)
        if not grows(self.changes):
            raise NearstepError(f"changes={self.changes}; give growing latent frames above 0")
        if self.changes and not isinstance(self.world, StoryWorld):
            raise NearstepError(f"changes={self.changes} need a world whose clips can change; leave them out")


class LatentClips:
    """Latents and captions, in an order that is a function of how many were seen before.

    Args:
        latents: at least ``count`` clips.
        count: how many are in use, the first ones.
        seed: names the order.
        captions: (row, epoch) -> caption.
        examples: how many -> prompts to look at while training.
        texts: the captions, where they are stored; a world words its own anew each epoch.
        starts: latent frames from which the second caption of a clip holds, the third and so on.
        seen: (rows, pixel frames) -> where there is most to see in the first frames of these clips, [B, 2] as (x, y) in
            pixels; None where that is not known.
    """

    def __init__(
        self,
        latents: Shards,
        count: int,
        *,
        seed: int,
        captions: Callable[[int, int], Caption],
        examples: Callable[[int], list[str]],
        texts: Sequence[str] = (),
        starts: tuple[int, ...] = (),
        seen: Callable[[Sequence[int], int], Tensor] | None = None,
    ) -> None:
        self.latents, self.count, self.seed, self.captions = latents, count, seed, captions
        self.examples, self.texts, self.starts, self.seen = examples, texts, starts, seen

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [F, C, H, W] of a clip."""
        return tuple(self.latents.shape[1:])

    def batch(self, first: int, size: int) -> tuple[Tensor, list[Caption]]:
        """Latents [size, F, C, H, W] in float32 and captions of the clips that come after the first ``first``."""
        rows = rows_after(first, size, count=self.count, seed=self.seed)
        latents = self.latents.rows([row for _, row in rows])
        return latents, [self.captions(row, epoch) for epoch, row in rows]

    def focus(self, first: int, size: int, frames: int) -> Tensor:
        """Where there is most to see in the first ``frames`` pixel frames of a batch's clips, [size, 2] in pixels.

        Raises:
            NearstepError: if nobody knows.
        """
        if self.seen is None:
            raise NearstepError("what is to be seen where is known of a world's clips alone; train on whole frames")
        return self.seen([row for _, row in rows_after(first, size, count=self.count, seed=self.seed)], frames)


def load_latents(config: LatentsConfig, codec: Codec, source: str, workers: int = 0) -> LatentClips:
    """The latents of ``config``; what a folder of a world's clips lacks is made.

    Args:
        config: which clips.
        codec: encodes the world's clips.
        source: names the codec's weights; a folder made by another codec is refused.
        workers: processes that draw clips ahead of the codec.

    Raises:
        NearstepError: if the folder is damaged, belongs to another codec, world or seed, or holds too few clips.
    """
    index = read_index(config.folder)
    if index is None and (config.clips is None or config.world is None):
        raise NearstepError(f"{config.folder} has no {INDEX}; make it with nearstep prepare, or name another folder")
    if index is not None and index.kind in PREPARED:
        return _prepared(config, index, source)
    if config.world is None:
        kind = index.kind if index else None
        raise NearstepError(
            f"{config.folder} holds clips of the world {kind!r}, whose captions are not stored, and no world is given; "
            "set latents.world in the recipe, or name a folder made by nearstep prepare"
        )
    return _of_world(config, config.world, index, codec, source, workers)


def _prepared(config: LatentsConfig, index: Index, source: str) -> LatentClips:
    folder, held = config.folder, index.clips
    if index.codec != source:
        raise NearstepError(
            f"{folder} holds latents of codec {index.codec}, this model's is {source}; prepare them with this model"
        )
    if not held or held < (config.clips or 0):
        raise NearstepError(
            f"{folder} holds {held} clips, not {config.clips or 'any'}; latents.clips=None takes all it holds"
        )
    latents = Shards(folder, index)
    captions = [record["caption"] for record in latents.records()]
    return LatentClips(
        latents,
        config.clips or held,
        seed=config.seed,
        captions=lambda row, _: captions[row],
        examples=lambda count: captions[:count],
        texts=captions[: config.clips or held],
    )


def _of_world(
    config: LatentsConfig, world: World, index: Index | None, codec: Codec, source: str, workers: int
) -> LatentClips:
    count = config.clips or (index.clips if index else 0)

    def caption(row: int, epoch: int) -> Caption:
        if config.changes and isinstance(world, StoryWorld):
            starts = [first_pixel_frame(frame) for frame in config.changes]
            return world.story_prompts(config.seed, [row], starts, wording=epoch, complete=False)[0]
        return world.prompts(config.seed, [row], wording=epoch, complete=False)[0]

    def examples(number: int) -> list[str]:
        return world.prompts(_EXAMPLES_SEED, range(number))

    index = _extended(config, world, index, count, codec, source, workers)
    return LatentClips(
        Shards(config.folder, index),
        count,
        seed=config.seed,
        captions=caption,
        examples=examples,
        starts=config.changes,
        seen=None if config.changes else lambda rows, frames: world.focus(config.seed, rows, frames=frames),
    )


def _extended(
    config: LatentsConfig, world: World, index: Index | None, count: int, codec: Codec, source: str, workers: int
) -> Index:
    """The index once the folder holds ``count`` clips (a killed run goes on after its last whole shard)."""
    from tqdm import tqdm

    channels, height, width = index.shape[1:] if index else _encoded(_render(config, world, range(1)), codec).shape[2:]
    shape = (latent_frames(config.frames or world.frames), channels, height, width)
    made_from = {"kind": world.name, "seed": config.seed}
    if config.changes:
        made_from["changes"] = [*config.changes]
    wanted = Index(codec=source, shape=shape, dtype="float16", fps=world.fps, made_from=made_from)
    if index:
        check_same(config.folder, index, wanted)
    index = index or wanted
    base, together = index.clips, min(SHARD, _ENCODED_AHEAD if workers else _ENCODED_TOGETHER)

    def drawn(number: int) -> Tensor:
        return _render(config, world, range(base + number * together, base + (number + 1) * together))

    coming, numbers = Ahead(drawn, workers), count_from_zero()
    with tqdm(desc="latents", unit="clip", total=count, initial=index.clips, disable=not sys.stderr.isatty()) as bar:
        while index.clips < count:
            sweep(config.folder)
            shard = [_encoded(coming(next(numbers)), codec) for _ in range(SHARD // together)]
            index = add_shard(config.folder, index, torch.cat(shard))
            bar.update(SHARD)
    return index


@torch.no_grad()
def _encoded(video: Tensor, codec: Codec) -> Tensor:
    with narrowed("cpu"):
        return codec.encode(video).half().cpu()


def _render(config: LatentsConfig, world: World, indices: range) -> Tensor:
    if config.changes and isinstance(world, StoryWorld):
        starts = [first_pixel_frame(frame) for frame in config.changes]
        return world.stories(config.seed, indices, starts, frames=config.frames)
    return world.clips(config.seed, indices, frames=config.frames)
