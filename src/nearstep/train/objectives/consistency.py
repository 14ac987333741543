"""Causal consistency: a few-step student, on the ODE of the causal many-step network that it starts as.

Sequences are [clean | noised], as for ``forcing`` (method.md section 7; Causal-Forcing++, Causal-rCM).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nearstep.flow.guidance import guided
from nearstep.flow.times import shifted
from nearstep.losses.consistency import causal_consistency
from nearstep.nets.masks import teacher_forcing
from nearstep.protocols import Caption
from nearstep.reach import Reach
from nearstep.train.objectives.objective import Calls, CausalUpdate, Objective, cell_of, denoiser


def loss(update: CausalUpdate, x0: Tensor, eps: Tensor, captions: Sequence[Caption], u: Tensor) -> Tensor:
    """Difference of the student's x0 and its average's one step of the guided many-step network later, [B]."""
    steps = update.ode_steps
    cell = cell_of(u, steps)  # [B, chunks]: each chunk between two neighbouring times of the grid
    t, t_next = (update.per_frame(shifted(1 - (cell + k) / steps, update.shift)) for k in (0, 1))
    text = update.encoded(captions)
    return causal_consistency(
        student=denoiser(update.network, text, update.visibility),
        slow=denoiser(update.average, text, update.visibility),
        teacher=guided(denoiser(update.many_step, update.both(text), update.visibility), update.guidance),
        x0=x0,
        eps=eps,
        t=t,
        t_next=t_next,
    )


def calls(lengths: Sequence[int], reach: Reach, ode_steps: int) -> list[Calls]:
    """The student, its average, and the guided network that is followed, a call each."""
    sequence = teacher_forcing(lengths, reach)
    return [
        Calls("network", sequence, learns=True),
        Calls("many-step network", sequence, times=2),
        Calls("slow copy", sequence),
    ]


CONSISTENCY = Objective(loss=loss, calls=calls, follows=True, keeps=True)
