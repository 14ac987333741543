"""A stage's result as a model folder in diffusers' layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.files import keep_folder, open_to_readers, write_json
from nearstep.models.card import Card, model_index, write_card
from nearstep.models.empty import empty_network
from nearstep.models.folder import INDEX, Settings
from nearstep.nets.codec import VideoCodec
from nearstep.nets.text import PromptEncoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.train import adapters
from nearstep.train.adapters import LoraFields

KEPT = ("vae", "text_encoder", "tokenizer")
"""What a causal run or a distillation does not change."""


def check_settings(settings: object) -> None:
    """Refuse settings that are no checked ones, before a run that would end with them.

    Raises:
        NearstepError: naming what is wrong in them, or how to write them.
    """
    if isinstance(settings, Settings):
        return
    if isinstance(settings, Mapping):
        Settings.of(settings)  # which names what is misspelt or impossible
    raise NearstepError(f"settings={settings!r} is a {type(settings).__name__}; write Settings.of({{...}})")


def export_model(
    folder: Path,
    *,
    networks: Mapping[str, VideoTransformer],
    text: PromptEncoder,
    codec: VideoCodec,
    shift: float,
    settings: Settings,
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
        settings: what the model was made for; stands under "nearstep" in the index.
        dtype: of the stored weights; whoever loads them chooses the type to compute in.
        card: what the model card should say that the folder does not.
    """
    for name, network in networks.items():
        _write_network(folder / name, network.config, network.state_dict(), dtype)
    _in_dtype(text.encoder, dtype).save_pretrained(folder / "text_encoder")
    text.tokenizer.save_pretrained(folder / "tokenizer")
    VideoCodec(_in_dtype(codec.vae, dtype)).save_pretrained(folder / "vae")
    configs = {name: network.config for name, network in networks.items()}
    _close(folder, configs, shift, settings, card or Card())


def export_student(
    folder: Path,
    *,
    model: Path,
    unchanged: Mapping[str, str],
    networks: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]],
    fields: LoraFields,
    shift: float,
    settings: Settings,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the result of a run that changed networks alone: all else is the model folder's own, as it is there.

    Args:
        folder: where to.
        model: the folder that the run started from; its codec, text encoder and tokenizer are kept.
        unchanged: sub-folder -> the model's sub-folder of a network that did not change.
        networks: sub-folder -> configuration and weights. Those with an adapter are written merged, and the
            adapter of ``transformer`` beside them as ``lora/``.
        fields: of the adapters.
        shift: of the schedules.
        settings: what the model was made for.
        dtype: of the networks' stored weights.
    """
    for name, source in {**{part: part for part in KEPT}, **unchanged}.items():
        keep_folder(model / source, folder / name)
    for name, (config, state) in networks.items():
        _write_network(folder / name, config, state, dtype, fields)
    if adapters.adapted_layers(state := networks["transformer"][1]):
        adapters.write_adapter(state, fields, folder / adapters.FOLDER)
    _close(folder, {name: config for name, (config, _) in networks.items()}, shift, settings, Card(), also=[*unchanged])


def _write_network(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    fields: LoraFields | None = None,
) -> None:
    if fields is not None and adapters.adapted_layers(state):
        state = adapters.merged(state, fields)
    network = empty_network(config)  # a second one in float32 would be in the way
    network.load_state_dict({name: value.detach().to("cpu", dtype) for name, value in state.items()}, assign=True)
    network.register_to_config(_name_or_path="")  # where it was loaded from is nobody's business
    network.save_pretrained(folder)


def _close(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    shift: float,
    settings: Settings,
    card: Card,
    also: Sequence[str] = (),
) -> None:
    """Scheduler, model card and index."""
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    main = configs.get("transformer") or next(iter(configs.values()))
    plan = settings.default_plan if main["chunk_frames"] is not None else None
    write_card(folder, card, config=main, plan=plan, library="nearstep")
    write_json(folder / INDEX, model_index([*configs, *also], settings.stated()))
    open_to_readers(folder, folder / INDEX)


def _in_dtype(module: Any, dtype: torch.dtype) -> Any:
    # A copy, because the run goes on with the float32 weights.
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied
