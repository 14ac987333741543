"""The judge: does a clip show what its caption says, and how well does it look?

Analytic, because the world is drawn by formula: find the object (segment.py), fit the renderer's own shapes to it
(shapes.py) and the world's own paths to its track (motion.py), and compare the names with those the caption states.
Quality is in quality.py. As VBench forms it, total = (4 quality + semantic) / 5 with semantic = agreement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.playground.captions import parse
from nearstep.playground.judge.motion import Motion, fit_motion
from nearstep.playground.judge.quality import FIGURES, half_at, measure_quality, pace, per_chunk
from nearstep.playground.judge.redraw import redraw
from nearstep.playground.judge.segment import Sight, look
from nearstep.playground.judge.shapes import NAMES, Fit, fit
from nearstep.playground.world import BACKGROUNDS, COLOURS, SIZE, SIZES, SPEEDS, background
from nearstep.shapes import chunk_frames

ATTRIBUTES = ("count", "shape", "colour", "size", "motion", "direction", "speed", "background")
"""What is compared. Every caption speaks of one object, so ``count`` is always stated."""

LEAST_FRAMES = 17
"""Shortest clip to judge, in pixel frames: long enough to see a bounce turn."""

_LEAST_SEEN = 0.25
"""Part of the frames that must show an object for the clip to have one."""
_LEAST_OVERLAP = 0.7
"""Overlap below which what was found is no object of this world."""
_COLOUR_REACH = 0.15
"""Root mean square distance (per channel) beyond which no palette colour is meant; the closest two are 0.2 apart."""
_BACKGROUND_REACH = 0.08
"""The same for backgrounds; the closest two are 0.09 apart."""
_LEAST_EMPTY = 0.5
"""Part of the picture that must look like its backdrop for there to be a background."""
_BLOCK = 16
"""Clips measured at once: small enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One clip against its caption."""

    measured: dict[str, str | None]
    """Attribute -> what the clip shows; None where nothing of this world is seen."""
    stated: dict[str, str]
    """Attribute -> what the caption states."""
    figures: dict[str, float]
    """Name in quality.FIGURES -> [0, 1]."""
    course: list[float]
    """(sharpness + fidelity) / 2 in each chunk."""

    @property
    def agreement(self) -> dict[str, int]:
        """Stated attribute -> 1 where the clip shows it, else 0."""
        return {name: int(self.measured[name] == value) for name, value in self.stated.items()}

    @property
    def semantic(self) -> float:
        """Mean agreement over the stated attributes."""
        return sum(self.agreement.values()) / len(self.stated)

    @property
    def correct(self) -> bool:
        """Whether the clip shows everything stated."""
        return all(self.agreement.values())

    @property
    def quality(self) -> float:
        """Mean of the figures."""
        return sum(self.figures.values()) / len(self.figures)

    @property
    def total(self) -> float:
        """(4 quality + semantic) / 5."""
        return (4 * self.quality + self.semantic) / 5


@torch.no_grad()
def judge(video: Tensor, captions: Sequence[str], *, chunk: int = 3) -> list[Verdict]:
    """Measure clips [B, T, 3, SIZE, SIZE] in [0, 1] against their captions.

    Args:
        video: the clips.
        captions: one for each.
        chunk: latent frames per chunk, for the figures that compare chunks.

    Raises:
        NearstepError: on clips of another size, too few frames, values that are not finite, or a caption too few.
    """
    _check(video, captions)
    blocks = zip(video.split(_BLOCK), (captions[i : i + _BLOCK] for i in range(0, len(captions), _BLOCK)), strict=True)
    return [verdict for clips, texts in blocks for verdict in _judge(clips.float().clamp(0.0, 1.0), texts, chunk)]


def _check(video: Tensor, captions: Sequence[str]) -> None:
    if video.shape[2:] != (3, SIZE, SIZE) or video.shape[1] < LEAST_FRAMES:
        raise NearstepError(
            f"the judge knows clips [B, T, 3, {SIZE}, {SIZE}] of at least {LEAST_FRAMES} frames, got "
            f"{list(video.shape)}; generate at the world's size"
        )
    if len(video) != len(captions):
        raise NearstepError(f"{len(video)} clips and {len(captions)} captions; give one caption for each clip")
    if not video.isfinite().all():
        raise NearstepError("the video holds values that are not finite; the model that made it is broken")


def _judge(video: Tensor, captions: Sequence[str], chunk: int) -> list[Verdict]:
    chunks = chunk_frames(video.shape[1], chunk)
    stated = [_stated(text) for text in captions]
    sight = look(video)
    fitted = fit(sight, chunks)
    seen = (sight.found.float().mean(dim=1) >= _LEAST_SEEN) & (fitted.overlap >= _LEAST_OVERLAP)
    ideal = redraw(sight, fitted, chunks)
    motion = fit_motion(sight.centroid, sight.found | ~seen[:, None])
    figures, course = measure_quality(video, sight, fitted, ideal, chunks)
    figures["smoothness"] = half_at(motion.residual, 1.0)
    figures["pace"] = pace(motion.speed, _stated_speed(stated, motion.speed))
    colour = per_chunk(ideal.colour, sight.found, (video.shape[1],))[:, 0]
    measured = _names(sight, fitted, motion, colour, seen)
    columns = {name: (figures[name] * seen).tolist() for name in FIGURES}
    return [
        Verdict(
            measured={name: measured[name][i] for name in ATTRIBUTES},
            stated=stated[i],
            figures={name: columns[name][i] for name in FIGURES},
            course=(course[i] * seen[i]).tolist(),
        )
        for i in range(len(stated))
    ]


def _stated(text: str) -> dict[str, str]:
    said = {"count": "1", **parse(text)}
    return {name: said[name] for name in ATTRIBUTES if name in said}


def _stated_speed(stated: list[dict[str, str]], measured: Tensor) -> Tensor:
    # Pixels per frame [B]: 0 for a stated rest, and the nearest speed where the caption leaves it open.
    known = torch.tensor(tuple(SPEEDS.values()))
    speed = known[(measured[:, None] - known).abs().argmin(dim=1)]
    for row, said in enumerate(stated):
        if said.get("motion") == "still":
            speed[row] = 0.0
        elif "speed" in said:
            speed[row] = SPEEDS[said["speed"]]
    return speed


def _names(sight: Sight, fitted: Fit, motion: Motion, colour: Tensor, seen: Tensor) -> dict[str, list[str | None]]:
    # Attribute -> one name for each clip.
    most, least = sight.objects.amax(dim=1), sight.objects.amin(dim=1)
    pace = _nearest(motion.speed[:, None], torch.tensor(tuple(SPEEDS.values()))[:, None])
    size = _nearest(fitted.radius.log()[:, None], torch.tensor(tuple(SIZES.values())).log()[:, None])
    named = {
        "count": [str(n) for n in torch.where(most > 1, most, least).tolist()],  # the most, or 0 if it ever vanishes
        "shape": _pick(NAMES, fitted.shape),
        "colour": _pick(COLOURS, _nearest(colour, torch.tensor(tuple(COLOURS.values())), _COLOUR_REACH)),
        "size": _pick(SIZES, size),
        "motion": motion.kind,
        "direction": motion.direction,
        "speed": [n if k != "still" else None for n, k in zip(_pick(SPEEDS, pace), motion.kind, strict=True)],
    }
    named = {
        name: [v if s else None for v, s in zip(values, seen.tolist(), strict=True)] for name, values in named.items()
    }
    rows = sight.backdrop.median(dim=1).values.flatten(1)
    known = torch.stack([background(name).flatten() for name in BACKGROUNDS])
    plain = sight.empty.float().mean(dim=(1, 2, 3)) >= _LEAST_EMPTY
    place = torch.where(plain, _nearest(rows, known, _BACKGROUND_REACH), -1)
    return {**named, "background": _pick(BACKGROUNDS, place)}


def _nearest(values: Tensor, known: Tensor, reach: float = math.inf) -> Tensor:
    # Row of ``known`` [K, D] nearest to each of ``values`` [B, D]; -1 beyond ``reach`` (root mean square over D).
    distance, index = (values[:, None] - known).square().mean(dim=-1).sqrt().min(dim=1)
    return torch.where(distance <= reach, index, -1)


def _pick(names: Iterable[str], index: Tensor) -> list[str | None]:
    known = (*names, None)  # -1 is no name
    return [known[i] for i in index.tolist()]
