"""A world of a few lines, in closed form: what training, data and evaluation ask of any world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.errors import NearstepError

LEVELS = {"dark": 0.2, "bright": 0.8}


@dataclass(frozen=True)
class Shade:
    """The verdict: is the clip as bright as it was said to be, and is it even?"""

    agreement: dict[str, int]
    figures: dict[str, float]

    @property
    def course(self) -> list[float]:
        return [self.quality]

    @property
    def semantic(self) -> float:
        return sum(self.agreement.values()) / len(self.agreement)

    @property
    def correct(self) -> bool:
        return all(self.agreement.values())

    @property
    def quality(self) -> float:
        return self.figures["evenness"]

    @property
    def total(self) -> float:
        return (self.quality + self.semantic) / 2


@dataclass(frozen=True)
class Shades:
    """Grey clips, dark where the index is even; a prompt says which, and now and then whether it moves (it never does).

    ``size`` and ``frames`` are free, as a world's settings are.
    """

    size: int = 8
    frames: int = 5
    fps: float = 4.0

    @property
    def name(self) -> str:
        return f"shades-{self.size}"

    def prompts(
        self, seed: int, indices: Sequence[int], *, wording: int | None = None, complete: bool = True
    ) -> list[str]:
        tail = " and still" if complete else ""
        return [f"{('dark', 'bright')[index % 2]}{tail if index % 3 else ''}" for index in indices]

    def clips(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        levels = torch.tensor([tuple(LEVELS.values())[index % 2] + 0.001 * (index % 7) for index in indices])
        return levels.view(-1, 1, 1, 1, 1).expand(-1, frames or self.frames, 3, self.size, self.size)

    def focus(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        return torch.full((len(indices), 2), (self.size - 1) / 2)

    def foreground(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        return torch.ones(len(indices), frames or self.frames, 1, self.size, self.size)

    def judge(self, video: Tensor, prompts: Sequence[str]) -> list[Shade]:
        return [self._judge(clip, prompt) for clip, prompt in zip(video, prompts, strict=True)]

    def _judge(self, clip: Tensor, prompt: str) -> Shade:
        said = [word for word in prompt.lower().replace(",", " ").split() if word in LEVELS]
        if len(said) != 1:
            raise NearstepError(f"{prompt!r} says no shade, or more than one")
        level = float(clip.mean())
        shade = min(LEVELS, key=lambda name: abs(LEVELS[name] - level))
        still = {"rest": int(clip.std(dim=0).max() < 0.01)} if "still" in prompt else {}
        return Shade({"shade": int(shade == said[0]), **still}, {"evenness": 1 / (1 + 100 * float(clip.var()))})

    def features(self, video: Tensor) -> Tensor:
        return torch.stack([video.mean(dim=(1, 2, 3, 4)), video.std(dim=(1, 2, 3, 4))], dim=1)

    def vocabulary(self) -> tuple[str, ...]:
        return ("and", "bright", "dark", "still")

    def words(self) -> dict[str, list[str]]:
        return {"level": [*LEVELS]}
