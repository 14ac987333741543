"""The objectives by name, as ``--objective`` takes them."""

from __future__ import annotations

from collections.abc import Mapping

from nearstep.errors import NearstepError, hint
from nearstep.train.objectives.consistency import CONSISTENCY
from nearstep.train.objectives.forcing import FORCING
from nearstep.train.objectives.objective import Objective
from nearstep.train.objectives.trajectory import TRAJECTORY

OBJECTIVES: Mapping[str, Objective] = {"forcing": FORCING, "consistency": CONSISTENCY, "trajectory": TRAJECTORY}


def objective_called(name: str) -> Objective:
    """The objective of this name.

    Raises:
        NearstepError: if there is none, with the nearest.
    """
    if name not in OBJECTIVES:
        raise NearstepError(f"there is no objective {name!r}: {hint(name, OBJECTIVES, 'objectives are')}")
    return OBJECTIVES[name]
