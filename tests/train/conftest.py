"""A random model of every class at the smallest size, as a folder, and the latents of a few clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import usual_runs
from untrained import write_untrained

from nearstep.data.latents import LatentsConfig, load_latents
from nearstep.nets.codec import VideoCodec
from nearstep.playground import PLAYGROUND
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.stages.shared import codec_name


@dataclass(frozen=True)
class TinyModel:
    """Where it lies."""

    folder: Path
    latents: LatentsConfig

    def distillation(self, loop: LoopConfig) -> DistillConfig:
        """The playground's recipe on it, with a batch of 4."""
        rate = OptimConfig(lr=1e-3, warmup=1, decay=0.0, betas=(0.0, 0.99))
        return replace(
            usual_runs.distill(),
            loop=loop, model=self.folder, latents=self.latents, student=rate, assistant=rate, discriminator=rate,
            network="transformer", batch=4, ratio=2, warmup=0, adversary_delay=0,
        )  # fmt: skip


@pytest.fixture(scope="session")
def few_clips() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nearstep.data.latents.SHARD", 8)
        patch.setattr("nearstep.data.latents._ENCODED_TOGETHER", 8)
        patch.setattr("nearstep.train.stages.codec._STATISTICS_CLIPS", 16)
        patch.setattr("nearstep.train.stages.shared.PREVIEWS", 2)
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, few_clips: None) -> TinyModel:
    folder, latents = (tmp_path_factory.mktemp(name) for name in ("model", "latents"))
    write_untrained(folder, PLAYGROUND)
    config = LatentsConfig(folder=latents, clips=8, world=PLAYGROUND)
    saved = VideoCodec.from_pretrained(folder / "vae")
    load_latents(config, saved, codec_name(saved))
    return TinyModel(folder, config)
