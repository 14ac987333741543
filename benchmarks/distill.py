"""What a student update costs with and without the adversary, and where the time goes.

    python benchmarks/distill.py --compile

Both recipes make the same steps in one run, in turn, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from nearstep.evaluate.tables import markdown
from nearstep.recipes import playground
from nearstep.recipes.rivals import rival
from nearstep.train.distill.stage import DistillConfig, DistillStage

PARTS = {
    "rollout fewer": "n-step rollout",
    "rollout more": "(n+1)-step rollout",
    "student": "DMD gradient, backward",
    "student_gradient": "ASD gradient",
    "assistant": "assistant",
    "discriminator": "discriminator",
    "apply": "optimizers",
}
"""Method of the update, the adversary or an optimizer -> what it is; time inside a method that is listed itself is not
counted twice."""


@dataclass(frozen=True)
class Options:
    """How to measure."""

    steps: int = 16
    """Timed student updates of each recipe; every n comes up."""
    warm: int = 8
    """Untimed ones before them."""
    compile: bool = False
    autocast: bool = True
    """Products in bfloat16, where the device has them."""
    pictures: bool = False
    """Every second update of pictures, as the recipe has it; else all are of clips."""
    latents: Path = Path("runs/latents")
    """Encoded here first, if they are not there."""


class Timed:
    """A stage whose methods are timed."""

    def __init__(self, config: DistillConfig) -> None:
        self.stage = DistillStage(config)
        self.spent: dict[str, float] = defaultdict(float)
        self.whole: list[float] = []
        self.inside: list[float] = [0.0]
        update, optimizers = self.stage.update, self.stage.optimizers.values()
        for name in {key.split()[0] for key in PARTS}:
            for owner in (update, update.networks.adversary, *optimizers):
                if hasattr(owner, name):
                    setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            key = f"{name} {arguments[3]}" if name == "rollout" else name
            self.inside.append(0.0)
            began = time.perf_counter()
            result = method(*arguments, **options)
            seconds = time.perf_counter() - began
            self.spent[key] += seconds - self.inside.pop()
            self.inside[-1] += seconds
            return result

        return call

    def step(self, index: int) -> None:
        """One timed step."""
        began = time.perf_counter()
        self.stage.step(index)
        self.whole.append(time.perf_counter() - began)

    def forget(self) -> None:
        """Drop what was timed."""
        self.spent.clear()
        self.whole.clear()


def main(options: Options) -> None:
    """Print the table."""
    base = playground.self_forcing()
    base = base if options.pictures else replace(base, lessons=())
    recipes = {"Self Forcing": base, "ASD": rival(base, "distill")}
    stages = {}
    for name, recipe in recipes.items():
        latents = replace(recipe.latents, folder=options.latents, clips=1024)
        stages[name] = Timed(
            replace(
                recipe, latents=latents, compile=options.compile, autocast=options.autocast, warmup=0, adversary_delay=0
            )
        )
    for index in range(options.warm + options.steps):
        for stage in stages.values():
            if index == options.warm:
                stage.forget()
            stage.step(index)
    rows = []
    for name, stage in stages.items():
        mean = statistics.fmean(stage.whole)
        parts = [stage.spent[key] / options.steps for key in PARTS]
        rows.append([name, f"{mean:.2f}", *(f"{part:.2f}" for part in parts)])
    print(markdown(["seconds per student update", "all", *PARTS.values()], rows))
    ratios = [a / b for a, b in zip(stages["ASD"].whole, stages["Self Forcing"].whole, strict=True)]
    middle = sum(stages["ASD"].whole) / sum(stages["Self Forcing"].whole)
    low, *_, high = statistics.quantiles(ratios, n=20)
    print(f"\nASD costs {middle:.2f} times Self Forcing (single steps: {low:.2f} to {high:.2f}, 5 to 95 %)")


if __name__ == "__main__":
    main(tyro.cli(Options))
