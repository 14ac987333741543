"""One update of a distillation, whole as in training, on any device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu.sizes import STRIDE, Size, prompt, write_model
from nearstep.data.prompts import PromptsConfig
from nearstep.nets.codec import VideoCodec
from nearstep.protocols import TextEncoder
from nearstep.recipes import wan
from nearstep.train.distill.networks import Networks, load_networks
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.distill.update import DistillUpdate
from nearstep.train.parallel import Ranks
from nearstep.train.stages.shared import Clips, open_model

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
        adversary_delay=0,
    )


def gradients(size: Size, folder: Path, device: torch.device, *, autocast: bool = False) -> dict[str, Tensor]:
    """Who learns -> its first gradient, of wan.distill on few layers and small latents."""
    shallow = replace(size, network={**size.network, "num_layers": size.layers})
    if not (folder / "model").is_dir():
        write_model(
            replace(shallow, height=STRIDE * size.small[0], width=STRIDE * size.small[1]), folder / "model", CPU
        )
    made = config(wan.distill(), shallow, folder, size.small, 2 * size.chunk)
    adversary = made.adversary and replace(made.adversary, penalty_products="float32")  # TF32 is a kind of its own here
    made = replace(made, step_counts=(STEPS,), ratio=1, autocast=autocast, teacher_dtype="float32", adversary=adversary)
    here = Ranks(0, 1, device)
    codec, text, clips = _opened(made, device)
    networks = load_networks(made, here, codec)
    update = DistillUpdate(made, networks, text=text, clips=clips, codec=codec, here=here)
    gamma = networks.adversary.config.gamma_at(0.0) if networks.adversary else 0.0
    plan, learners = update.plan(0), update.noise("learners", 0, 0)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        batch = update.sample(plan, 0, update.rows, graph=True)
        update.student(plan, batch, update.noise("student", 0))
        update.assistant(batch.detached(), learners)
        update.discriminator(plan, batch.detached(), learners, gamma)
    return {name: _gradient(network) for name, network in learning(networks).items()}


def learning(networks: Networks) -> dict[str, nn.Module]:
    """Who learns, by name."""
    heads = {"discriminator": networks.adversary.heads} if networks.adversary else {}
    return {"student": networks.student, "assistant": networks.assistant, **heads}


def _gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.detach().flatten().cpu() for p in network.parameters() if p.grad is not None])


def _opened(made: DistillConfig, device: torch.device) -> tuple[VideoCodec, TextEncoder, Clips]:
    """Codec, text and prompts, there: what open_model finds belongs to the process's own device."""
    codec, text, clips = open_model(made.model, made.latents, made.text_cache)
    return codec.to(device), lambda prompts: text(prompts).to(device), clips
