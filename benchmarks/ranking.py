"""Can the discriminator of a distillation tell good samples from bad ones? Its logits beside the judge's totals.

    nearstep train playground.distill                  # keeps its discriminator in the run's checkpoint
    python benchmarks/ranking.py --out ranking.json

Several samples of each held-out caption are made by the run's student, noised, and shown to D_1 on the assistant's
features, as in training. If it knew good from bad, its logits would rank the samples of a caption as the judge does,
the best by logit would be better than the mean, and logits of samples at one step would say which captions gain by
first-frame enhancement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from nearstep import CausalVideoPipeline, rng
from nearstep.errors import NearstepError
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.statistics import pooled, rank_correlation
from nearstep.files import replacing
from nearstep.flow.path import noised
from nearstep.playground import PLAYGROUND
from nearstep.recipes import playground
from nearstep.train.checkpoint import latest, load
from nearstep.train.distill.stage import DistillStage
from nearstep.train.parallel import ranks
from nearstep.train.recipe import recipe_of

TIMES = (0.05, 0.15, 0.3, 0.5, 0.7)
"""Times of Psi's noise."""
PLANS = ("1", "4,1x")
BATCH = 32


@torch.no_grad()
def seen(
    stage: DistillStage, pipe: CausalVideoPipeline, plan: str, texts: list[str], samples: int
) -> tuple[Tensor, Tensor]:
    """Totals [captions, samples] and logits [captions, samples, times] of the student's clips."""
    adversary = stage.update.networks.adversary
    assert adversary is not None
    prompts, totals, logits = [text for text in texts for _ in range(samples)], [], []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        numbers = list(range(first, first + len(part)))
        clips = torch.as_tensor(pipe(part, plan, seed=0, samples=numbers, output_type="latent")[0])
        totals += [verdict.total for verdict in PLAYGROUND.judge(pipe.decoder.decode(clips).float(), part)]
        text, shown = pipe.prompt_encoder(part), []
        for index, time in enumerate(TIMES):
            eps = rng.noise(clips.shape[1:], seed=1, samples=[0] * len(part), chunk=0, step=index)
            t = torch.full((len(part),), time)
            d_1 = adversary.discriminate(text, t, 1)
            shown.append(d_1(noised(clips, eps, t[:, None].expand(-1, clips.shape[1]))))
        logits.append(torch.stack(shown, dim=1))
    shape = (len(texts), samples)
    return torch.tensor(totals, dtype=torch.float64).view(shape), torch.cat(logits).view(*shape, -1)


def ranked(totals: Tensor, logits: Tensor) -> dict[str, Any]:
    """How the samples of a caption are ranked by logits [captions, samples], in points of total."""
    best = totals.gather(1, logits.argmax(1, keepdim=True))[:, 0]
    gained = pooled((best - totals.mean(1))[None])
    inner = [part - part.mean(1, keepdim=True) for part in (logits, totals)]
    return {
        "correlation": rank_correlation(*(part.flatten() for part in inner)),
        "best": 100 * best.mean().item(),
        "gained": [100 * value for value in (gained.value, gained.low, gained.high)],
    }


def main(
    *,
    captions: int = 96,
    samples: int = 4,
    threads: int = 1,
    run: Path = Path("runs/distill"),
    out: Path = Path("ranking.json"),
) -> dict[str, Any]:
    """Measure, print, and write.

    Args:
        captions: held-out ones.
        samples: clips of each.
        threads: of the CPU.
        run: folder of a finished ``playground.distill`` of the recipe's own values.
        out: where the numbers go.
    """
    torch.set_num_threads(threads)
    config = playground.distill()
    if (checkpoint := latest(run)) is None:
        raise NearstepError(f"{run} holds no checkpoint; make it with nearstep train playground.distill")
    stage = DistillStage(config)
    load(stage.state, recipe_of(config), checkpoint, ranks())
    pipe = CausalVideoPipeline.from_pretrained(run / "model")
    texts = PLAYGROUND.prompts(CAPTIONS_SEED, range(captions))
    found: dict[str, Any] = {"captions": captions, "samples": samples, "plans": {}}
    made = {plan: seen(stage, pipe, plan, texts, samples) for plan in PLANS}
    for plan, (totals, logits) in made.items():
        found["plans"][plan] = {
            "mean": 100 * totals.mean().item(),
            "best by the judge": 100 * totals.amax(1).mean().item(),
            "by time": {str(time): ranked(totals, logits[..., index]) for index, time in enumerate(TIMES)},
        }
        print(plan, json.dumps(found["plans"][plan], indent=1))
    gain = (made["4,1x"][0] - made["1"][0]).flatten()
    found["gain"] = [rank_correlation(-logits.flatten(), gain) for logits in made["1"][1].unbind(-1)]
    print("low logits and the gain of 4,1x over 1, rank correlation by time:", found["gain"])
    with replacing(out) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    tyro.cli(main)
