"""What an objective of a causal run is: a loss, and what the rest of the code has to know about it.

The loss works with a ``CausalUpdate``: networks in their places, the text encoder and the run's numbers. What a stage,
a preview, an export and the memory planner ask of an objective stands beside the loss, so that nobody else decides by
its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

from torch import Tensor

from nearstep.flow.times import of_frames
from nearstep.nets.masks import Visibility, teacher_forcing
from nearstep.nets.script import Text, encoded, with_negative
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import Caption, Denoiser, TextEncoder
from nearstep.reach import Reach


class Calls(NamedTuple):
    """Network calls of a loss on one clip, from which the planner makes operations (cost/update_flops.py)."""

    part: str
    """What the planner calls them."""
    visibility: Visibility
    """Who sees whom in the sequence of one call, which is as long as this says."""
    times: int = 1
    """How many; a guided call counts twice."""
    learns: bool = False
    """Whether a backward pass follows."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One way to make a causal network."""

    loss: Callable[[CausalUpdate, Tensor, Tensor, Sequence[Caption], Tensor], Tensor]
    """(update, x0, eps, captions, u) -> losses [B]; see ``CausalUpdate.losses``."""
    calls: Callable[[Sequence[int], Reach, int], Sequence[Calls]]
    """(frames of each chunk, reach, ode_steps) -> what the loss calls."""
    follows: bool
    """Whether a frozen copy of the network it starts from is followed; else it follows clips."""
    keeps: bool = False
    """Whether what is followed goes into the exported model, as ``causal/``."""
    drops_captions: bool = False
    """Whether captions are dropped now and then, for guidance to have an unconditional side."""
    preview_plan: str = "4"
    """The plan of pictures while it trains."""
    preview_guided: bool = False
    """Whether those are made with guidance."""


@dataclass(frozen=True, kw_only=True)
class CausalUpdate:
    """What the updates of one causal run are made with."""

    objective: Objective
    network: VideoTransformer
    """The network that trains."""
    average: VideoTransformer
    """Its exponential moving average."""
    many_step: VideoTransformer
    """The network that is followed, frozen; where clips are followed, the one that trains and is to become it."""
    text: TextEncoder
    lengths: tuple[int, ...]
    """Latent frames of each chunk."""
    starts: tuple[int, ...]
    """Latent frames from which the second caption of a clip holds, the third and so on."""
    shift: float
    guidance: float
    """w of the network that is followed."""
    negative: str
    """The prompt that guidance leads away from."""
    ode_steps: int
    """Steps of the grid on which it is followed."""

    def losses(self, x0: Tensor, eps: Tensor, captions: Sequence[Caption], u: Tensor) -> Tensor:
        """The objective's losses [B], with a graph to the network.

        Args:
            x0: [B, F, C, H, W] clean latents.
            eps: noise like ``x0``.
            captions: one for each clip.
            u: [B, chunks] uniform numbers in [0, 1], which times are made of.
        """
        return self.objective.loss(self, x0, eps, captions, u)

    @cached_property
    def visibility(self) -> Visibility:
        """Teacher forcing: a sequence [clean | noised], in which each chunk sees the clean ones before it."""
        return teacher_forcing(self.lengths, self.network.reach)

    def per_frame(self, per_chunk: Tensor) -> Tensor:
        """[B, chunks] as [B, F]: a chunk's frames share its number."""
        return of_frames(per_chunk, self.lengths)

    def encoded(self, captions: Sequence[Caption]) -> Text:
        """The captions as the networks read them."""
        return encoded(self.text, captions, self.starts, sum(self.lengths))

    def both(self, text: Text) -> Text:
        """Prompts [B, L, D] with what guidance leads away from: [2B, L, D]."""
        return with_negative(text, self.text, self.negative)


def denoiser(network: VideoTransformer, text: Text, visibility: Visibility) -> Denoiser:
    """A network on a batch of prompts under a fixed visibility."""
    return partial(network, text=text, visibility=visibility)


def cell_of(u: Tensor, cells: int) -> Tensor:
    """Which of ``cells`` equal parts of [0, 1] each number lies in."""
    return (u * cells).long().clamp(max=cells - 1)
