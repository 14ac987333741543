"""Any other system, as a program that is run once for each clip and writes an mp4."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearstep import rng
from nearstep.data.videos import read_facts, read_rate
from nearstep.errors import NearstepError
from nearstep.programs import run_program, words_of
from nearstep.sampling.filming import Made
from nearstep.sampling.target import Target
from nearstep.stream.output import count_frames

PLACES = ("prompt", "prompt_file", "output", "seed", "sample", "height", "width", "frames", "steps")
"""What a template may name in braces; the last four only where the option of that name is given."""
_SEED_BITS = 31  # of {seed}: what every program takes


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program with places for what it is asked: ``python sample.py --prompt {prompt} --seed {seed} --out {output}``.

    It is run without a shell. Its pictures are kept as it has encoded them. Seconds of a clip hold its start, and
    nobody here sees its calls.
    """

    template: str
    seed: int = 0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None

    @property
    def parts(self) -> int:
        """A clip comes at once."""
        return 1

    def check(self) -> None:
        """Read the template.

        Raises:
            NearstepError: for a place that nothing fills, or a template without {output}, prompt or seed.
        """
        self._words(Target(prompt="", index=0, path=Path("a.mp4")), Path("a"))
        for needed in (("{output}",), ("{prompt}", "{prompt_file}"), ("{seed}",)):
            if not any(place in self.template for place in needed):
                raise NearstepError(f"--command {self.template!r} lacks {' or '.join(needed)}; put it in")
        for name, value in self._numbers.items():
            if f"{{{name}}}" not in self.template:
                raise NearstepError(f"--{name} {value}: the command has no place {{{name}}} for it")

    @property
    def _numbers(self) -> dict[str, int]:
        """Those that are asked for."""
        given = {"height": self.height, "width": self.width, "frames": self.frames, "steps": self.steps}
        return {name: value for name, value in given.items() if value is not None}

    def _words(self, target: Target, folder: Path) -> list[str]:
        places = {
            "prompt": target.prompt,
            "prompt_file": str(folder / "prompt.txt"),
            "output": str(folder / "clip.mp4"),
            "seed": str(self.noise_seed(target.index)),
            "sample": str(target.index),
            **{name: str(value) for name, value in self._numbers.items()},
        }
        return words_of(self.template, places, PLACES)

    def noise_seed(self, sample: int) -> int:
        """What {seed} is: another one for each clip."""
        return rng.key("sample", self.seed, sample) % 2**_SEED_BITS

    def load(self) -> None:
        """Nothing waits to be loaded."""

    def summary(self, count: int) -> str:
        """The command."""
        return f"{count} x {self.template}; seed {self.seed}"

    def said(self, target: Target) -> dict[str, Any]:
        """The template, and what fills it."""
        return {
            "system": "command",
            "command": self.template,
            "prompt": target.prompt,
            "seed": self.seed,
            "sample": target.index,
            "generator": self.noise_seed(target.index),
            **self._numbers,
        }

    def made(self, target: Target, told: Callable[[], object]) -> Made:
        """Run it, and look at what it wrote.

        Raises:
            NearstepError: if it fails, or writes no video.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "prompt.txt").write_text(target.prompt + "\n", encoding="utf-8")
            run_program(self._words(target, folder), "the command failed", "run it by itself to see why")
            video = folder / "clip.mp4"
            if not video.is_file():
                raise NearstepError(f"the command ended without writing {{output}} for {target.prompt!r:.60}")
            facts, frames, fps = read_facts(video), count_frames(video), read_rate(video)
            whole = video.read_bytes()
        told()
        return Made(video=whole, fps=fps, frames=frames, height=facts.height, width=facts.width, calls=None)
