"""A model of ours as a system: teacher or student, any published student, any plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from nearstep.sampling.filming import Made
from nearstep.sampling.target import Target
from nearstep.stream.request import Clip, Request, clip_metadata

if TYPE_CHECKING:
    from nearstep.protocols import CausalDenoiser
    from nearstep.stream.pipeline import CausalVideoPipeline


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Plays requests; what the text encoder makes of a prompt serves all its clips that follow each other."""

    open: Callable[[], CausalVideoPipeline]
    """Loads the pipeline."""
    clip: Clip
    origin: Mapping[str, Any]
    """What a file says of the model."""
    guidance: float
    """In v = u + w (c - u)."""
    negative: str
    """What guidance leads away from."""
    seed: int
    """Names all noise."""

    @cached_property
    def pipe(self) -> CausalVideoPipeline:
        """The pipeline, loaded when it is first asked for."""
        return self.open()

    @property
    def parts(self) -> int:
        """Chunks of a clip."""
        return len(self.clip.plan.lengths)

    def load(self) -> None:
        """Load the pipeline."""
        self.pipe  # noqa: B018 - it is kept

    def summary(self, count: int) -> str:
        """Plan, calls and size."""
        plan, shape = self.clip.plan, self.clip.shape
        size = f"{count} x {shape.frames} latent frames in {len(plan.lengths)} chunks"
        guided = f", guidance {self.guidance:g} (each call twice as wide)" if self.guidance != 1 else ""
        return f"plan {plan}: {plan.steps} steps + {plan.commits} commits a clip{guided}; {size}; seed {self.seed}"

    def said(self, target: Target) -> dict[str, Any]:
        """The model, and the request."""
        request = clip_metadata(
            self.clip,
            prompt=target.prompt,
            negative=self.negative,
            guidance=float(self.guidance),
            seed=self.seed,
            sample=target.index,
        )
        return {**self.origin, **request}

    def made(self, target: Target, told: Callable[[], object]) -> Made:
        """Play the request chunk by chunk."""
        first, denoiser = self._bound(target.prompt)
        chunks: list[torch.Tensor] = []
        for chunk in self.pipe.play(replace(first, samples=(target.index,)), denoiser=denoiser):
            chunks.append(chunk.video[0])
            told()
        video = torch.cat(chunks).cpu()
        frames, _, height, width = video.shape
        return Made(
            video=video,
            fps=self.pipe.settings.fps,
            frames=frames,
            height=height,
            width=width,
            calls=self.clip.plan.calls,
        )

    @cached_property
    def _kept(self) -> dict[str, tuple[Request, CausalDenoiser]]:
        return {}

    def _bound(self, prompt: str) -> tuple[Request, CausalDenoiser]:
        """A prompt's request and the network with its text bound; those of the last prompt are kept."""
        if prompt not in self._kept:
            self._kept.clear()
            conditioning = self.pipe.conditioning(
                prompt,
                negative_prompt=self.negative,
                guidance_scale=self.guidance,
                seed=self.seed,
                samples=[0],
            )
            request = Request.of(conditioning, self.clip)
            self._kept[prompt] = (request, self.pipe.denoiser(request))
        return self._kept[prompt]
