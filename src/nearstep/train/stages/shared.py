"""What the network stages share: draws, compilation, sample pictures, and where a codec's latents belong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from nearstep.data.latents import LatentClips, LatentsConfig, load_latents
from nearstep.data.prompts import PromptClips, PromptsConfig
from nearstep.data.shards import codec_key
from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import ChunkPlan
from nearstep.nets.cache import KVCache
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import PromptEncoder
from nearstep.nets.text_cache import CachedPromptEncoder, encoder_name
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import CausalDenoiser, TextEncoder
from nearstep.rollout.rollout import generate
from nearstep.train.optim import OptimConfig
from nearstep.train.parallel import ranks
from nearstep.train.preview import write_grid

PREVIEWS = 8


@runtime_checkable
class Clips(Protocol):
    """Captions to train on, with the latents of their clips or without."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[F, C, H, W] of a clip."""
        ...

    def batch(self, first: int, size: int) -> tuple[Tensor | None, list[str]]:
        """Latents [size, F, C, H, W], or None, and captions of the clips that come after the first ``first``."""
        ...


def load_network(folder: Path, dtype: torch.dtype = torch.float32) -> VideoTransformer:
    """The network in ``folder``.

    Raises:
        NearstepError: if there is none.
    """
    if not folder.is_dir():
        raise NearstepError(f"there is no network at {folder}; run the stage before this one first")
    return VideoTransformer.from_pretrained(folder, torch_dtype=dtype)


def open_model(
    model: Path, latents: LatentsConfig | PromptsConfig, text_cache: Path | None = None
) -> tuple[VideoCodec, PromptEncoder | CachedPromptEncoder, LatentClips | PromptClips]:
    """What a stage takes from a model folder as it is: frozen codec and text encoder, and the clips' latents.

    Args:
        model: the folder.
        latents: which clips, or prompts alone.
        text_cache: a folder for the features of prompts; the text encoder is then loaded for new ones only.

    Raises:
        NearstepError: if there is no such folder.
    """
    for part in ("vae", "text_encoder", "tokenizer"):
        if not (model / part).is_dir():
            raise NearstepError(f"{model} is no model folder, it has no {part}/; run the stage before, or name another")
    here = ranks()
    codec = VideoCodec.from_pretrained(model / "vae").eval().requires_grad_(False).to(here.device)
    text = _open_text(model, text_cache)
    if isinstance(latents, PromptsConfig):
        return codec, text, PromptClips(latents)
    with here.main_first():  # which makes what is missing
        return codec, text, load_latents(latents, codec, codec_name(codec))


def _open_text(model: Path, cache: Path | None) -> PromptEncoder | CachedPromptEncoder:
    if cache is None:
        whole = PromptEncoder.from_pretrained(model, dtype=torch.float32)
        return whole.eval().requires_grad_(False).to(ranks().device)
    source = encoder_name(model / "text_encoder", model / "tokenizer", torch.float32)

    def load() -> UMT5EncoderModel:
        encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    return CachedPromptEncoder(cache, source, tokenizer, load, device=ranks().device)


def codec_name(codec: VideoCodec) -> str:
    """Names a codec's weights, for the latents made by it."""
    return codec_key(codec.vae.config)


def stratified(count: int, draw: torch.Generator) -> Tensor:
    """``count`` uniform numbers in [0, 1], one in each of ``count`` equal cells, shuffled: less noise in the loss."""
    cells = torch.randperm(count, generator=draw)
    return (cells + torch.rand(count, generator=draw)) / count


def check_micro(micro: int | None, batch: int) -> None:
    """Refuse micro-batches that do not divide this process's share of a batch."""
    share = len(ranks().share(batch))
    if micro is not None and (micro < 1 or share % micro):
        raise NearstepError(f"micro={micro} does not divide the {share} clips of a process")


def check_optimizers(*configs: OptimConfig) -> None:
    """Refuse Muon where each process holds a slice: it works on whole matrices."""
    if ranks().count > 1 and any(config.muon for config in configs):
        raise NearstepError("muon works on whole matrices, and each of several processes holds a slice; set muon=False")


def dropped(captions: Sequence[str], silent: Tensor) -> list[str]:
    """The captions, emptied where ``silent``."""
    return ["" if empty else text for text, empty in zip(captions, silent.tolist(), strict=True)]


@torch.no_grad()
def show(
    path: Path,
    network: VideoTransformer,
    text: TextEncoder,
    codec: VideoCodec,
    plans: Sequence[ChunkPlan],
    clips: LatentClips | PromptClips,
    *,
    weight: float = 1.0,
) -> None:
    """Picture new clips of the data's examples and fixed noise, guided with ``weight``: plans below each other.

    Clip by clip: at Wan's size a clip's keys and values alone take 5.6 GiB.
    """
    here = ranks()
    prompts = clips.examples(max(1, PREVIEWS // len(plans)))
    videos = []
    with torch.autocast(here.device.type, torch.bfloat16):
        for sample, prompt in enumerate(prompts):
            denoiser: CausalDenoiser[KVCache] = TextDenoiser(network, text([prompt]))
            if weight != 1:
                denoiser = Guided(TextDenoiser(network, text([prompt, ""])), weight)
            for plan in plans:
                renoise = "implied" if len(plan.lengths) == 1 else "fresh"
                latents = generate(
                    denoiser, plan, shape=clips.shape[1:], seed=0, samples=[sample], renoise=renoise, device=here.device
                )
                videos.append(codec.decode(latents).float().cpu())
    if here.main:
        write_grid(torch.cat(videos), path)
