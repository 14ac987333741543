"""What the codec alone costs: real clips through encoder and decoder, judged like generated ones.

    python benchmarks/codec.py --captions 512 --out docs/results/playground-codec.json
    python benchmarks/codec.py runs/codec/model/vae --out codec.json

No generated clip can be expected to score higher than these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.run import measure
from nearstep.evaluate.tables import details, table
from nearstep.nets.codec import VideoCodec
from nearstep.recipes.worlds import find_world
from nearstep.stream.pipeline import CausalVideoPipeline


def main(
    model: Annotated[str, tyro.conf.Positional] = "playground",
    *,
    world: str = "playground",
    captions: int = 512,
    batch: int = 32,
    out: Path = Path("codec.json"),
) -> None:
    """Measure and print.

    Args:
        model: "playground", a model folder, a hub id, or the folder of a codec alone.
        world: whose clips.
        captions: held-out clips.
        batch: clips at once.
        out: where the results go; what it holds is not measured again.
    """
    chosen = find_world(world)
    alone = (Path(model) / "config.json").is_file()
    codec = VideoCodec.from_pretrained(model) if alone else CausalVideoPipeline.from_pretrained(model).codec
    error = torch.zeros(chosen.frames, dtype=torch.float64)

    @torch.no_grad()
    def round_trip(prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        del plan, seed
        video = chosen.clips(CAPTIONS_SEED, samples)
        decoded = codec.decode(codec.encode(video).float()).float()
        error.add_((decoded - video).square().mean(dim=(2, 3, 4)).sum(dim=0).double())
        return decoded

    results = measure(
        chosen,
        round_trip,
        ["codec"],
        calls=lambda plan: 0,
        name=f"{model} (codec)",
        captions=captions,
        batch=batch,
        out=out,
    )
    print(table(results), details(results), sep="\n\n")
    if error.any():
        whole, first = (-10 * float((part.mean() / captions).log10()) for part in (error, error[0]))
        print(f"\nPSNR {whole:.2f} dB, first frames {first:.2f} dB")


if __name__ == "__main__":
    tyro.cli(main)
