"""One update of a distillation, whole as in training, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.sizes import STRIDE, Size, prompt, write_model
from nearstep.data.prompts import PromptsConfig
from nearstep.recipes import wan
from nearstep.train.distill.networks import players
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.parallel import Ranks
from nearstep.train.stages.shared import open_model

CPU = torch.device("cpu")
STEPS = 1
"""n of the update whose gradients are compared: the shortest that has an adversary."""


def config(recipe: DistillConfig, size: Size, folder: Path, grid: tuple[int, int], frames: int) -> DistillConfig:
    """The recipe on the model in ``folder``, one clip at a time, all of it from the first step."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(prompt(size.prompt - index) for index in range(4)) + "\n")
    height, width = grid
    channels = 16
    latents = PromptsConfig(files=(prompts,), frames=frames, channels=channels, height=height, width=width)
    return replace(
        recipe,
        loop=replace(recipe.loop, folder=folder / "run"),
        model=folder / "model",
        latents=latents,
        text_cache=folder / "text",
        batch=1,
        micro=1,
        chunk_frames=size.chunk,
        warmup=0,
        alone=0,
    )


def gradients(size: Size, folder: Path, device: torch.device, *, autocast: bool = False) -> dict[str, Tensor]:
    """Who learns -> its first gradient, of wan.distill on few layers and small latents."""
    shallow = replace(size, network={**size.network, "num_layers": size.layers})
    if not (folder / "model").is_dir():
        write_model(
            replace(shallow, height=STRIDE * size.small[0], width=STRIDE * size.small[1]), folder / "model", CPU
        )
    asked = replace(config(wan.distill(), shallow, folder, size.small, 2 * size.chunk), counts=(STEPS,), ratio=1)
    asked = replace(asked, autocast=autocast, teacher_dtype="float32")
    here = Ranks(0, 1, device)
    stage = DistillStage.__new__(DistillStage)
    stage.begin(asked, here, _opened(asked, device), players(asked, here))
    found: dict[str, Tensor] = {}
    for name, optimizer in stage.optimizers.items():
        optimizer.apply = _noting(name, optimizer, found)
    stage.step(0)
    return found


def _opened(asked: DistillConfig, device: torch.device) -> Sequence[Any]:
    """Codec, text and prompts, there: what open_model finds belongs to the process's own device."""
    codec, text, clips = open_model(asked.model, asked.latents, asked.text_cache)
    return codec, lambda captions: text(captions).to(device), clips


def _noting(name: str, optimizer: Any, found: dict[str, Tensor]) -> Any:
    """The optimizer's ``apply``, which first writes the gradient down, the first time."""
    apply = optimizer.apply

    def noting(loss: Tensor, index: int) -> dict[str, Tensor]:
        parts = [p.grad.detach().flatten().cpu() for p in optimizer.parameters if p.grad is not None]
        found.setdefault(name, torch.cat(parts))
        return apply(loss, index)

    return noting
