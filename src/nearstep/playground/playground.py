"""The playground as a World: one object that recipes and commands hand to training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearstep.playground import captions, features, world
from nearstep.playground.judge.judge import Verdict, judge


@dataclass(frozen=True)
class Playground:
    """One object on a graded background (playground/world.py), a World without settings."""

    name: str = field(default="playground", init=False)
    size: int = field(default=world.SIZE, init=False)
    frames: int = field(default=world.FRAMES, init=False)
    fps: float = field(default=world.FPS, init=False)

    def prompts(
        self, seed: int, indices: Sequence[int], *, wording: int | None = None, complete: bool = True
    ) -> list[str]:
        """Captions; complete ones state every attribute."""
        words = seed if wording is None else wording
        scenes = world.sample_scenes(seed, indices)
        return [
            captions.caption(scene, seed=words, index=index, complete=complete)
            for index, scene in zip(indices, scenes, strict=True)
        ]

    def clips(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Rendered scenes."""
        return world.render(world.sample_scenes(seed, indices), frames or self.frames, first)

    def focus(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """The middle of the object's path."""
        scenes = world.sample_scenes(seed, indices)
        return torch.stack([world.positions(scene, frames or self.frames, first).mean(dim=0) for scene in scenes])

    def foreground(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Where the object covers a pixel by half or more."""
        masks = [
            world.shape_mask(scene.shape, scene.radius, world.positions(scene, frames or self.frames, first))
            for scene in world.sample_scenes(seed, indices)
        ]
        return (torch.stack(masks)[:, :, None] >= 0.5).float()

    def judge(self, video: Tensor, prompts: Sequence[str], *, chunk: int = 3) -> list[Verdict]:
        """Fits the object and compares what is found with the caption (playground/judge/judge.py)."""
        return judge(video, prompts, chunk=chunk)

    def features(self, video: Tensor) -> Tensor:
        """What a small network that names clips has in its layers (playground/features.py)."""
        return features.feature_net().features(video)

    def vocabulary(self) -> tuple[str, ...]:
        """The closed vocabulary of playground/captions.py."""
        return captions.vocabulary()

    def words(self) -> dict[str, list[str]]:
        """The same by attribute."""
        return captions.phrases()


PLAYGROUND = Playground()
