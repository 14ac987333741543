"""Teacher forcing: a causal many-step network, by flow matching of every chunk given the clean chunks before it.

Each chunk has a time of its own (method.md section 7; Causal-Forcing++). What comes of it is followed by
``consistency``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nearstep.flow.times import training_times
from nearstep.losses.denoising import teacher_forced
from nearstep.nets.masks import teacher_forcing
from nearstep.protocols import Caption
from nearstep.reach import Reach
from nearstep.train.objectives.objective import Calls, CausalUpdate, Objective, denoiser


def loss(update: CausalUpdate, x0: Tensor, eps: Tensor, captions: Sequence[Caption], u: Tensor) -> Tensor:
    """Velocity error of every chunk at its own time, [B]."""
    t = update.per_frame(training_times(u, shift=update.shift))
    return teacher_forced(denoiser(update.network, update.encoded(captions), update.visibility), x0, eps, t)


def calls(lengths: Sequence[int], reach: Reach, ode_steps: int) -> list[Calls]:
    """One call on [clean | noised]."""
    return [Calls("network", teacher_forcing(lengths, reach), learns=True)]


FORCING = Objective(loss=loss, calls=calls, follows=False, drops_captions=True, preview_plan="16", preview_guided=True)
