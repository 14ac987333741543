"""The playground as a World (protocols.py): one object that recipes and commands hand on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from nearstep import rng
from nearstep.playground import captions, changes, features, parsing, world
from nearstep.playground.judge.judge import Verdict, judge
from nearstep.playground.judge.survey import survey
from nearstep.playground.paths import positions
from nearstep.playground.words import phrases
from nearstep.playground.world import Scene, WorldConfig

_KEPT = 1 << 16
_SHOWS = 0.02
"""Difference from the background from which a pixel shows a thing."""


@dataclass(frozen=True)
class Playground:
    """One or two things before a place (playground/world.py), with the dials of its settings."""

    config: WorldConfig = field(default_factory=WorldConfig)

    @property
    def name(self) -> str:
        """The world, and those of its dials that are not where they usually are."""
        usual = WorldConfig()
        turned = [f"{dial} {value:g}" for dial, value in vars(self.config).items() if value != getattr(usual, dial)]
        return " ".join(["playground", *turned])

    @property
    def size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.config.size

    @property
    def frames(self) -> int:
        """Pixel frames of a clip."""
        return self.config.frames

    @property
    def fps(self) -> float:
        """Pixel frames per second."""
        return self.config.fps

    def prompts(
        self, seed: int, indices: Sequence[int], *, wording: int | None = None, complete: bool = True
    ) -> list[str]:
        """Captions at both levels, things by name and by category; complete ones state every attribute but colour."""
        stream = seed if wording is None else wording
        scenes = self._scenes(seed, indices)
        return [
            captions.caption(scene, seed=stream, index=index, complete=complete)
            for index, scene in zip(indices, scenes, strict=True)
        ]

    def clips(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Rendered scenes."""
        return world.render(self.config, self._scenes(seed, indices), frames=frames or self.frames, first=first)

    def stories(self, seed: int, indices: Sequence[int], starts: Sequence[int], *, frames: int | None = None) -> Tensor:
        """Clips whose scenes change at the frames ``starts`` (playground/changes.py)."""
        video = [
            changes.render_story(self.config, story, starts, frames or self.frames)
            for story in self._stories(seed, indices, starts)
        ]
        return torch.stack(video)

    def story_prompts(
        self,
        seed: int,
        indices: Sequence[int],
        starts: Sequence[int],
        *,
        wording: int | None = None,
        complete: bool = True,
    ) -> list[tuple[str, ...]]:
        """For each story, a caption of each of its scenes in turn, at one level, which tell every change."""
        stream = seed if wording is None else wording
        return [
            captions.story_captions(story, seed=stream, index=index, complete=complete)
            for index, story in zip(indices, self._stories(seed, indices, starts), strict=True)
        ]

    def focus(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """The middle of one thing's path; of two, the clip's name chooses."""
        middles = []
        for index, scene in zip(indices, self._scenes(seed, indices), strict=True):
            actor = random.Random(rng.key("focus of a scene", seed, index)).choice(scene.actors)
            middles.append(positions(actor.track, frames or self.frames, first).mean(dim=0) * self.size)
        return torch.stack(middles)

    def foreground(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Where a thing is seen."""
        scenes = self._scenes(seed, indices)
        video = world.render(self.config, scenes, frames=frames or self.frames, first=first)
        places = [replace(scene, actors=(), relation=None) for scene in scenes]
        empty = world.render(self.config, places, frames=1)
        return ((video - empty).abs().amax(dim=2, keepdim=True) > _SHOWS).float()

    def judge(self, video: Tensor, prompts: Sequence[str]) -> list[Verdict]:
        """Fits and redraws what it finds, and compares with the caption (playground/judge/judge.py)."""
        return judge(video, prompts, self.config)

    def survey(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Variety and dynamic degree (playground/judge/survey.py)."""
        return survey(verdicts, self.config.names)

    def features(self, video: Tensor) -> Tensor:
        """Thumbnails, edges and motion (playground/features.py)."""
        return features.clip_features(video)

    def vocabulary(self) -> tuple[str, ...]:
        """The closed vocabulary of playground/words.py for this world's things, as playground/parsing.py reads it."""
        return parsing.vocabulary(self.config.names)

    def words(self) -> dict[str, list[str]]:
        """The same by what it states, the things of this world by category."""
        return phrases(self.config.names)

    def _stories(self, seed: int, indices: Sequence[int], starts: Sequence[int]) -> list[tuple[Scene, ...]]:
        return [_story(self.config, seed, index, tuple(starts)) for index in indices]

    def _scenes(self, seed: int, indices: Sequence[int]) -> tuple[Scene, ...]:
        return tuple(_scene(self.config, seed, index) for index in indices)


# A batch is asked for its clips, focus and foreground, and training comes back to the same clips for other captions:
# finding two paths that meet takes a millisecond, a scene that was found three kilobytes.
@lru_cache(maxsize=_KEPT)
def _scene(config: WorldConfig, seed: int, index: int) -> Scene:
    return world.sample_scenes(config, seed, [index])[0]


@lru_cache(maxsize=_KEPT)
def _story(config: WorldConfig, seed: int, index: int, starts: tuple[int, ...]) -> tuple[Scene, ...]:
    return changes.sample_story(config, seed, index, starts)


PLAYGROUND = Playground()
