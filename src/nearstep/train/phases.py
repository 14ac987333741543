"""Phases of a run: small, many and short before large, few and long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearstep.errors import NearstepError
from nearstep.ranges import check_count
from nearstep.shapes import latent_frames


@dataclass(frozen=True)
class Phase:
    """A part of a run with batches of one shape."""

    steps: int
    frames: int
    """Pixel frames of a clip, 4n+1."""
    clips: int
    """Clips a step."""
    side: int | None = None
    """Height and width in pixels of a window near what there is to see (data/crops.py); None: whole frames."""
    draws: int = 1
    """Times, noises and windows that a step draws of each clip; its caption is read once for all of them."""

    def __post_init__(self) -> None:
        check_count("steps of a phase", self.steps)
        latent_frames(self.frames)
        check_count("clips of a phase", self.clips)
        check_count("side of a phase", self.side)
        check_count("draws of a phase", self.draws)


def check_phases(phases: Sequence[Phase], steps: int) -> None:
    """Refuse phases that do not make up a run of ``steps``.

    Raises:
        NearstepError: naming both lengths.
    """
    if (total := sum(phase.steps for phase in phases)) != steps:
        raise NearstepError(f"the phases have {total} steps and the run {steps}; make them equal")


def phase_at(phases: Sequence[Phase], index: int) -> tuple[Phase, int]:
    """The phase of step ``index``, and how many clips the steps before it have taken."""
    taken = 0
    for phase in phases:
        if index < phase.steps:
            return phase, taken + index * phase.clips
        index -= phase.steps
        taken += phase.steps * phase.clips
    raise IndexError(f"step {index} lies beyond the last phase")
