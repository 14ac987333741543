"""What a text encoder of the playground still says of each attribute of a clip.

python benchmarks/words.py runs/text/model

A linear layer learns to tell it from the mean of a caption's features, on captions of one thing, and is asked on
others. An encoder that learns along with pictures forgets how things move (docs/training.md). Things are named in half
of the captions, and only their category in the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from nearstep.nets.text import PromptEncoder
from nearstep.playground import PLAYGROUND
from nearstep.playground.world import sample_scenes
from nearstep.train.stages.text import meanings

ATTRIBUTES = ("thing", "category", "size", "motion", "direction", "speed")
_SEED = 5
"""Of clips that no recipe learns from."""
_TOGETHER = 64
_LEARNT = 2 / 3
"""Share of the captions that the layer learns from."""
_STEPS, _RATE, _DECAY = 200, 1e-2, 1e-3


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    model: tyro.conf.Positional[Path]
    """A folder with ``text_encoder/`` and ``tokenizer/``."""
    captions: int = 1_500


def told(options: Options) -> dict[str, tuple[float, int]]:
    """Attribute -> share of captions whose value the layer tells, and how many values there are."""
    text = PromptEncoder.from_pretrained(options.model, dtype=torch.float32).eval()
    rows = range(options.captions)
    scenes = sample_scenes(PLAYGROUND.config, _SEED, rows)
    captions = PLAYGROUND.prompts(_SEED, rows)
    alone = [row for row in rows if len(scenes[row].actors) == 1]
    with torch.no_grad():
        parts = [alone[first : first + _TOGETHER] for first in range(0, len(alone), _TOGETHER)]
        features = torch.cat([meanings(text, [captions[row] for row in part]) for part in parts])
    features = (features - features.mean(0)) / features.std(0)
    found = {}
    for name in ATTRIBUTES:
        values = [scenes[row].actors[0].attributes[name] for row in alone]
        names = sorted({value for value in values if value is not None})
        has = [place for place, value in enumerate(values) if value is not None]
        found[name] = (
            _share(features[has], torch.tensor([names.index(str(values[place])) for place in has])),
            len(names),
        )
    return found


def _share(features: Tensor, values: Tensor) -> float:
    learnt = int(len(values) * _LEARNT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(features.shape[1], int(values.max()) + 1)
    optimizer = torch.optim.Adam(layer.parameters(), _RATE, weight_decay=_DECAY)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(layer(features[:learnt]), values[:learnt]).backward()
        optimizer.step()
    return float((layer(features[learnt:]).argmax(1) == values[learnt:]).float().mean())


def main(options: Options) -> None:
    """Print a line for each attribute."""
    for name, (share, count) in told(options).items():
        print(f"{name}: {share:.3f} of {count} values")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
