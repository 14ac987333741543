"""``nearstep convert``: any published Wan2.1 or student weights to a model folder, and ours back out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nearstep.cli.options import optional
from nearstep.cli.text import note
from nearstep.errors import NearstepError

_CAUSAL = ("chunk_frames", "window_frames", "sink_frames")
_SETTINGS = ("grid", "default_plan")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a model: Wan2.1's release, a diffusers folder, or a network's file, to a folder in one of three layouts.

    Where SRC has only a network, --base names a model that gives codec, text encoder and tokenizer.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A folder, a weights file (.safetensors, .pt, .pth, .bin), or a hub id."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """A new folder."""
    to: Literal["nearstep", "diffusers", "official"] = "nearstep"
    """Layout; official is the network alone, under the names of Wan2.1's release."""
    base: Annotated[str | None, optional("MODEL", "none")] = None
    """A model in any layout that gives what SRC lacks."""
    role: Annotated[str | None, optional("NAME", "generator_ema, generator or model, the first there is")] = None
    """Which network of a checkpoint file."""
    lora: Annotated[Path | None, optional("FILE", "none")] = None
    """A LoRA as peft saves it, merged into the network."""
    lora_alpha: Annotated[float | None, optional("A", "its rank")] = None
    """Its alpha."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, optional("{float32,bfloat16}", "as saved")] = None
    """Of network and text encoder; the codec stays as it is."""
    chunk_frames: Annotated[int | None, optional("N", "SRC's own; none, bidirectional, for a file")] = None
    """Latent frames that the network denoises together."""
    window_frames: Annotated[int | None, optional("N", "SRC's own, or all")] = None
    """Newest latent frames that a chunk sees."""
    sink_frames: Annotated[int | None, optional("N", "SRC's own, or 0")] = None
    """First latent frames that every chunk sees in addition."""
    shift: Annotated[float | None, optional("K", "SRC's own; 5 for a causal file; else the base's")] = None
    """Of the schedule."""
    grid: Annotated[int | None, optional("N", "SRC's own, or 4")] = None
    """Steps of the grid a student was distilled on."""
    default_plan: Annotated[str | None, optional("PLAN", "SRC's own, or 4")] = None
    """A student's plan unless another is asked for."""
    head_dim: Annotated[int | None, optional("N", "128, Wan2.1's")] = None
    """Width of a head, where no configuration says it."""
    licence: Annotated[str, tyro.conf.arg(metavar="NAME")] = "apache-2.0"
    """Of the weights, for the model card; Wan2.1's is apache-2.0, a student's may differ."""
    base_model: Annotated[str | None, optional("OWNER/NAME", "none")] = None
    """Hub id of what the model was made from, for the model card."""
    results: Annotated[Path | None, optional("FILE.json", "none")] = None
    """Results of nearstep evaluate, for the model card."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and convert."""
    convert(tyro.cli(Convert, prog="nearstep convert", args=arguments))


def convert(asked: Convert) -> None:
    """Look at all of what is asked, then write."""
    if asked.lora_alpha is not None and asked.lora is None:
        raise NearstepError(f"--lora-alpha {asked.lora_alpha:g} needs --lora FILE")
    import torch

    from nearstep.models import convert as work
    from nearstep.models.card import Card
    from nearstep.models.layouts import parts_of
    from nearstep.models.student import Causality

    network, settings = _given(asked, _CAUSAL), _given(asked, _SETTINGS)
    parts = parts_of(asked.source, role=asked.role, head_dim=asked.head_dim)
    own = parts.transformer.config.get("chunk_frames") if parts.transformer else None
    causality = {**({"chunk_frames": own} if own else {}), **network, **settings, **_given(asked, ("shift",))}
    Causality(**causality)  # refuses what no network has
    shift = asked.shift
    if asked.chunk_frames and parts.shift is None:  # a causal student's, rather than that of a base made for many steps
        shift = shift or Causality.shift
    if asked.base is not None:
        parts = parts.over(parts_of(asked.base, head_dim=asked.head_dim))
    parts = work.with_causality(parts, network, settings, shift)
    if asked.lora is not None:
        parts = work.with_lora(parts, asked.lora, alpha=asked.lora_alpha)
    recipe = {"converted from": Path(asked.source).name, **_given(asked, ("role", "dtype", *_CAUSAL, "shift"))}
    if asked.lora is not None:
        recipe["merged LoRA"] = asked.lora.name
    card = Card(
        title=asked.destination.resolve().name,
        licence=asked.licence,
        base_model=asked.base_model,
        recipe=recipe,
        results=asked.results,
    )
    dtype = getattr(torch, asked.dtype) if asked.dtype else None
    work.convert(parts, asked.destination, to=asked.to, card=card, dtype=dtype)
    print(asked.destination)
    if asked.to == "diffusers" and parts.transformer and parts.transformer.config.get("chunk_frames"):
        note("diffusers' WanPipeline runs this causal network bidirectionally, as it was not trained")


def _given(asked: Convert, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(asked, name)) is not None}
