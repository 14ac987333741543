"""Plans without an end: the steps of the next chunk, decided when its turn comes.

``"4,1x"`` as in plan.py; ``"adaptive"`` stops a chunk once its steps agree; ``"fps:16"`` holds a frame rate on the
machine it runs on. A plan counts from the start of a stream and again from every change of prompt or plan, so that
first-frame enhancement comes by itself where a scene begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.nn.functional import cosine_similarity

from nearstep.errors import NearstepError
from nearstep.flow.plan import Schedule, parse_steps, prefix, respaced

ADAPTIVE, PACED = "adaptive", "fps"
DEFAULT_AGREEMENT = 0.945
"""Cosine of consecutive predictions at which one step is as good as the next, read off the paper's figure."""

Enough = Callable[[Tensor, Tensor], bool]
"""Whether a chunk is done, from the x0 [B, F, C, H, W] of its last two steps."""

_SYNTAX = f'"4", "4,1x", "{ADAPTIVE}", "{ADAPTIVE}:.95" or "{PACED}:16"'


@runtime_checkable
class LivePlan(Protocol):
    """Decides as the stream goes."""

    def next(self, since: int) -> tuple[Schedule, Enough | None]:
        """Schedule of the chunk number ``since`` after a start or change, and what may stop it early."""
        ...

    def made(self, steps: int, calls: float, rest: float) -> None:
        """What the last chunk took: steps, seconds in the network, and seconds in all else."""
        ...


@dataclass(frozen=True, kw_only=True)
class Repeating:
    """Steps as written; the last entry repeats."""

    steps: tuple[int, ...]
    shift: float
    grid: int

    def next(self, since: int) -> tuple[Schedule, Enough | None]:
        """The respaced list of this many steps."""
        return respaced(self.steps[min(since, len(self.steps) - 1)], shift=self.shift, grid=self.grid), None

    def made(self, steps: int, calls: float, rest: float) -> None:
        """Nothing to learn from it."""


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """The grid's steps until two in a row agree.

    A chunk that stops after n steps has run the first n times of the grid, as in training (method.md section 2).
    """

    thresholds: tuple[float, ...]
    """Cosine that is enough, by chunk since the start or change; the last repeats."""
    shift: float
    grid: int

    def next(self, since: int) -> tuple[Schedule, Enough | None]:
        """The whole grid, and the threshold of this chunk."""
        threshold = self.thresholds[min(since, len(self.thresholds) - 1)]
        grid = prefix(self.grid, shift=self.shift, grid=self.grid)
        return grid, lambda before, x0: agreement(before, x0) >= threshold

    def made(self, steps: int, calls: float, rest: float) -> None:
        """Nothing to learn from it."""


@dataclass(kw_only=True)
class Paced:
    """As many steps as leave the frame rate whole, the first chunk all of them."""

    fps: float
    frames: int
    """Pixel frames of a chunk."""
    shift: float
    grid: int
    _call: float | None = field(default=None, init=False)
    _rest: float = field(default=0.0, init=False)

    def next(self, since: int) -> tuple[Schedule, Enough | None]:
        """From measured times; one step until there are any, but for the first chunk."""
        steps = self.grid if since == 0 else 1
        if since and self._call is not None:
            spare = self.frames / self.fps - self._rest
            steps = min(self.grid, max(1, int(spare / self._call) - 1))  # a commit costs a call
        return respaced(steps, shift=self.shift, grid=self.grid), None

    def made(self, steps: int, calls: float, rest: float) -> None:
        """Remember, half old and half new: a stutter passes, a slower machine stays."""
        call = calls / (steps + 1)
        self._rest = rest if self._call is None else (self._rest + rest) / 2
        self._call = call if self._call is None else (self._call + call) / 2


def agreement(before: Tensor, x0: Tensor) -> float:
    """The least cosine, over the batch, of two predictions [B, ...]."""
    return float(cosine_similarity(before.flatten(1).float(), x0.flatten(1).float()).min())


def live_plan(text: str, *, shift: float, grid: int, frames: int, thresholds: Sequence[float] = ()) -> LivePlan:
    """What a plan string means for a stream.

    Args:
        text: a plan string that can go on for ever.
        shift: the model's shift k.
        grid: steps of the grid the model was distilled on.
        frames: pixel frames of a chunk.
        thresholds: the model's calibrated ones for ``"adaptive"``; see ``DEFAULT_AGREEMENT``.

    Raises:
        NearstepError: for a string that does not parse, ends, or asks for more steps than the student was trained on.
    """
    kind, _, value = text.strip().partition(":")
    if kind == ADAPTIVE:
        levels = (_number(text, value, 0.0, 1.0),) if value else tuple(thresholds) or (DEFAULT_AGREEMENT,)
        return Adaptive(thresholds=levels, shift=shift, grid=grid)
    if kind == PACED:
        return Paced(fps=_number(text, value, 0.0, float("inf")), frames=frames, shift=shift, grid=grid)
    if "," in text and not text.strip().endswith("x"):
        raise NearstepError(f"plan {text!r} ends, and a stream does not: end it with x to repeat the last entry")
    try:
        steps = parse_steps(text, text.count(",") + 1)
    except NearstepError as error:
        raise NearstepError(f"plan {text!r} is none that a stream can follow ({error}); use {_SYNTAX}") from error
    if max(steps) > grid:
        raise NearstepError(f"plan {text!r} asks for {max(steps)} steps and the student was trained for 1 to {grid}")
    return Repeating(steps=steps, shift=shift, grid=grid)


def _number(text: str, value: str, above: float, limit: float) -> float:
    number = float(value) if re.fullmatch(r"\d*\.?\d+", value) else None
    if number is None or not above < number <= limit:
        raise NearstepError(f"plan {text!r} does not parse; write {_SYNTAX}")
    return number
