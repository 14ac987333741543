"""An excerpt of a long sample as a clip of its own: what a teacher can judge that never saw clips so long.

A teacher knows clips of its training's length, whose first latent frame is a picture. Within a sample four pixel frames
make a latent one, so an excerpt begins with a picture made anew: the last pixel frame of its first latent, decoded from
the sample and encoded again, without a graph (as Self-Forcing's long rollouts do it). All later frames are the sample's
own, and through them gradients reach the rollout::

    sample   |p|....|....|....|....|....|....|....|....|      p: a picture, ....: four frames
    excerpt                 |p|....|....|....|....|           its last frame, then what follows
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep import rng
from nearstep.nets.codec import VideoCodec
from nearstep.nets.script import Script, Text


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Some of a sample's latent frames, one after another."""

    first: int
    frames: int

    @property
    def reached(self) -> range:
        """The sample's frames that a gradient at the excerpt reaches: not the one that gave it its picture."""
        return range(self.first + (self.first > 0), self.first + self.frames)

    def clip(self, x: Float[Tensor, "B F C H W"], codec: VideoCodec) -> Float[Tensor, "B frames C H W"]:
        """These frames of samples ``x``, the first of them a picture; a graph goes through all others."""
        if not self.first:
            return x[:, : self.frames]
        with torch.no_grad():
            stream = codec.stream()
            for latents in x[:, : self.first + 1].split(1, dim=1):  # one by one: only the last is of use
                pixels = stream.decode(latents)
            picture = codec.encode(pixels[:, -1:]).to(x)
        return torch.cat([picture, x[:, self.first + 1 : self.first + self.frames]], dim=1)

    def text(self, text: Text) -> Text:
        """What these frames read of a text."""
        if not isinstance(text, Script):
            return text
        held = sum(start <= self.first for start in text.starts)
        starts = tuple(start - self.first for start in text.starts if self.first < start < self.first + self.frames)
        features = text.features[:, held : held + len(starts) + 1]
        return Script(features, starts) if starts else features[:, 0]


def seen_frames(frames: int, most: int | None) -> int:
    """Latent frames of a sample of ``frames`` that are seen at once: all, or ``most``."""
    return frames if most is None else min(frames, most)


def draw_excerpt(frames: int, most: int | None, *names: int) -> Excerpt:
    """The excerpt of that name: what is seen of a sample of ``frames`` frames, from anywhere on."""
    seen = seen_frames(frames, most)
    return Excerpt(first=Random(rng.key("excerpt", *names)).randrange(frames - seen + 1), frames=seen)
