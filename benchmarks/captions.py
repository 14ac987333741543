"""What a teacher of the playground owes to its captions: its loss with the right ones, with others, without any.

python benchmarks/captions.py runs/teacher/model --network teacher

Others are those of clips at the same place and with as many things, so that what differs is what the caption names. A
teacher that has not learnt to read shows no difference there, however good its pictures are; this is seen in a minute.
Of clips, captions are also held that say everything right but how the things move.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.losses.denoising import flow_matching
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import PromptEncoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.playground import PLAYGROUND
from nearstep.playground.captions import caption
from nearstep.playground.world import Actor, Scene, sample_scenes
from nearstep.shapes import latent_frames

TIMES = (0.5, 0.7, 0.85, 0.95)
_SEED = 3
"""Of clips that no recipe learns from."""
_TOGETHER = 32


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    model: tyro.conf.Positional[Path]
    """A model folder."""
    network: str = "teacher"
    codec: Path | None = None
    """Folder of the codec it was made with; None: the model's own."""
    clips: int = 256
    frames: int = 1
    """Pixel frames of a clip, 4n + 1."""
    given: bool = False
    """Give the first latent frame as it is: what moves and where is then known, and the caption says how."""


def others(scenes: Sequence[Scene]) -> list[int]:
    """For each scene another one at the same place with as many things (itself, if there is none)."""
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, scene in enumerate(scenes):
        alike[scene.place, len(scene.actors)].append(row)
    next_of = {a: b for rows in alike.values() for a, b in zip(rows, [*rows[1:], rows[0]], strict=True)}
    return [next_of[row] for row in range(len(scenes))]


def moved(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes, whose things move as those of others do."""
    return [
        replace(scene, actors=tuple(_moving(*pair) for pair in zip(scene.actors, scenes[row].actors, strict=True)))
        for scene, row in zip(scenes, others(scenes), strict=True)
    ]


def _moving(actor: Actor, other: Actor) -> Actor:
    return replace(actor, motion=other.motion, direction=other.direction, speed=other.speed)


@torch.no_grad()
def losses(options: Options) -> dict[float, dict[str, tuple[float, float]]]:
    """Time -> kind of caption -> mean loss over the clips, and the standard error of its difference to the right ones.

    Raises:
        NearstepError: if the model is of another world.
    """
    codec = VideoCodec.from_pretrained(options.codec or options.model / "vae").float().eval()
    text = PromptEncoder.from_pretrained(options.model, dtype=torch.float32).eval()
    if set(PLAYGROUND.vocabulary()) - set(text.vocabulary()):
        raise NearstepError(f"{options.model} does not read the captions of the playground; name a model of it")
    network = VideoTransformer.from_pretrained(options.model / options.network, torch_dtype=torch.float32).eval()
    rows = range(options.clips)
    scenes = sample_scenes(PLAYGROUND.config, _SEED, rows)
    right = PLAYGROUND.prompts(_SEED, rows)
    kinds = {"right": right, "others'": [right[row] for row in others(scenes)], "none": [""] * len(right)}
    if options.frames > 1:
        kinds["others' motions"] = [
            caption(scene, seed=_SEED, index=row) for row, scene in zip(rows, moved(scenes), strict=True)
        ]
    parts = [rows[first : first + _TOGETHER] for first in rows[::_TOGETHER]]
    x0 = torch.cat([codec.encode(PLAYGROUND.clips(_SEED, part, frames=options.frames)) for part in parts])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))

    def each(captions: Sequence[str], time: float) -> Tensor:
        made = []
        for part in parts:
            own = slice(part.start, part.stop)
            t = torch.full((len(part), latent_frames(options.frames)), time)
            if options.given:
                t[:, 0] = 0
            made.append(flow_matching(TextDenoiser(network, text(captions[own])), x0[own], eps[own], t))
        return torch.cat(made)

    found = {}
    for time in TIMES:
        of = {kind: each(captions, time) for kind, captions in kinds.items()}
        errors = {kind: float((loss - of["right"]).std()) / len(right) ** 0.5 for kind, loss in of.items()}
        found[time] = {kind: (float(loss.mean()), errors[kind]) for kind, loss in of.items()}
    return found


def main(options: Options) -> None:
    """Print a row for each time."""
    for time, row in losses(options).items():
        right = row["right"][0]
        told = [f"{kind} {loss:.4f} (+{loss - right:.4f} ± {error:.4f})" for kind, (loss, error) in row.items()]
        print(f"t = {time}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
