"""What sets each distillation apart from distribution matching alone (``self_forcing``), of whatever size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig

_ASD: dict[str, Any] = {"adversary": AdversaryConfig(), "adversary_delay": 15}
RIVALS: dict[str, dict[str, Any]] = {
    "distill": _ASD,
    "distill_1": {**_ASD, "step_counts": (1,)},
    "self_forcing_1": {"step_counts": (1,)},
    "self_forcing_2": {"step_counts": (1, 2), "schedule": "respaced"},
    "causvid": {"sampling": "data", "lessons": ()},
    "one_forcing": {"adversary": AdversaryConfig(reference="data", backbone="joint"), "adversary_delay": 15},
}
"""Run -> its options."""


def rival(base: DistillConfig, name: str) -> DistillConfig:
    """A run beside ``base``, the ``self_forcing`` of a world, in a folder of its own.

    Raises:
        KeyError: for a name that is none of ``RIVALS``.
    """
    changes = RIVALS[name]
    return replace(base, loop=replace(base.loop, folder=base.loop.folder.with_name(name)), **changes)
