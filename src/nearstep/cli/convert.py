"""``nearstep convert``: any published Wan2.1 or student weights to a model folder, and ours back out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import LoraAlpha, LoraOption, chosen_loras, optional
from nearstep.cli.text import note
from nearstep.models.presets import preset_of

_CAUSAL = ("chunk_frames", "window_frames", "sink_frames")
WAN_LICENCE = "apache-2.0"
_SETTINGS = ("grid", "default_plan")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a model: Wan2.1's release, a diffusers folder, or a network's file, to a folder in one of three layouts.

    Where SRC has only a network, --base names a model that gives codec, text encoder and tokenizer.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """A folder, a weights file (.safetensors, .pt, .pth, .bin), or a hub id; NAME=FILE for a published student's."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """A new folder."""
    to: Literal["nearstep", "diffusers", "official"] = "nearstep"
    """Layout; official is the network alone, under the names of Wan2.1's release."""
    base: Annotated[str | None, optional("MODEL", "none")] = None
    """A model in any layout that gives what SRC lacks."""
    role: Annotated[str | None, optional("NAME", "generator_ema, generator or model, the first there is")] = None
    """Which network of a checkpoint file."""
    lora: LoraOption = ()
    """LoRA files or folders of any writer, merged into the network; FILE:0.8 counts 0.8 times."""
    lora_alpha: LoraAlpha = None
    """Their alpha, in place of the one that they state."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, optional("{float32,bfloat16}", "as saved")] = None
    """Precision of network and text encoder; the codec stays as it is."""
    chunk_frames: Annotated[int | None, optional("N", "SRC's own; none, bidirectional, for a file")] = None
    """Latent frames that the network denoises together."""
    window_frames: Annotated[int | None, optional("N", "SRC's own, or all")] = None
    """Newest latent frames that a chunk sees."""
    sink_frames: Annotated[int | None, optional("N", "SRC's own, or 0")] = None
    """First latent frames that every chunk sees in addition."""
    shift: Annotated[float | None, optional("K", "SRC's own; 5 for a causal file; else the base's")] = None
    """The shift k of the schedule."""
    grid: Annotated[int | None, optional("N", "SRC's own, or 4")] = None
    """Steps of the grid a student was distilled on."""
    default_plan: Annotated[str | None, optional("PLAN", "SRC's own, or 4")] = None
    """A student's plan unless another is asked for."""
    head_dim: Annotated[int | None, optional("N", "128, Wan2.1's")] = None
    """Width of a head, where no configuration says it."""
    licence: Annotated[str, tyro.conf.arg(metavar="NAME")] = WAN_LICENCE
    """Licence of the weights, for the model card; Wan2.1's is apache-2.0, a student's may differ."""
    base_model: Annotated[str | None, optional("OWNER/NAME", "none")] = None
    """Hub id of what the model was made from, for the model card."""
    results: Annotated[Path | None, optional("FILE.json", "none")] = None
    """Results of nearstep evaluate, for the model card."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and convert."""
    convert(parsed(Convert, "nearstep convert", arguments, flags=()))


def convert(options: Convert) -> None:
    """Look at all of what is options, then write."""
    options, usual = _as_published(options)
    loras = chosen_loras(options.lora, options.lora_alpha)
    import torch

    from nearstep.models import convert as work
    from nearstep.models.card import Card, results_table
    from nearstep.models.layouts import open_layout
    from nearstep.models.student import Causality

    if options.results:
        results_table(options.results)  # before anything is read that takes minutes
    network, settings = _given(options, _CAUSAL), _given(options, _SETTINGS)
    layout = open_layout(options.source, role=options.role, usual=usual, head_dim=options.head_dim)
    own = layout.transformer.config.get("chunk_frames") if layout.transformer else None
    causality = {**({"chunk_frames": own} if own else {}), **network, **settings, **_given(options, ("shift",))}
    Causality(**causality)  # refuses what no network has
    shift = options.shift
    if (
        options.chunk_frames and layout.shift is None
    ):  # a causal student's, rather than that of a base made for many steps
        shift = shift or Causality.shift
    if options.base is not None:
        layout = layout.over(open_layout(options.base, head_dim=options.head_dim))
    layout = work.with_causality(layout, network, settings, shift)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    layout = work.with_loras(layout, loras, dtype)
    recipe = {"converted from": Path(options.source).name, **_given(options, ("role", "dtype", *_CAUSAL, "shift"))}
    if loras:
        recipe["merged LoRA"] = ", ".join(f"{lora.path.name}:{lora.strength:g}" for lora in loras)
    card = Card(
        title=options.destination.resolve().name,
        licence=options.licence,
        base_model=options.base_model,
        recipe=recipe,
        results=options.results,
    )
    work.convert(layout, options.destination, to=options.to, card=card, dtype=dtype)
    print(options.destination)
    if options.to == "diffusers" and layout.transformer and layout.transformer.config.get("chunk_frames"):
        note("diffusers' WanPipeline runs this causal network bidirectionally, as it was not trained")


def _as_published(options: Convert) -> tuple[Convert, str | None]:
    """The options of NAME=FILE with that student's values where none is asked for, and its usual role."""
    preset, path = preset_of(options.source)
    if preset is None:
        return options, None
    usual = preset.role
    stated = {name: value for name, value in preset.options.items() if name != "usual_role" and value is not None}
    filled = {name: value for name, value in stated.items() if getattr(options, name) is None}
    licence = preset.licence if options.licence == WAN_LICENCE else options.licence
    return replace(options, source=path, licence=licence, **filled), usual


def _given(options: Convert, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}
