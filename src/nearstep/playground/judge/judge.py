"""The judge: does a clip show what its caption says, and how well does it look?

Analytic, because the world is drawn by formula: find the things (find.py), name them, their motions and how they lie to
each other (names.py), and compare with the caption (agreement.py). Quality is in quality.py. As VBench forms it, total
= (4 quality + semantic) / 5 with semantic = agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.playground.judge.agreement import Agreement, compare
from nearstep.playground.judge.find import look
from nearstep.playground.judge.names import Found, Tracks, name, track
from nearstep.playground.judge.quality import FIGURES, measure_quality, pace
from nearstep.playground.parsing import Stated, parse
from nearstep.playground.paths import RATE_SPREAD, RATES
from nearstep.playground.world import WorldConfig
from nearstep.shapes import chunk_frames

LEAST_FRAMES = 17
"""Shortest clip to judge, in pixel frames: long enough to see a bounce turn."""
_DYNAMIC = 0.25 / 64
"""Way a frame from which a clip counts as moving, as a part of the side: half of the slowest slide."""
_SPAN = 3
"""Latent frames that are looked at together: what a clip shows is compared from one such span to the next."""
_BLOCK = 8
"""Clips measured at once: small enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One clip against its caption."""

    found: Found
    stated: Stated
    comparison: Agreement
    figures: dict[str, float]
    """Name in quality.FIGURES -> [0, 1]."""
    course: list[float]
    """(sharpness + fidelity) / 2 in each span."""
    movement: float
    """Median way from frame to frame of the fastest thing found, as a part of the frame's side."""

    @property
    def agreement(self) -> dict[str, float]:
        """Attribute that the caption states -> the part of its statements that the clip shows."""
        return self.comparison.shares

    @property
    def semantic(self) -> float:
        """Mean agreement over the stated attributes."""
        return self.comparison.semantic

    @property
    def correct(self) -> bool:
        """Everything stated is shown."""
        return self.comparison.correct

    @property
    def quality(self) -> float:
        """Mean of the figures."""
        return sum(self.figures.values()) / len(self.figures)

    @property
    def total(self) -> float:
        """(4 quality + semantic) / 5."""
        return (4 * self.quality + self.semantic) / 5

    @property
    def dynamic(self) -> bool:
        """Whether anything moves; its mean over clips is their dynamic degree."""
        return self.movement >= _DYNAMIC


@torch.no_grad()
def judge(video: Tensor, captions: Sequence[str], config: WorldConfig) -> list[Verdict]:
    """Measure clips [B, T, 3, H, W] in [0, 1] against their captions.

    Args:
        video: the clips.
        captions: one for each.
        config: the world that they are clips of.

    Raises:
        NearstepError: on clips of another size, too few frames, values that are not finite, or a caption too few.
    """
    _check(video, captions, config)
    stated = [parse(text, config.names) for text in captions]
    verdicts: list[Verdict] = []
    for first in range(0, len(video), _BLOCK):
        clips = video[first : first + _BLOCK].float().clamp(0.0, 1.0)
        verdicts += _judge(clips, stated[first : first + _BLOCK], config)
    return verdicts


def _check(video: Tensor, captions: Sequence[str], config: WorldConfig) -> None:
    size = config.size
    if video.dim() == 5 and video.shape[1] < LEAST_FRAMES:
        raise NearstepError(
            f"clips of {video.shape[1]} frames show no motion; the judge needs {LEAST_FRAMES} at least: generate more"
        )
    if video.dim() != 5 or video.shape[2:] != (3, size, size):
        raise NearstepError(
            f"the judge knows clips [B, T, 3, {size}, {size}] of at least {LEAST_FRAMES} frames, got "
            f"{list(video.shape)}; generate at the world's size"
        )
    if len(video) != len(captions):
        raise NearstepError(f"{len(video)} clips and {len(captions)} captions; give one caption for each clip")
    if not video.isfinite().all():
        raise NearstepError("the video holds values that are not finite; the model that made it is broken")


def _judge(video: Tensor, stated: Sequence[Stated], config: WorldConfig) -> list[Verdict]:
    sight = look(video, config)
    tracks = track(sight, config)
    found = name(video, sight, tracks, config)
    spans = chunk_frames(video.shape[1], _SPAN)
    residual = torch.stack([motion.residual for motion in tracks.motions], dim=1)
    worst = torch.where(tracks.there, residual, 0.0).amax(dim=1)
    figures, course = measure_quality(video, sight, tracks.there, worst, spans)
    ways = torch.stack([fit.centre.diff(dim=1).norm(dim=-1).median(dim=1).values for fit in sight.things], dim=1)
    movement = torch.where(tracks.there, ways, 0.0).amax(dim=1)
    verdicts = []
    for row, said in enumerate(stated):
        agreement = compare(said, found[row])
        seen = float(bool(found[row].things))
        values = {key: float(figures[key][row]) * seen for key in figures}
        values["pace"] = _pace(said, agreement, tracks, row) * seen
        verdicts.append(
            Verdict(
                found=found[row],
                stated=said,
                comparison=agreement,
                figures={key: values[key] for key in FIGURES},
                course=(course[row] * seen).tolist(),
                movement=float(movement[row]),
            )
        )
    return verdicts


def _pace(stated: Stated, agreement: Agreement, tracks: Tracks, row: int) -> float:
    # Mean over the stated things; one that is missing has none.
    paces, order = [], tracks.found(row)
    for subject, index in zip(stated.subjects, agreement.subjects, strict=True):
        if index is None:
            paces.append(0.0)
            continue
        motion = tracks.motions[order[index]]
        kind, speed = motion.kind[row], subject.speed or motion.speed[row]
        rests = "rest" in (kind, subject.motion)
        paces.append(
            float(kind == (subject.motion or kind)) if rests else _moving(kind, speed, float(motion.rate[row]))
        )
    return sum(paces) / len(paces)


def _moving(kind: str | None, speed: str | None, rate: float) -> float:
    return pace(rate, RATES[kind][speed], RATE_SPREAD) if kind and speed else 0.0
