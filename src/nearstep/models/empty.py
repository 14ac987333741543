"""Networks without numbers: the names and shapes that a config describes, on the meta device, in no time and memory.

What loads, converts, exports or plans asks these for shapes, and gives them numbers only where it has any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.nets.transformer import VideoTransformer

Config = Mapping[str, Any]
"""A component's config.json, with or without the notes of its writer (``_class_name`` and the like)."""


def empty_network(config: Config, layers: int | None = None) -> VideoTransformer:
    """A transformer without numbers, with another number of layers where one is given."""
    wanted = dict(config) if layers is None else {**config, "num_layers": layers}
    with _describing("network"), torch.device("meta"):
        return VideoTransformer.from_config(wanted)  # type: ignore[return-value]


def empty_codec(config: Config) -> AutoencoderKLWan:
    """A codec without numbers."""
    with _describing("codec"), torch.device("meta"):
        return AutoencoderKLWan.from_config(dict(config))  # type: ignore[return-value]


def empty_text_encoder(config: Config) -> UMT5EncoderModel:
    """A text encoder without numbers."""
    with _describing("text encoder"), torch.device("meta"):
        return UMT5EncoderModel(UMT5Config.from_dict(dict(config)))


@contextmanager
def _describing(what: str) -> Iterator[None]:
    """A configuration that describes nothing fails in the libraries, with errors of any type."""
    try:
        yield
    except NearstepError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NearstepError(
            f"the {what}'s configuration describes none: {reason}; is its config.json whole?"
        ) from error


def arguments_of(config: Config) -> dict[str, Any]:
    """The arguments of a component, without the notes that diffusers writes beside them."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, by name."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
