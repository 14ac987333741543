"""How teacher and assistant see a sample: whole where they are bidirectional; given its own past where they are causal.

A causal network knows chunks given clean ones before them, and nothing of clips that are noised throughout. It scores
each chunk of a sample given the sample's own earlier chunks, all of them in one call on [clean | noised], as teacher
forcing does. By the chain rule that is distribution matching of the clip all the same: with y the chunks of a clip,

    KL(student || teacher) = sum over i of E_{y_<i ~ student} KL(student(y_i | y_<i) || teacher(y_i | y_<i))

and a student that is rolled out chunk by chunk takes each term's gradient at the chunk that it is of. What a chunk
makes of later terms is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nearstep.flow.guidance import guided
from nearstep.flow.plan import chunk_lengths
from nearstep.losses.denoising import denoise_given_clean
from nearstep.nets.masks import Visibility, block_causal, full, teacher_forcing
from nearstep.nets.script import Text
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import Denoiser
from nearstep.reach import Reach


def own_chunks(config: Mapping[str, Any], frames: int) -> tuple[int, ...]:
    """Latent frames of each chunk in which a network of this configuration knows a clip of ``frames`` frames.

    One chunk where it is bidirectional. Frames that fill no chunk stand first, as a picture does.
    """
    chunk = config.get("chunk_frames")
    return chunk_lengths(frames, chunk, (chunk and frames % chunk) or None)


def scoring(config: Mapping[str, Any], frames: int) -> Visibility:
    """Who sees whom in the call that scores a sample of ``frames`` frames; [clean | noised] where it has a past."""
    lengths = own_chunks(config, frames)
    return full(frames) if len(lengths) == 1 else teacher_forcing(lengths, Reach.of(config))


def reading(config: Mapping[str, Any], frames: int) -> Visibility:
    """Who sees whom in a call on noised frames alone, whose features a discriminator reads."""
    return block_causal(own_chunks(config, frames), Reach.of(config))


def denoiser_of(
    network: VideoTransformer, text: Text, x: Float[Tensor, "B F C H W"], *, guidance: float | None = None
) -> Denoiser:
    """A denoiser of samples ``x`` once they are noised.

    Args:
        network: bidirectional or causal.
        text: [B, L, D] the prompts; with ``guidance`` [2B, L, D], what it leads away from after them.
        x: the samples, which a causal network sees as each chunk's past; no gradient goes there.
        guidance: w of v = u + w (c - u); None: the conditional prediction.
    """
    visibility = scoring(network.config, x.shape[1])
    denoiser: Denoiser = partial(network, text=text, visibility=visibility)
    if guidance is not None:
        denoiser = guided(denoiser, guidance)
    return partial(denoise_given_clean, denoiser, x.detach()) if any(visibility.noisy) else denoiser
