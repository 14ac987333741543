"""Write a model's components as a folder: ours, diffusers', or a network as Wan2.1 releases it.

Weights are copied tensor by tensor in shards, so that a model larger than memory goes through; those that stay as they
are, in files that are already laid out so, are linked (files.link_or_copy). The folder appears under its name when it
is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nearstep.errors import NearstepError
from nearstep.files import link_or_copy, open_to_readers, replacing_folder, write_json
from nearstep.flow.plan import make_plan
from nearstep.models.card import LIBRARIES, Card, model_index, write_card
from nearstep.models.empty import arguments_of, empty_codec, empty_network, empty_text_encoder, shapes_of
from nearstep.models.fit import check_parts
from nearstep.models.folder import CONFIG, INDEX, SCHEDULER_CONFIG, Settings, read_header, weight_files
from nearstep.models.layouts import SHIFT, Component, Layout
from nearstep.models.lora_choice import LoraFile
from nearstep.models.lora_files import open_loras
from nearstep.models.wan import official_name
from nearstep.models.weights import Weights

T = TypeVar("T")

SHARD_BYTES = 2 * 1024**3
_CAUSAL = ("chunk_frames", "window_frames", "sink_frames")
_STEMS = {"text_encoder": "model"}  # transformers' name for a weights file; diffusers' is the default
_STEM = "diffusion_pytorch_model"
_TIED = "encoder.embed_tokens.weight"  # UMT5's second name for shared.weight, which no file need hold


def convert(layout: Layout, folder: Path, *, to: str, card: Card, dtype: torch.dtype | None = None) -> None:
    """Write ``layout`` to ``folder``.

    Args:
        layout: complete, or the network alone for ``official``.
        folder: absent or empty; complete or absent afterwards.
        to: a key of :data:`WRITERS`.
        card: what the model card should say that the folder does not.
        dtype: of network and text encoder; by default, and always for the codec, as they are.

    Raises:
        NearstepError: for weights that do not fit their configuration, components that are missing, a folder in use.
    """
    if to not in WRITERS:
        raise NearstepError(f"there is no layout {to!r}; use one of {', '.join(WRITERS)}")
    needed = ["transformer"] if to == "official" else ["transformer", "vae", "text_encoder", "tokenizer"]
    if missing := [name for name in needed if name in layout.missing]:
        raise NearstepError(f"the source has no {', '.join(missing)}; name a model that has with --base")
    _check(layout, needed)
    if dtype is not None:
        layout = replace(
            layout, transformer=_typed(layout.transformer, dtype), text_encoder=_typed(layout.text_encoder, dtype)
        )
    with replacing_folder(folder) as part:
        WRITERS[to](layout, part, card)
        open_to_readers(part, part / "README.md")


def with_causality(
    layout: Layout, network: Mapping[str, Any], settings: Mapping[str, Any], shift: float | None
) -> Layout:
    """The layout with what is set about chunks, window, plan and shift."""
    if layout.transformer is None:
        return layout
    changed = replace(layout.transformer, config={**layout.transformer.config, **network})
    own, shift = Settings.of({**layout.settings, **settings}), shift or layout.shift
    if (chunk := changed.config.get("chunk_frames")) is not None:  # a plan that does not parse is found here
        make_plan(own.default_plan, frames=chunk, chunk_frames=chunk, shift=shift or SHIFT, grid=own.grid)
    return replace(layout, transformer=changed, settings={**layout.settings, **settings}, shift=shift)


def with_loras(layout: Layout, files: Sequence[LoraFile], dtype: torch.dtype | None = None) -> Layout:
    """The layout with adapters merged into the network as it is read.

    Args:
        layout: with a network.
        files: the adapters.
        dtype: of the network that is written, so that the sum is rounded once; by default each weight's own.

    Raises:
        NearstepError: naming an adapter that fits no weight, or what it holds that cannot be applied.
    """
    if not files:
        return layout
    if layout.transformer is None:
        raise NearstepError("a LoRA changes a network, and the source has none")
    weights = layout.transformer.weights
    changes = open_loras(files, weights.shapes)
    merged = weights.mapped(
        lambda name, value: changes[name].merged_into(name, value, dtype) if name in changes else value
    )
    return replace(layout, transformer=Component(config=layout.transformer.config, weights=merged))


def _nearstep(layout: Layout, folder: Path, card: Card) -> None:
    config = _components(layout, folder, "VideoTransformer")
    settings = dict(layout.settings)
    causal = config.get("chunk_frames") is not None
    plan = settings.get("default_plan", Settings.default_plan) if causal else None
    write_card(folder, card, config=config, plan=plan, library="nearstep")
    write_json(folder / INDEX, model_index(["transformer"], settings))


def _diffusers(layout: Layout, folder: Path, card: Card) -> None:
    config = _components(layout, folder, "WanTransformer3DModel", without=_CAUSAL)
    write_card(folder, card, config=config, plan=None, library="diffusers")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": diffusers.__version__,
        "transformer": ("diffusers", "WanTransformer3DModel"),
        **LIBRARIES,
    }
    write_json(folder / INDEX, index)


def _official(layout: Layout, folder: Path, card: Card) -> None:
    network = _there(layout.transformer)
    _write_weights(folder, _STEM, network.weights.renamed(official_name))
    write_json(folder / CONFIG, _official_config(network.config))
    write_card(folder, card, config=network.config, plan=None, library="wan")


WRITERS: Mapping[str, Callable[[Layout, Path, Card], None]] = {
    "nearstep": _nearstep,
    "diffusers": _diffusers,
    "official": _official,
}
"""Layout -> what writes it."""


def _components(layout: Layout, folder: Path, kind: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything but the index; returns the network's configuration."""
    network, codec = _there(layout.transformer), _there(layout.vae)
    config = _whole(empty_network(network.config), network.config)
    config = {"_class_name": kind, **{k: v for k, v in config.items() if k not in (*without, "_class_name")}}
    _component(folder, "transformer", replace(network, config=config))
    _component(folder, "vae", replace(codec, config=_whole(empty_codec(codec.config), codec.config)))
    _component(folder, "text_encoder", _there(layout.text_encoder))
    (folder / "tokenizer").mkdir()
    for file in _there(layout.tokenizer).iterdir():
        if file.is_file():
            shutil.copyfile(file, folder / "tokenizer" / file.name)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / SCHEDULER_CONFIG, {**scheduler, "shift": layout.shift or SHIFT})
    return config


def _whole(built: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults that it leaves out: a folder is read without its classes too."""
    return {**arguments_of(built.config), **given}


def _component(folder: Path, name: str, part: Component) -> None:
    (folder / name).mkdir()
    if part.folder is None:
        _write_weights(folder / name, _STEMS.get(name, _STEM), part.weights)
    else:  # the text encoder alone is 11 GB
        for weight, value in part.weights.items():
            check_finite(weight, value, part.folder)
        for file in (*weight_files(part.folder), *part.folder.glob("*.safetensors.index.json")):
            link_or_copy(file, folder / name / file.name)
    write_json(folder / name / CONFIG, part.config)


def check_finite(name: str, value: Tensor, source: Path) -> None:
    """Refuse a weight that is not finite: it is damaged, or did not fit into half precision.

    Raises:
        NearstepError: naming it.
    """
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise NearstepError(f"{source}: {name} holds NaN or infinity, which are not finite; it is damaged")


def _write_weights(folder: Path, stem: str, weights: Weights) -> None:
    """Safetensors in shards, each written when it is full, and an index where there is more than one."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append([*held])
        held.clear()

    for name, value in weights.items():
        bytes_ = value.numel() * value.element_size()
        if held and size + bytes_ > SHARD_BYTES:
            flush()
            size = 0
        check_finite(name, value, weights.source)
        held[name] = value.contiguous()
        size, total = size + bytes_, total + bytes_
    flush()
    count, many = len(shards), len(shards) > 1
    names = [f"{stem}-{i:05}-of-{count:05}.safetensors" if many else f"{stem}.safetensors" for i in range(1, count + 1)]
    for index, name in enumerate(names):
        (folder / f"{index}.part").rename(folder / name)
    if many:
        homes = {weight: file for file, inside in zip(names, shards, strict=True) for weight in inside}
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": homes})


def _check(layout: Layout, needed: list[str]) -> None:
    """Weights against the networks that their configurations build, without building their numbers."""
    network = _there(layout.transformer)
    beside = {name: getattr(layout, name) for name in ("vae", "text_encoder") if name in needed}
    parts = {name: part.config for name, part in beside.items() if part is not None}
    check_parts(network.config, parts.get("vae"), parts.get("text_encoder"), network.weights.source)
    network.weights.check(shapes_of(empty_network(network.config)), "its configuration")
    for name in ("vae", "text_encoder"):
        if name in needed:
            component: Component = _there(getattr(layout, name))
            shapes = shapes_of(_EMPTY[name](component.config))
            if _TIED not in component.weights.shapes:
                shapes.pop(_TIED, None)
            component.weights.check(shapes, f"the {name.replace('_', ' ')} of its configuration")


_EMPTY: Mapping[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "vae": empty_codec,
    "text_encoder": empty_text_encoder,
}


def _official_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """WanModel's config.json (Wan-Video/Wan2.1, wan/modules/model.py)."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "patch_size": list(config["patch_size"]),
        "text_len": 512,
        "in_dim": config["in_channels"],
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "text_dim": config["text_dim"],
        "out_dim": config["out_channels"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "window_size": [-1, -1],
        "qk_norm": True,
        "cross_attn_norm": config["cross_attn_norm"],
        "eps": config["eps"],
    }


@dataclass(frozen=True)
class _Cast:
    dtype: torch.dtype

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def _typed(part: Component | None, dtype: torch.dtype) -> Component | None:
    if part is None or (part.folder is not None and _types(part.folder) == {str(dtype).removeprefix("torch.")}):
        return part
    name = str(dtype).removeprefix("torch.")
    cast = part.weights.mapped(_Cast(dtype), dict.fromkeys(part.weights, name))
    return Component(config=part.config, weights=cast)


def _types(folder: Path) -> set[str]:
    return {info.dtype for file in weight_files(folder) for info in read_header(file).values()}


def _there(component: T | None) -> T:
    if component is None:
        raise NearstepError("a component is missing")
    return component
