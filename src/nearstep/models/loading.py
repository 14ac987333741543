"""Load a model folder's components, or a student's file, or say in one line which file is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, UMT5EncoderModel

from nearstep.errors import NearstepError, first_line
from nearstep.models.configs import ModelConfigs
from nearstep.models.empty import empty_network, shapes_of
from nearstep.models.folder import CONFIG, ModelFolder
from nearstep.models.layouts import NETWORKS
from nearstep.models.lora import Changes
from nearstep.models.lora_files import open_loras
from nearstep.models.networks import open_network
from nearstep.models.quantised import check_types
from nearstep.models.student import Student
from nearstep.models.weights import Weights
from nearstep.nets.codec import VideoCodec
from nearstep.nets.devices import find_device
from nearstep.nets.fp8 import by_rows
from nearstep.nets.fp8_layers import Fp8, narrow
from nearstep.nets.text import check_tokenizer, text_length, tokens
from nearstep.nets.text_cache import check_cache_folder, encoder_name
from nearstep.nets.tiles import Tiling
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer, kept_in_float32, linear_layers
from nearstep.ranges import check_count
from nearstep.shapes import spatial_stride

Model = TypeVar("Model")
TEXT_ENCODERS = ("UMT5EncoderModel", "umt5")
"""What a text encoder's config.json may call itself."""
LOADING = RLock()
"""Held by whoever loads a component: transformers and diffusers patch torch while they do, for all threads."""


@dataclass(frozen=True, kw_only=True)
class DeferredTextEncoder:
    """Where the features of prompts lie, and how to load the encoder for those that are not there."""

    cache: Path
    source: str
    """Names the encoder (nets/text_cache.py)."""
    load: Callable[[], UMT5EncoderModel]
    device: torch.device | str | None
    """Where it then goes; to the network by default."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """The components of a pipeline."""

    transformer: VideoTransformer
    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerFast
    text_encoder: UMT5EncoderModel | None
    deferred_text: DeferredTextEncoder | None
    tiny_decoder: TinyDecoder | None


def load_model(
    model: ModelConfigs,
    *,
    torch_dtype: torch.dtype | None = None,
    text_device: torch.device | str | None = None,
    text_cache: Path | None = None,
    vae_dtype: torch.dtype | None = None,
    vae_tile: int | None = None,
    tiny_decoder: Path | None = None,
    fp8: Fp8 | None = None,
) -> LoadedModel:
    """The components of a model, on the CPU; arguments as for CausalVideoPipeline.from_pretrained.

    What is small is read first: wrong options are found before minutes go into the network.
    """
    folder, changes = model.folder, changes_of(model)
    tiny = None if tiny_decoder is None else load_tiny_decoder(tiny_decoder, model.vae, vae_dtype)
    tokenizer = load_tokenizer(folder)
    load = partial(load_component, folder, "text_encoder", UMT5EncoderModel, TEXT_ENCODERS, torch_dtype)
    deferred = None
    if text_cache is not None:
        check_cache_folder(text_cache)
        folder.check_class("text_encoder", *TEXT_ENCODERS)
        folder.tensors("text_encoder")  # whole, for it will be needed
        source = encoder_name(folder.path / "text_encoder", folder.path / "tokenizer", torch_dtype)
        deferred = DeferredTextEncoder(cache=text_cache, source=source, load=load, device=text_device)
    vae = load_codec(folder, torch_dtype=vae_dtype)
    if vae_tile is not None:
        tile_codec(vae, vae_tile)
    return LoadedModel(
        transformer=load_network(model, torch_dtype=torch_dtype, changes=changes, fp8=fp8),
        vae=vae,
        tokenizer=tokenizer,
        text_encoder=load() if deferred is None else None,
        deferred_text=deferred,
        tiny_decoder=tiny,
    )


def changes_of(model: ModelConfigs) -> Changes:
    """What a model's adapters do to its network, held against the shapes that its configuration describes.

    Raises:
        NearstepError: naming an adapter that fits no weight, or what it holds that cannot be applied.
    """
    return open_loras(model.loras, shapes_of(empty_network(model.transformer))) if model.loras else {}


def load_network(
    model: ModelConfigs,
    *,
    torch_dtype: torch.dtype | None = None,
    changes: Changes | None = None,
    fp8: Fp8 | None = None,
) -> VideoTransformer:
    """A model's network, or the student that takes its place, with the model's adapters merged into it.

    Args:
        model: names both, and the adapters.
        torch_dtype: of the weights; by default as saved.
        changes: what the adapters do (``changes_of``), where that is read already.
        fp8: what goes into eight bits (nets/fp8_layers.py).
    """
    changes = changes_of(model) if changes is None else changes
    if model.student is not None:
        model.folder.check_class(model.network, *NETWORKS)
        return load_student(model.student, model.transformer, torch_dtype=torch_dtype, changes=changes, fp8=fp8)
    network = load_component(model.folder, model.network, VideoTransformer, NETWORKS, torch_dtype)
    merge(network, changes)
    return narrow(network, fp8)


@torch.no_grad()
def merge(network: VideoTransformer, changes: Changes) -> None:
    """Make changes to a network's weights, in place and in their types."""
    own = network.state_dict()
    for name, change in changes.items():
        own[name].copy_(change.merged_into(name, own[name]))


def load_codec(folder: ModelFolder, *, torch_dtype: torch.dtype | None = None) -> AutoencoderKLWan:
    """A model's codec."""
    return load_component(folder, "vae", AutoencoderKLWan, ("AutoencoderKLWan",), torch_dtype)


def load_encoder(folder: ModelFolder, device: torch.device | str | None = None) -> Callable[[Tensor], Tensor]:
    """What encodes videos [B, T, 3, H, W] in [0, 1] as a model's latents [B, F, C, h, w], in float32."""
    place = find_device(device or "cpu")
    codec = VideoCodec(load_codec(folder, torch_dtype=torch.float32)).to(place)

    @torch.no_grad()
    def encode(video: Tensor) -> Tensor:
        return codec.encode(video.to(place))

    return encode


def caption_check(folder: ModelFolder) -> Callable[[str], object]:
    """What refuses a caption that a model's tokenizer cannot hold; the text encoder stays on disk."""
    tokenizer = load_tokenizer(folder)
    return lambda caption: tokens(tokenizer, [caption], text_length(tokenizer))


def load_component(
    folder: ModelFolder, name: str, kind: type[Model], allowed: tuple[str, ...], dtype: torch.dtype | None = None
) -> Model:
    """The network in sub-folder ``name``, ready to run, without gradients.

    Args:
        folder: the model.
        name: the component's sub-folder.
        kind: a diffusers or transformers model class.
        allowed: the class names that its config.json may state.
        dtype: of the weights; by default as saved.

    Raises:
        NearstepError: if a file is missing, damaged, a pickle, of another class, or if config and weights disagree.
    """
    folder.check_class(name, *allowed)
    tensors = folder.tensors(name)  # every weight file is there and whole
    check_types({key: tensor.dtype for key, tensor in tensors.items()}, folder.path / name)
    path, option = folder.path / name, "dtype" if issubclass(kind, PreTrainedModel) else "torch_dtype"
    try:
        options = {option: dtype, "variant": folder.variant_of(name)}
        with LOADING:
            whole: Any = kind  # of either library, with options of its own
            model, report = whole.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:  # a damaged configuration surfaces as almost any type, the libraries' own included
        raise NearstepError(f"{path / CONFIG} does not fit its weights: {first_line(error)}") from error
    for problem in ("missing", "unexpected", "mismatched"):
        if found := sorted(map(str, report.get(f"{problem}_keys", ()))):
            what = f"{len(found)} {problem} tensors ({found[0]}, ...)"
            raise NearstepError(f"{path / CONFIG} does not fit its weights: {what}")
    return model.eval().requires_grad_(False)


def load_student(
    student: Student,
    config: Mapping[str, Any],
    *,
    torch_dtype: torch.dtype | None = None,
    changes: Changes | None = None,
    fp8: Fp8 | None = None,
) -> VideoTransformer:
    """A student's network with a base network's sizes, ready to run, without gradients.

    Tensors go from the file to their type one by one. As with any folder, the parts that need it stay in float32
    where ``torch_dtype`` is given (nets/transformer.py:kept_in_float32). What a file holds in eight bits, with one
    factor or one a row, stays as it is where ``fp8`` is given.

    Args:
        student: the file and how to run it.
        config: VideoTransformer's arguments, the student's causality among them.
        torch_dtype: of the weights; by default as saved, and of a file of several types the one of most numbers.
        changes: to make to them.
        fp8: what goes into eight bits.
    """
    path = Path(student.path)
    weights = open_network(path, student.role, usual=student.usual_role)
    network = empty_network(config)
    weights.check(shapes_of(network), "the base's transformer/config.json")
    dtype = _own_type(weights) if torch_dtype is None else torch_dtype
    if changes:
        wide = None if dtype is None else torch.float32  # to be rounded once, below
        weights = weights.mapped(
            lambda name, value: changes[name].merged_into(name, value, wide) if name in changes else value
        )
    coded = {f"{layer}.weight": f"{layer}.scale" for layer in linear_layers(network)} if fp8 and fp8.layers else {}
    state = {name: _in_type(name, weights, dtype) for name in weights if name not in coded}
    for name, scale in coded.items():
        state[name], state[scale] = (part.clone() for part in weights.coded(name) or by_rows(weights[name]))
    narrow(network, fp8).load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _own_type(weights: Weights) -> torch.dtype | None:
    """The type that most of the numbers are in, where a file has several; None where it has one.

    Repackaged files keep parts in float32, and a network computes in one type. Where both half types occur, neither
    holds the other's numbers, so it is float32.
    """
    sizes: Counter[str] = Counter()
    for name, kind in weights.types.items():
        sizes[kind] += torch.Size(weights.shapes[name]).numel()
    if len(sizes) <= 1:
        return None
    return torch.float32 if {"float16", "bfloat16"} <= sizes.keys() else getattr(torch, sizes.most_common(1)[0][0])


def _in_type(name: str, weights: Weights, dtype: torch.dtype | None) -> Tensor:
    value = weights[name]
    if dtype is None:
        return value.clone()  # off the file's pages, which a later write may change
    return value.to(torch.float32 if kept_in_float32(name) else dtype, copy=True)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    path = folder.path / "tokenizer"
    if not path.is_dir():
        raise NearstepError(f"{path} is missing: is the model folder complete?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        check_tokenizer(tokenizer)
        return tokenizer
    except Exception as error:  # damaged JSON surfaces as almost any type, the Rust tokenizer's own included
        raise NearstepError(f"{path} holds no tokenizer that can be read: {first_line(error)}") from error


def load_tiny_decoder(path: str | Path, vae: Mapping[str, Any], dtype: torch.dtype | None) -> TinyDecoder:
    """A TAEHV file that decodes what a codec with the configuration ``vae`` encodes; float32 by default.

    Raises:
        NearstepError: if the file is none, or belongs to latents of another shape.
    """
    tiny = TinyDecoder.from_file(path, dtype or torch.float32)
    found, needed = (tiny.channels, tiny.spatial_stride), (vae["z_dim"], spatial_stride(vae))
    if found != needed:
        raise NearstepError(
            f"{path} decodes latents of {found[0]} channels and {found[1]} pixels, this model's have {needed[0]} and "
            f"{needed[1]}; use the tiny decoder of the model's own codec"
        )
    return tiny


def tile_codec(vae: AutoencoderKLWan, size: int) -> None:
    """Have a codec decode in square tiles of ``size`` pixels that share a quarter.

    Raises:
        NearstepError: if the codec cannot cut such tiles.
    """
    check_count("vae_tile", size, most=10**6)
    stride = spatial_stride(vae.config)
    overlap = -(-size // (4 * stride)) * stride
    Tiling(size=(size, size), overlap=(overlap, overlap)).check(stride)
    vae.enable_tiling(size, size, size - overlap, size - overlap)
