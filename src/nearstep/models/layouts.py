"""A model in any published layout, as components under our names: what is there, and what a base must add.

Layouts: a diffusers folder; Wan2.1's release (Wan-Video/Wan2.1, wan/text2video.py and configs: config.json with
diffusion_pytorch_model*.safetensors under official names, a pickled text encoder and codec, google/umt5-xxl);
a folder or file of one network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import path_of
from nearstep.json_files import above, check_fields, count
from nearstep.models.folder import CONFIG, EMBEDDED, INDEX, ModelFolder, read_json, shift_of, weight_files
from nearstep.models.networks import open_network
from nearstep.models.official import Shapes, codec_config, codec_name, text_config, text_name
from nearstep.models.quantised import dequantised, is_quantised
from nearstep.models.schema import check_component
from nearstep.models.wan import sizes_of
from nearstep.models.weights import Weights, open_weights

OFFICIAL_TEXT, OFFICIAL_CODEC = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
OFFICIAL_TOKENIZER = Path("google") / "umt5-xxl"
NETWORKS, OFFICIAL_NETWORKS = ("VideoTransformer", "WanTransformer3DModel"), ("WanModel", "CausalWanModel")
SHIFT = 5.0
"""Wan2.1's shift at 480p is 3 to 5; students are trained at 5 (docs/wan.md)."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network: its configuration and its weights."""

    config: Mapping[str, Any]
    weights: Weights
    folder: Path | None = None
    """Where these weights lie as diffusers lays them out, if nothing about them was changed."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a model has; None for what it lacks."""

    transformer: Component | None = None
    vae: Component | None = None
    text_encoder: Component | None = None
    tokenizer: Path | None = None
    shift: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def over(self, base: Layout) -> Layout:
        """These components, and a base's where there are none."""
        absent = {entry.name: getattr(base, entry.name) for entry in fields(self) if not getattr(self, entry.name)}
        return replace(self, **absent)

    @property
    def missing(self) -> list[str]:
        """Components that a runnable model still needs."""
        return [name for name in ("transformer", "vae", "text_encoder", "tokenizer") if getattr(self, name) is None]


def open_layout(
    source: str | Path, *, role: str | None = None, usual: str | None = None, head_dim: int | None = None
) -> Layout:
    """Open a model in any layout; weights are only looked at.

    Args:
        source: a folder, a weights file, "playground" or a hub id.
        role: of a checkpoint file: which of its networks.
        usual: of a checkpoint file: which is looked for before all others.
        head_dim: width of a head, where no configuration says it; Wan's 128 by default.

    Raises:
        NearstepError: naming the file that is wrong, or what the folder is not.
    """
    path, embedded = path_of(source), str(source) == EMBEDDED
    if path.is_file() and not embedded:
        return Layout(transformer=_network(path, role, head_dim, usual=usual))
    if role is not None:
        raise NearstepError(f"--role {role} chooses within a checkpoint file, and {source} is none; leave it out")
    if embedded or not path.is_dir() or (path / INDEX).exists():
        return _diffusers(ModelFolder.open(source))
    return _folder(path, head_dim)


def _folder(path: Path, head_dim: int | None) -> Layout:
    """A folder without an index: a release, or one network."""
    config = read_json(path / CONFIG) if (path / CONFIG).exists() else {}
    kind = config.get("_class_name")
    if kind in NETWORKS:
        check_component("transformer", config, path / CONFIG)
        return Layout(transformer=_component(path, config))
    if kind is not None and kind not in OFFICIAL_NETWORKS:
        raise NearstepError(f"{path / CONFIG} is a {kind}, not a network of Wan2.1 ({', '.join(NETWORKS)}, WanModel)")
    official = [path / OFFICIAL_TEXT, path / OFFICIAL_CODEC]
    tokenizer = path / OFFICIAL_TOKENIZER
    if not any(path.glob("*.safetensors")) and not any(file.exists() for file in official) and not _pickles(path):
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        raise NearstepError(f"{path} is no model: neither {INDEX} nor weights; it holds {held or 'nothing'}")
    return Layout(
        transformer=_network(path, None, head_dim, config),
        text_encoder=_renamed(official[0], text_name, text_config),
        vae=_renamed(official[1], codec_name, codec_config),
        tokenizer=tokenizer if tokenizer.is_dir() else None,
    )


def _pickles(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if file.suffix in (".pt", ".bin") or file.name == "model.pth"]


def _network(
    path: Path,
    role: str | None,
    head_dim: int | None,
    stated: Mapping[str, Any] | None = None,
    usual: str | None = None,
) -> Component:
    """A network whose sizes are those of its weights; ``stated`` is the release's config.json."""
    weights, stated = open_network(path, role, usual=usual), stated or {}
    if head_dim is None and "num_heads" in stated:
        check_fields(stated, {"dim": count(), "num_heads": count(), "eps": above(0)}, path / CONFIG, needed=["dim"])
        head_dim = stated["dim"] // stated["num_heads"]
    try:
        sizes = sizes_of(weights.shapes, head_dim=head_dim or 128)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from None
    return Component(config={**sizes, **({"eps": stated["eps"]} if "eps" in stated else {})}, weights=weights)


def _renamed(file: Path, rename: Callable[[str], str], config: Callable[[Shapes], dict[str, Any]]) -> Component | None:
    if not file.exists():
        return None
    weights = dequantised(open_weights(file)).renamed(rename)
    try:
        return Component(config=config(weights.shapes), weights=weights)
    except NearstepError as error:
        raise NearstepError(f"{file}: {error}") from None


def _diffusers(folder: ModelFolder) -> Layout:
    folder.check_class("transformer", *NETWORKS)
    folder.check_class("vae", "AutoencoderKLWan")
    folder.check_class("text_encoder", "UMT5EncoderModel", "umt5")
    tokenizer = folder.path / "tokenizer"
    if not tokenizer.is_dir():
        raise NearstepError(f"{tokenizer} is missing: is the model folder complete?")
    return Layout(
        **{
            name: _component(folder.path / name, folder.config(name)) for name in ("transformer", "vae", "text_encoder")
        },
        tokenizer=tokenizer,
        shift=shift_of(folder.config("scheduler")),
        settings=folder.index.get("nearstep") or {},
    )


def _component(path: Path, config: Mapping[str, Any]) -> Component:
    weight_files(path)  # which refuses pickles and says what to do
    public = {key: value for key, value in config.items() if key not in ("_name_or_path", "quantization_config")}
    weights = open_weights(path)
    if is_quantised(weights):
        return Component(config=public, weights=dequantised(weights))
    return Component(config=public, weights=weights, folder=path)
