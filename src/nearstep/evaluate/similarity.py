"""How much the steps of a chunk still change it: cosines between the x0 predictions of its steps.

The paper's evidence for first-frame enhancement: within the first chunk consecutive predictions differ much, within
later chunks little, so later chunks can do with fewer steps (its figure; method.md section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from nearstep.files import replacing
from nearstep.flow.path import x0_from_velocity
from nearstep.plots import new_figure
from nearstep.protocols import Cache, CausalDenoiser
from nearstep.reach import Reach
from nearstep.rollout.rollout import generate
from nearstep.stream.pipeline import CausalVideoPipeline

PAPER = {"first chunk": (0.70, 0.85, 0.94), "later chunks": (0.95, 0.98, 0.99)}
"""Cosines of consecutive steps at 4 steps, as read off the paper's figure."""


@dataclass
class Watched(Generic[Cache]):
    """A denoiser that notes every x0 it predicts."""

    denoiser: CausalDenoiser[Cache]
    predictions: dict[int, list[Tensor]] = field(default_factory=dict)
    """First frame of a chunk -> the x0 of each of its steps."""

    def chunks(self) -> list[list[Tensor]]:
        """The x0 of each step of each chunk, in order."""
        return [steps for _, steps in sorted(self.predictions.items())]

    def __call__(self, x: Tensor, t: Tensor, *, cache: Cache | None = None, start: int = 0) -> Tensor:
        """The denoiser's velocity."""
        v = self.denoiser(x, t, cache=cache, start=start)
        self.predictions.setdefault(start, []).append(x0_from_velocity(x, v, t).float().cpu())
        return v

    def commit(self, x: Tensor, *, cache: Cache, start: int) -> None:
        """The denoiser's commit."""
        self.denoiser.commit(x, cache=cache, start=start)

    def commit_then(self, clean: Tensor, x: Tensor, t: Tensor, *, cache: Cache, start: int) -> Tensor:
        """A commit, and a call that is noted."""
        self.commit(clean, cache=cache, start=start - clean.shape[1])
        return self(x, t, cache=cache, start=start)

    def new_cache(
        self, batch: int, frames: int | None, height: int, width: int, *, reach: Reach | None = None
    ) -> Cache:
        """A cache of the denoiser's."""
        return self.denoiser.new_cache(batch, frames, height, width, reach=reach)


@torch.no_grad()
def step_similarity(
    pipe: CausalVideoPipeline, prompts: Sequence[str], *, plan: str = "4", seed: int = 0, batch: int = 16
) -> Tensor:
    """Mean cosine between the x0 of every two steps of a chunk, [chunks, steps, steps].

    Args:
        pipe: with a causal network.
        prompts: one clip each.
        plan: one with equally many steps in every chunk.
        seed: names the noise.
        batch: clips at once; changes nothing.
    """
    parts = []
    for first in range(0, len(prompts), batch):
        part = list(prompts[first : first + batch])
        asked = pipe.request(part, plan, seed=seed, samples=list(range(first, first + len(part))))
        watched = Watched(pipe.denoiser(asked))
        generate(watched, asked.clip.plan, shape=asked.clip.shape.frame, seed=asked.seed, samples=asked.samples)
        parts.append(torch.stack([cosines(steps) for steps in watched.chunks()]) * len(part))
    return torch.stack(parts).sum(0) / len(prompts)


def cosines(steps: Sequence[Tensor]) -> Tensor:
    """[steps, steps] mean over the batch of the cosine between every two of ``steps``, each [B, ...]."""
    flat = torch.stack([torch.nn.functional.normalize(step.flatten(1), dim=1) for step in steps])
    return torch.einsum("ibd,jbd->ij", flat, flat) / flat.shape[1]


def draw_similarity(matrices: Tensor, path: Path) -> Path:
    """A picture of ``step_similarity``: a square per chunk, and the cosines of consecutive steps beside the paper's."""
    chunks, steps, _ = matrices.shape
    figure = new_figure(2.6 * (chunks + 1.4), 2.8)
    axes = figure.subplots(1, chunks + 1, width_ratios=[1] * chunks + [1.4])
    ticks = range(steps)
    for chunk, axis in enumerate(axes[:-1]):
        axis.imshow(matrices[chunk].numpy(), vmin=0.5, vmax=1.0, cmap="viridis")
        axis.set_title(f"chunk {chunk + 1}")
        axis.set_xticks(ticks, [str(i + 1) for i in ticks])
        axis.set_yticks(ticks, [str(i + 1) for i in ticks])
        for i in ticks:
            for j in ticks:
                axis.text(j, i, f"{matrices[chunk, i, j]:.2f}", ha="center", va="center", color="w", fontsize=7)
    for chunk in range(chunks):
        axes[-1].plot(torch.diagonal(matrices[chunk], 1).numpy(), marker="o", label=f"ours, chunk {chunk + 1}")
    for (name, line), style in zip(PAPER.items(), (":", "--"), strict=True):
        axes[-1].plot(line, color="0.4", linestyle=style, label=f"paper, {name}")
    axes[-1].set_xticks(range(steps - 1), [f"{i + 1} to {i + 2}" for i in range(steps - 1)])
    axes[-1].set_title("consecutive steps")
    axes[-1].legend(fontsize="x-small")
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path
