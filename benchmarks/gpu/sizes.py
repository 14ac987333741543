"""What is measured: shapes, and networks of random weights that have them, made on the device.

Time, memory and operations do not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from transformers import UMT5Config, UMT5EncoderModel

from nearstep.models.folder import Settings
from nearstep.models.wan import SIZES as WAN
from nearstep.nets.codec import VideoCodec
from nearstep.nets.text import PromptEncoder, build_tokenizer
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer, kept_in_float32
from nearstep.shapes import latent_frames
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.train.export import export_model

WORDS = "a small red ball slides left on the snow and stops".split()
STRIDE = 8
"""Pixels per latent of every codec here."""
TEXT = 512
"""Tokens of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is built."""

    network: Mapping[str, Any]
    codec: Mapping[str, Any]
    text: Mapping[str, Any]
    """UMT5's encoder, where it is measured."""
    tiny: Mapping[str, Any]
    chunk: int
    frames: int
    """Pixel frames."""
    height: int
    width: int
    prompt: int
    """Words of the prompt."""
    windows: tuple[int, ...]
    """Latent frames that a chunk looks back."""
    compiled: tuple[str, ...]
    """Plans that are measured with blocks compiled, too."""
    small: tuple[int, int]
    """Latent rows and columns of the numerics, which a CPU computes as well."""
    layers: int
    """Of the networks whose update a CPU computes as well."""
    ratio: int
    """Updates of the learners for one of the student, where a whole one is timed."""

    @property
    def latents(self) -> int:
        """Latent frames of the clip."""
        return latent_frames(self.frames)

    @property
    def grid(self) -> tuple[int, int]:
        """Latent rows and columns."""
        return self.height // STRIDE, self.width // STRIDE

    @property
    def starts(self) -> range:
        """Where the chunks of the clip begin."""
        return range(0, self.latents - self.chunk + 1, self.chunk)


SIZES = {
    "1.3B": Size(
        network=WAN["1.3B"], codec={}, tiny={}, chunk=3, frames=81, height=480, width=832, prompt=120,
        text=dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64),
        windows=(9, 12, 21), compiled=("4,1x", "1", "4", "4,2x"), small=(12, 20), layers=3, ratio=5,
    ),
    "tiny": Size(
        network=dict(num_attention_heads=2, attention_head_dim=24, text_dim=24, freq_dim=32, ffn_dim=64, num_layers=2),
        codec=dict(base_dim=4), tiny=dict(widths=(8, 8, 8, 8)), chunk=2, frames=21, height=32, width=32, prompt=8,
        text=dict(vocab_size=32, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_heads=3),
        windows=(4, 6), compiled=("1",), small=(4, 6), layers=2, ratio=1,
    ),
}  # fmt: skip


def network(size: Size, device: torch.device, dtype: torch.dtype, *, causal: bool = True) -> VideoTransformer:
    """A transformer to run, not to train."""
    torch.manual_seed(0)
    with device:
        made = VideoTransformer(**size.network, chunk_frames=size.chunk if causal else None)
    return placed(made, device, dtype).eval().requires_grad_(False)


def codec(size: Size, device: torch.device, dtype: torch.dtype) -> VideoCodec:
    """Wan's codec."""
    torch.manual_seed(1)
    with device:
        return VideoCodec(AutoencoderKLWan(**size.codec)).to(dtype).eval().requires_grad_(False)


def tiny_decoder(size: Size, device: torch.device, dtype: torch.dtype) -> TinyDecoder:
    """TAEHV's decoder."""
    torch.manual_seed(2)
    with device:
        return TinyDecoder(**size.tiny).to(dtype).eval().requires_grad_(False)


def text_encoder(size: Size, device: torch.device, dtype: torch.dtype, *, whole: bool) -> UMT5EncoderModel:
    """UMT5's encoder: whole, or one small layer as wide as the network reads."""
    width = size.text["d_model"]
    small = dict(vocab_size=32, d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # in float32 first, the whole one would take 23 GB
    try:
        with device:
            encoder = UMT5EncoderModel(UMT5Config(**(size.text if whole else small), dropout_rate=0.0))
    finally:
        torch.set_default_dtype(default)
    return encoder.eval().requires_grad_(False)


def pipeline(size: Size, device: torch.device, dtype: torch.dtype) -> CausalVideoPipeline:
    """Everything that makes a clip, the text encoder but a small one."""
    return CausalVideoPipeline(
        transformer=network(size, device, dtype),
        vae=codec(size, device, dtype).vae,
        text_encoder=text_encoder(size, device, dtype, whole=False),
        tokenizer=build_tokenizer(WORDS, length=TEXT),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        nearstep=settings(size).stated(),
    )


def settings(size: Size) -> Settings:
    """What the model was made for."""
    return Settings(num_frames=size.frames, height=size.height, width=size.width, fps=16)


def write_model(size: Size, folder: Path, device: torch.device) -> None:
    """A model folder to train from: student, teacher, codec, the small text encoder."""
    networks = {
        "transformer": network(size, device, torch.float32),
        "teacher": network(size, device, torch.float32, causal=False),
    }
    text = PromptEncoder(build_tokenizer(WORDS, length=TEXT), text_encoder(size, device, torch.float32, whole=False))
    made = codec(size, device, torch.float32)
    export_model(folder, networks=networks, text=text, codec=made, shift=5.0, settings=settings(size))


def placed(made: VideoTransformer, to: torch.device | str, dtype: torch.dtype) -> VideoTransformer:
    """The network there, in this dtype but for what ``from_pretrained`` keeps in float32."""
    for name, parameter in made.named_parameters():
        kept = dtype.itemsize < torch.float32.itemsize and kept_in_float32(name)
        parameter.data = parameter.data.to(to, torch.float32 if kept else dtype)
    return made


def prompt(words: int) -> str:
    """A prompt of so many words."""
    return " ".join(WORDS[index % len(WORDS)] for index in range(words))
