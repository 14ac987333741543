"""Load one component of a model folder, or a student's file, or say in one line which file is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nearstep.errors import NearstepError
from nearstep.models.empty import empty_network, shapes_of
from nearstep.models.folder import CONFIG, ModelFolder, first_line
from nearstep.models.student import Student
from nearstep.models.weights import Weights, open_network
from nearstep.nets.tiles import Tiling
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.shapes import spatial_stride

Model = TypeVar("Model")


def load_component(
    folder: ModelFolder, name: str, kind: type[Model], allowed: tuple[str, ...], **options: Any
) -> Model:
    """The network in sub-folder ``name``, ready to run, without gradients.

    Args:
        folder: the model.
        name: the component's sub-folder.
        kind: a diffusers or transformers model class.
        allowed: the class names that its config.json may state.
        options: for ``kind.from_pretrained``.

    Raises:
        NearstepError: if a file is missing, damaged, a pickle, of another class, or if config and weights disagree.
    """
    folder.check_class(name, *allowed)
    folder.tensors(name)  # every weight file is there and whole
    path = folder.path / name
    try:
        model, report = kind.from_pretrained(path, output_loading_info=True, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise NearstepError(f"{path / CONFIG} does not fit its weights: {first_line(error)}") from error
    for problem in ("missing", "unexpected", "mismatched"):
        if found := sorted(map(str, report.get(f"{problem}_keys", ()))):
            what = f"{len(found)} {problem} tensors ({found[0]}, ...)"
            raise NearstepError(f"{path / CONFIG} does not fit its weights: {what}")
    return model.eval().requires_grad_(False)


def load_student(
    student: Student, config: Mapping[str, Any], *, torch_dtype: torch.dtype | None = None
) -> VideoTransformer:
    """A student's network with a base network's sizes, ready to run, without gradients.

    Tensors go from the file to their type one by one. As with any folder, the parts that need it stay in float32
    where ``torch_dtype`` is given (VideoTransformer._keep_in_fp32_modules).

    Args:
        student: the file and how to run it.
        config: VideoTransformer's arguments, the student's causality among them.
        torch_dtype: of the weights; by default as saved.
    """
    path = Path(student.path)
    weights = open_network(path, student.role)
    network = empty_network(config)
    weights.check(shapes_of(network), "the base's transformer/config.json")
    network.load_state_dict({name: _in_type(name, weights, torch_dtype) for name in weights}, assign=True)
    return network.eval().requires_grad_(False)


def _in_type(name: str, weights: Weights, dtype: torch.dtype | None) -> Tensor:
    kept = any(part in name.split(".") for part in VideoTransformer._keep_in_fp32_modules)
    value = weights[name]
    if dtype is None:
        return value.clone()  # off the file's pages, which a later write may change
    return value.to(torch.float32 if kept else dtype, copy=True)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    path = folder.path / "tokenizer"
    if not path.is_dir():
        raise NearstepError(f"{path} is missing: is the model folder complete?")
    try:
        return AutoTokenizer.from_pretrained(path)
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
    stride = spatial_stride(vae.config)
    overlap = -(-size // (4 * stride)) * stride
    Tiling(size=(size, size), overlap=(overlap, overlap)).check(stride)
    vae.enable_tiling(size, size, size - overlap, size - overlap)
