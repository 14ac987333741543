"""A stage's result as a model folder in diffusers' layout."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import nearstep
from nearstep.card import Card, model_index, write_card
from nearstep.nets.codec import VideoCodec
from nearstep.nets.text import PromptEncoder
from nearstep.nets.text_cache import CachedPromptEncoder
from nearstep.nets.transformer import VideoTransformer


def export_model(
    folder: Path,
    *,
    networks: Mapping[str, VideoTransformer],
    text: PromptEncoder | CachedPromptEncoder,
    codec: VideoCodec,
    shift: float,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    card: Card | None = None,
) -> None:
    """Write every component and model_index.json, the index last, so that a folder that has one is complete.

    Args:
        folder: where to; components already there are replaced.
        networks: sub-folder -> network (``transformer``, ``teacher``).
        text: tokenizer and encoder.
        codec: pixels and latents.
        shift: of the schedules.
        settings: what the model was made for (stream/folder.py Settings), under "nearstep" in the index.
        dtype: of the stored weights; whoever loads them chooses the type to compute in.
        card: what the model card should say that the folder does not.
    """
    for name, network in networks.items():
        copied = _in_dtype(network, dtype)
        copied.register_to_config(_name_or_path="")  # where it was loaded from is nobody's business
        copied.save_pretrained(folder / name)
    _in_dtype(text.encoder, dtype).save_pretrained(folder / "text_encoder")
    text.tokenizer.save_pretrained(folder / "tokenizer")
    VideoCodec(_in_dtype(codec.vae, dtype)).save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    main = networks.get("transformer") or next(iter(networks.values()))
    causal = main.config["chunk_frames"] is not None
    plan = settings.get("default_plan", "4") if causal else None
    write_card(folder, card or Card(), config=main.config, plan=plan, library="nearstep")
    index = model_index([*networks], settings, nearstep.__version__)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _in_dtype(module: Any, dtype: torch.dtype) -> Any:
    # A copy, because the run goes on with the float32 weights.
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied
