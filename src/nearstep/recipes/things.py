"""The world of things: its runs, in order; each starts from the result of the one before, and any can be resumed.

nearstep train things.codec
"""

from __future__ import annotations

from pathlib import Path

from nearstep.things import THINGS_WORLD
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.stages.codec import CodecConfig, CodecSize, CropPhase

_RUNS = Path("runs")


def codec() -> CodecConfig:
    """Stage 1: the codec, from nothing."""
    return CodecConfig(
        loop=LoopConfig(folder=_RUNS / "codec", steps=6200, save_every=100, preview_every=250),
        optim=OptimConfig(lr=2e-3, warmup=20, decay=0.35, muon=True),
        phases=(
            CropPhase(3000, 1, 64, 32),
            CropPhase(400, 5, 12, 32),
            CropPhase(600, 13, 5, 32),
            CropPhase(300, 33, 2, 32),
            CropPhase(1400, 17, 4, 32),
            CropPhase(500, 33, 1, THINGS_WORLD.size),
        ),
        size=CodecSize(
            base_dim=24,
            decoder_base_dim=32,
            z_dim=16,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            patch_size=2,
        ),
        world=THINGS_WORLD,
        first_weight=4.0,
        foreground_weight=3.0,
    )
