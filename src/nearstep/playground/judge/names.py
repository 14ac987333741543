"""What a clip shows, in the words of captions: from fitted things, their tracks and which one covers the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.judge.find import Sight
from nearstep.playground.judge.fit import Fit
from nearstep.playground.judge.motion import Motion, fit_motion
from nearstep.playground.judge.scenery import foreign_patch
from nearstep.playground.relations import SIDES, covered
from nearstep.playground.sprites import THINGS
from nearstep.playground.world import SIZES, WorldConfig

_SEEN = 0.2
"""Part of its energy that a thing must keep behind the other one for the frame to tell where it is."""
_SHOWN = 0.2
"""Part of its energy that it must explain in a frame to be there."""
_LASTING = 0.8
"""Part of the frames that tell where a thing is in which it must be there."""
_INSIDE = 0.3
"""Least distance of a thing's centre from the frame's edge, in its extent."""
_MORE = 0.06
"""Mean squared error over a patch (all channels) that only something unexplained leaves."""
_PATCH = 9 / 64
"""Side of that patch, as a part of the frame's."""
_FOREIGN = 0.6
"""Part of a patch of the backdrop that only something other than the place leaves: what rests is in every frame."""
_TOLD = 0.15
"""Part of the smaller thing's square that must be covered in a tenth of the frames for an order to be seen."""
_BESIDE = 0.9
"""Part of the frames in which a side must hold."""


@dataclass(frozen=True, kw_only=True)
class FoundThing:
    """One thing as it was found; None where it is none of the world's."""

    thing: str
    category: str
    size: str
    motion: str | None
    direction: str | None
    speed: str | None

    def shows(self, attribute: str) -> str | None:
        """The value of an attribute."""
        return getattr(self, attribute)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one clip shows."""

    things: tuple[FoundThing, ...]
    place: str | None
    relations: frozenset[str]
    """How the first thing lies to the second."""
    more: bool
    """Something is there that these things do not explain."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The motions of the first and the second thing of each clip."""

    motions: tuple[Motion, Motion]
    seen: tuple[Tensor, Tensor]
    """[B, T] frames that tell where the thing is."""
    there: Tensor
    """[B, 2] whether the thing is in the clip from beginning to end: what is not is not found."""

    def found(self, row: int) -> list[int]:
        """Which of the two are in a clip; ``Found.things`` has them in this order."""
        return [index for index, there in enumerate(self.there[row].tolist()) if there]


def track(sight: Sight, config: WorldConfig) -> Tracks:
    """Name the motion of whatever was found."""
    seen = tuple(fit.energy > _SEEN * fit.open_energy for fit in sight.things)
    motions = tuple(fit_motion(fit.centre, rows, config.frames) for fit, rows in zip(sight.things, seen, strict=True))
    lasting = torch.stack([_lasts(fit, rows) for fit, rows in zip(sight.things, seen, strict=True)], dim=1)
    return Tracks(motions=(motions[0], motions[1]), seen=(seen[0], seen[1]), there=sight.present & lasting)


def name(video: Tensor, sight: Sight, tracks: Tracks, config: WorldConfig) -> list[Found]:
    """Name what each clip [B, T, 3, H, W] shows."""
    more = _unexplained(video, sight).tolist()
    found = []
    for row in range(len(video)):
        which = tracks.found(row)
        things = tuple(_name_thing(sight.things[i], tracks.motions[i], row, config) for i in which)
        relations = _relations(sight, tracks, row) if len(which) == 2 else frozenset[str]()
        found.append(Found(things=things, place=sight.scenery.place[row], relations=relations, more=more[row]))
    return found


def _lasts(fit: Fit, seen: Tensor) -> Tensor:
    # A thing that is not there is fitted where it matters least, half outside; the world's own stay inside.
    edge = torch.minimum(fit.centre, 1 - fit.centre).amin(dim=2)
    inside = edge > _INSIDE * fit.side[:, None]
    told = seen | ~inside
    shown = (fit.gain > _SHOWN * fit.energy) & inside & seen
    return shown.sum(dim=1) >= _LASTING * told.sum(dim=1)


def _unexplained(video: Tensor, sight: Sight) -> Tensor:
    # Clips [B] in most frames of which a patch differs from what was redrawn, or whose backdrop holds something; away
    # from the things alone, for one that is drawn badly is no further thing: fidelity and identity tell of that.
    away = 1 - sight.near
    error = ((video - sight.redrawn).square() * away).sum(dim=2)
    patch = max(1, round(_PATCH * video.shape[-1]))
    worst = F.avg_pool2d(error, patch, stride=max(1, patch // 3)).amax(dim=(2, 3))
    backdrop = foreign_patch(sight.scenery, patch, away.amax(dim=1))
    return ((worst > _MORE).float().mean(dim=1) > 0.5) | (backdrop > _FOREIGN)


def _name_thing(fit: Fit, motion: Motion, row: int, config: WorldConfig) -> FoundThing:
    thing = config.names[int(fit.thing[row])]
    side = float(fit.side[row]) / config.scale
    return FoundThing(
        thing=thing,
        category=THINGS[thing].category,
        size=min(SIZES, key=lambda size: abs(math.log(side / SIZES[size]))),
        motion=motion.kind[row],
        direction=motion.direction[row],
        speed=motion.speed[row],
    )


def _relations(sight: Sight, tracks: Tracks, row: int) -> frozenset[str]:
    one, two = (fit.centre[row] for fit in sight.things)
    side, other = (float(fit.side[row]) for fit in sight.things)
    found = set()
    told = covered(one, two, side, other) > _TOLD * min(side, other) ** 2
    if told.float().mean() > 0.1:
        found.add("in front of" if sight.first_in_front[row] else "behind")
    both = tracks.seen[0][row] & tracks.seen[1][row]
    away = (two - one)[both]
    for relation, (axis, sign) in SIDES.items():
        holds = sign * away[:, axis] > away[:, 1 - axis].abs()
        if len(away) and holds.float().mean() >= _BESIDE:
            found.add(relation)
    return frozenset(found)
