"""Texts along a clip: one prompt for all of it, or a script, in which prompts take turns.

A frame reads the prompt that holds at its position, in cross-attention alone; nothing else of a network knows of
prompts. So a cached rollout under a script and one masked call on all of its frames are the same, as they are under one
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.cache import KeysValues
from nearstep.protocols import Caption, TextEncoder
from nearstep.ranges import grows


class Turn(NamedTuple):
    """Frames ``first .. end - 1`` of a call, which read the same prompt."""

    first: int
    end: int
    prompt: int


@dataclass(frozen=True)
class Script:
    """Prompts that take turns along a batch of clips."""

    features: Float[Tensor, "B P L D"]
    """The prompts of each clip, in order."""
    starts: tuple[int, ...]
    """Latent frames from which the second prompt holds, the third and so on, growing; the same for all clips."""

    def __post_init__(self) -> None:
        prompts = self.features.shape[1]
        if prompts != len(self.starts) + 1 or not grows(self.starts):
            raise NearstepError(
                f"a script of {prompts} prompts changes at frames {self.starts}; give {prompts - 1} growing numbers "
                "above 0"
            )

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.features)


Text = Tensor | Script
"""[B, L, D], a prompt for each clip; or a script."""


@dataclass(frozen=True)
class TextKeys:
    """A text as every block's cross-attention keys and values: computed once, and read by every call.

    Made under grad they carry a graph: use them for one backward pass.
    """

    layers: tuple[KeysValues, ...]
    """Of each block [B P, L, heads, head_dim], the prompts of a clip side by side."""
    starts: tuple[int, ...] = ()
    """As those of a script."""

    @property
    def batch(self) -> int:
        """Number of clips."""
        return self.layers[0][0].shape[0] // (len(self.starts) + 1)

    def repeated(self, times: int) -> TextKeys:
        """The same for ``times`` clips in place of each, one after the other."""
        if times == 1:
            return self
        prompts = len(self.starts) + 1
        many = tuple(
            tuple(part.unflatten(0, (-1, prompts)).repeat_interleave(times, dim=0).flatten(0, 1) for part in layer)
            for layer in self.layers
        )
        return TextKeys(cast(tuple[KeysValues, ...], many), self.starts)

    def turns(self, positions: Sequence[int]) -> tuple[Turn, ...]:
        """Who reads which prompt, for frames at these absolute positions; nothing where there is but one."""
        if not self.starts:
            return ()
        prompts = [sum(start <= position for start in self.starts) for position in positions]
        turns, first = [], 0
        for prompt, frames in groupby(prompts):
            end = first + len(list(frames))
            turns.append(Turn(first, end, prompt))
            first = end
        return tuple(turns)


def without(turns: Sequence[Turn], count: int) -> tuple[Turn, ...]:
    """The turns of a call's frames but its first ``count``."""
    moved = (Turn(max(turn.first - count, 0), turn.end - count, turn.prompt) for turn in turns)
    return tuple(turn for turn in moved if turn.end > 0)


def turn_of(keys: KeysValues, turn: Turn, batch: int) -> KeysValues:
    """The keys and values that a turn's frames read, each [B, L, heads, head_dim]."""
    key, value = (part.unflatten(0, (batch, -1))[:, turn.prompt] for part in keys)
    return key, value


def encoded(encode: TextEncoder, captions: Sequence[Caption], starts: Sequence[int], frames: int) -> Text:
    """Captions as a network reads them.

    Args:
        encode: the text encoder.
        captions: one for each clip; or for each its captions in turn.
        starts: latent frames from which the second ones hold, the third and so on.
        frames: latent frames of the clips; captions that begin beyond them are left out.
    """
    held = tuple(start for start in starts if start < frames)
    turns = [(caption,) if isinstance(caption, str) else caption[: len(held) + 1] for caption in captions]
    features = encode([text for texts in turns for text in texts])
    return Script(features.unflatten(0, (len(captions), -1)), held) if held else features


def with_negative(text: Text, encode: TextEncoder, negative: str) -> Text:
    """Both halves of guidance: the text of B clips, and ``negative`` in all of its places, 2B in all."""
    other = encode([negative] * len(text))
    if isinstance(text, Tensor):
        return torch.cat([text, other])
    return Script(torch.cat([text.features, other[:, None].expand_as(text.features)]), text.starts)
