"""Thresholds of an adaptive plan: how much a step must agree with what was known for the rest to be spared.

What is wanted is that a chunk which stops is as close to what all steps would have made of it as asked: the
*closeness* of step n, the cosine of its x0 and the last step's. What can be seen when it stops is its agreement
(flow/live_plan.py). On some captions both are measured, and of each chunk and step the threshold is set such that
chunks above it are, on average, close enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nearstep.evaluate.similarity import Watched
from nearstep.files import write_json
from nearstep.flow.live_plan import agreements, ladder
from nearstep.flow.plan import ADAPTIVE, ChunkPlan
from nearstep.models.folder import INDEX, read_json, shift_of
from nearstep.rollout.rollout import generate
from nearstep.stream.finite import check_finite
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.request import latent_shape

CAPTIONS_SEED = 7_500_000
"""Stream of the captions to calibrate with; neither training nor evaluation draws from it."""
ALWAYS, NEVER = -1.0, 2.0
"""Thresholds that every chunk reaches, and none."""


class Agreements(NamedTuple):
    """Both measures of every step but the last of the ladder."""

    agreement: Tensor
    """[prompts, chunks, steps - 1] how much each step agrees with what was known before it."""
    closeness: Tensor
    """[prompts, chunks, steps - 1] how much each step agrees with the last one."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What to do after one step of one chunk."""

    threshold: float
    """Least agreement of a chunk that stops."""
    stopping: float
    """Share of all chunks that stop here."""
    closeness: float
    """Mean closeness of those that stop; nan where none does."""


@torch.no_grad()
def measure_agreement(
    pipe: CausalVideoPipeline, prompts: Sequence[str], *, chunks: int, seed: int = 0, batch: int = 16
) -> Agreements:
    """Make the first chunks of each prompt with all steps, and watch.

    Args:
        pipe: with a causal network.
        prompts: one stream each.
        chunks: how many of each.
        seed: names the noise.
        batch: streams at once; changes nothing.
    """
    parts = [
        _watch(pipe, prompts[first : first + batch], range(first, min(first + batch, len(prompts))), chunks, seed)
        for first in range(0, len(prompts), batch)
    ]
    agreement, closeness = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Agreements(
        check_finite(agreement, "how steps agree with those before"),
        check_finite(closeness, "how close steps are to the last"),
    )


def _watch(
    pipe: CausalVideoPipeline, prompts: Sequence[str], samples: Sequence[int], chunks: int, seed: int
) -> Agreements:
    conditioning = pipe.conditioning(list(prompts), seed=seed, samples=list(samples))
    shape, length = latent_shape(pipe.configs), pipe.chunk_frames
    schedule = ladder(shift=shift_of(pipe.scheduler.config), grid=pipe.settings.grid)
    plan = ChunkPlan(text=ADAPTIVE, lengths=(length,) * chunks, schedules=(schedule,) * chunks)
    watched = Watched(pipe.denoiser(conditioning))
    generate(
        watched,
        plan,
        shape=shape.frame,
        seed=seed,
        samples=conditioning.samples,
        device=pipe.network_device,
    )
    chunks_of_steps = watched.chunks()
    befores = [None, *(steps[-1] for steps in chunks_of_steps)]
    rows = [_measures(steps, before) for steps, before in zip(chunks_of_steps, befores, strict=False)]
    return Agreements(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def _measures(steps: Sequence[Tensor], before: Tensor | None) -> tuple[Tensor, Tensor]:
    # [B, steps - 1] each, of the x0 of one chunk's steps.
    pairs = enumerate(zip([None, *steps], steps[:-1], strict=False), 1)
    agreement = [agreements(number, earlier, x0, before) for number, (earlier, x0) in pairs]
    close = [cosine_similarity(step.flatten(1).float(), steps[-1].flatten(1).float()) for step in steps[:-1]]
    return torch.stack(agreement, dim=1), torch.stack(close, dim=1)


def levels(measured: Agreements, closeness: float) -> list[list[Level]]:
    """``[chunk][step - 1]``: what to do for chunks that stop to be ``closeness`` close to all steps, on average."""
    found = []
    for agreement, close in zip(measured.agreement.unbind(1), measured.closeness.unbind(1), strict=True):
        going, row = torch.ones(len(agreement), dtype=torch.bool), []
        for column, reached in zip(agreement.unbind(1), close.unbind(1), strict=True):
            threshold = threshold_of(column[going], reached[going], closeness)
            stops = going & (column >= threshold)
            row.append(
                Level(
                    threshold=threshold,
                    stopping=float(stops.float().mean()),
                    closeness=float(reached[stops].mean()),
                )
            )
            going = going & ~stops
        found.append(row)
    return found


def threshold_of(agreement: Tensor, reached: Tensor, closeness: float) -> float:
    """The least threshold on ``agreement`` [N] above which the mean of ``reached`` [N] is at least ``closeness``."""
    if not len(agreement) or float(reached.mean()) >= closeness:
        return ALWAYS
    ordered = agreement.sort(descending=True)
    means = reached[ordered.indices].cumsum(0) / torch.arange(1, len(agreement) + 1)
    last = (ordered.values != ordered.values.roll(-1)) | (
        torch.arange(len(agreement)) == len(agreement) - 1
    )  # of equal ones
    fine = ((means >= closeness) & last).nonzero()
    return float(ordered.values[fine[-1]]) if len(fine) else NEVER


def thresholds(found: Sequence[Sequence[Level]]) -> tuple[tuple[float, ...], ...]:
    """The thresholds of levels, as Settings.agreement keeps them."""
    return tuple(tuple(round(level.threshold, 4) for level in row) for row in found)


def write_agreement(folder: Path, found: Sequence[Sequence[Level]]) -> None:
    """Put the thresholds of levels into a model folder's index."""
    index = read_json(folder / INDEX)
    index.setdefault("nearstep", {})["agreement"] = thresholds(found)
    write_json(folder / INDEX, index)
