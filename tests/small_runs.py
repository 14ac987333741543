"""What tests of the training stages share: the smallest runs, cut and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from untrained import CODEC

from nearstep.recipes import playground
from nearstep.train.loop import LoopConfig
from nearstep.train.phases import Phase
from nearstep.train.stages.codec import CodecConfig


def loop(folder: Path, steps: int = 4) -> LoopConfig:
    return LoopConfig(folder=folder, steps=steps, log_every=2, save_every=2, preview_every=100, tensorboard=False)


def tiny_codec(folder: Path, steps: int = 4) -> CodecConfig:
    phases = (Phase(steps // 2, 1, 3, 32), Phase(steps - steps // 2, 5, 2, 32))
    return replace(playground.codec(), loop=loop(folder, steps), size=CODEC, phases=phases)


def weights(model: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(model.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_equal(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def cut(config) -> None:
    """Run the first half, then lose the process: what is on disk is the checkpoint of step 2."""
    half = replace(config, loop=replace(config.loop, minutes=1e-9, save_every=1))
    half.run()
