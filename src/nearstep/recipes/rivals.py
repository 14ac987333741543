"""What sets the distillations of a world apart from distribution matching alone (``self_forcing``), in every world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig

FAVOUR_ONE = (1, 1, 1, 2, 3, 4)
"""Step counts to draw from, in which one step comes up in half of all draws."""

RIVALS: dict[str, dict[str, Any]] = {
    # The paper draws n uniformly; one step is the hardest, and its updates help the others (docs/results.md).
    "distill": {"step_counts": FAVOUR_ONE, "adversary": AdversaryConfig(), "adversary_delay": 15},
    "distill_1": {"step_counts": (1,), "adversary": AdversaryConfig(), "adversary_delay": 15},
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
