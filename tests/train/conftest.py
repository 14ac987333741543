"""A random model of every class at the smallest size, as a folder, and the latents of a few clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nearstep.data.latents import LatentsConfig, load_latents
from nearstep.models.folder import Settings
from nearstep.nets.codec import VideoCodec
from nearstep.nets.transformer import VideoTransformer
from nearstep.playground import PLAYGROUND
from nearstep.recipes import playground
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.export import export_model
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.stages.codec import CodecSize
from nearstep.train.stages.shared import codec_name
from nearstep.train.stages.teacher import TextSize

TEXT = TextSize(d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1, length=24)
CODEC = CodecSize(
    base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1,
    temperal_downsample=(True, True), patch_size=2,
)  # fmt: skip


@dataclass(frozen=True)
class TinyModel:
    """Where it lies."""

    folder: Path
    latents: LatentsConfig

    def distillation(self, loop: LoopConfig) -> DistillConfig:
        """The playground's recipe on it, with a batch of 4."""
        rate = OptimConfig(lr=1e-3, warmup=1, decay=0.0, betas=(0.0, 0.99))
        return replace(
            playground.distill(),
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
    torch.manual_seed(0)
    folder, latents = (tmp_path_factory.mktemp(name) for name in ("model", "latents"))
    codec = VideoCodec(CODEC.build()).eval().requires_grad_(False)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2}
    channels = {"in_channels": codec.channels, "out_channels": codec.channels, "text_dim": TEXT.d_model}
    networks = {
        "transformer": VideoTransformer(**sizes, **channels, chunk_frames=3),
        "teacher": VideoTransformer(**sizes, **channels),
    }
    text, settings = TEXT.build(PLAYGROUND.vocabulary()), Settings()
    export_model(folder, networks=networks, text=text, codec=codec, shift=3.0, settings=settings)
    config = LatentsConfig(folder=latents, clips=8, world=PLAYGROUND)
    saved = VideoCodec.from_pretrained(folder / "vae")
    load_latents(config, saved, codec_name(saved))
    return TinyModel(folder, config)
