"""What making a clip holds on an accelerator, before anything is loaded, and what each way of offloading leaves of it.

Weights are counted from shapes; what a call and the decoder hold beside them comes from the code itself on tensors
without numbers (cost/fake_step.py). Not counted: what kernels use inside themselves, what an allocator loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from nearstep.cost.fake_step import Peaks, by_depth, no_numbers
from nearstep.cost.live_bytes import LiveBytes, without_numbers
from nearstep.cost.sizes import Sizes, count_encoder, count_network, parameters
from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import GRID, make_plan
from nearstep.models.empty import arguments_of, empty_codec, empty_network
from nearstep.models.loading import tile_codec
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.fp8_layers import Fp8, narrow
from nearstep.nets.masks import block_causal
from nearstep.nets.transformer import VideoTransformer, kept_in_float32
from nearstep.rollout.rollout import generate

NETWORK, DECODING = "a call, its cache", "decoding"
WHOLE, TEXT_AWAY, MODELS, CACHED, LAYERS = (
    "all on the card",
    "text encoder elsewhere",
    "models in turn",
    "models in turn, texts cached",
    "layers in turn",
)
HOW = {
    WHOLE: "--device cuda",
    TEXT_AWAY: "--text-device cpu, or --text-cache FOLDER",
    MODELS: "pipe.enable_model_cpu_offload()",
    CACHED: "text_cache=FOLDER, pipe.enable_model_cpu_offload()",
    LAYERS: "pipe.enable_sequential_cpu_offload()",
}
"""Way of placing the parts -> how it is asked for."""


@dataclass(frozen=True, kw_only=True)
class ClipSetup:
    """How a clip is made."""

    sizes: Sizes
    """``student`` is the network, with its chunk_frames and window; ``clip`` what is made."""
    dtype: str = "bfloat16"
    """Of network and text encoder."""
    vae_dtype: str = "float32"
    vae_tile: int | None = None
    guided: bool = False
    fp8: Fp8 | None = None
    """What of the network is in eight bits."""


@dataclass(frozen=True, kw_only=True)
class ClipMemory:
    """Bytes."""

    weights: Mapping[str, float]
    """Component -> its weights."""
    work: Mapping[str, float]
    """Phase -> the most that lives in it beside weights."""
    block: float
    """Weights of the network's largest layer."""

    @property
    def arrangements(self) -> dict[str, float]:
        """Way of placing the parts -> the most at once."""
        text, network, decoder = self.weights.values()
        call, decoding = self.work[NETWORK], self.work[DECODING]
        return {
            WHOLE: text + network + decoder + max(call, decoding),
            TEXT_AWAY: network + decoder + max(call, decoding),
            MODELS: max(text, network + call, decoder + decoding),
            CACHED: max(network + call, decoder + decoding),
            LAYERS: max(self.block + call, decoder + decoding),
        }


def clip_memory(setup: ClipSetup) -> ClipMemory:
    """What a setup takes.

    Raises:
        NearstepError: for a clip that the network's chunks do not divide, or tiles that the codec cannot cut.
    """
    sizes = setup.sizes
    number, decoders = (getattr(torch, name).itemsize for name in (setup.dtype, setup.vae_dtype))
    network = count_network(sizes.student)
    layers, in_layers = sizes.student["num_layers"], bool(setup.fp8 and setup.fp8.layers)
    call = by_depth(lambda student, _: _call(setup, student), layers, layers)
    return ClipMemory(
        weights={
            "text encoder": number * count_encoder(sizes.encoder),
            "network": network.bytes(setup.dtype, fp8=in_layers),
            "decoder": decoders * parameters(empty_codec(sizes.codec)),
        },
        work={**call, **_decoding(setup)},
        block=number * network.block - (network.saved(setup.dtype) / layers if in_layers else 0),
    )


def _call(setup: ClipSetup, layers: int) -> Peaks:
    """The last chunk's first call, which commits the chunk before it: the cache is full and the call twice as wide."""
    live, frames = LiveBytes(), setup.sizes.clip[0]
    chunk, batch = setup.sizes.student["chunk_frames"] or frames, 2 if setup.guided else 1
    with no_numbers():
        network = _network(setup, layers)
        text = torch.zeros(batch, setup.sizes.text_length, setup.sizes.student["text_dim"])
        with torch.no_grad(), live, live.phase(NETWORK):
            bound = TextDenoiser(network, text)
            denoiser = Guided(bound, 2.0) if setup.guided else bound
            if frames == chunk:
                plan = make_plan("1", frames=frames, chunk_frames=chunk, shift=1.0, grid=GRID)
                generate(denoiser, plan, shape=setup.sizes.clip[1:], seed=0, samples=[0])
                return live.peaks
            cache = denoiser.new_cache(1, frames, *setup.sizes.clip[2:])
            clean = torch.zeros(batch, chunk, *setup.sizes.clip[1:])
            for start in range(0, frames - 2 * chunk, chunk):
                bound.commit(clean, cache=cache, start=start)
            # As TextDenoiser.commit_then does on an accelerator; on a CPU it may make two calls of it.
            network(
                torch.cat([clean, clean], dim=1),
                torch.ones(batch, 2 * chunk),
                bound.text,
                visibility=block_causal((chunk, chunk), cache.reach),
                cache=cache,
                start=frames - 2 * chunk,
                commit=chunk,
            )
    return live.peaks


def _network(setup: ClipSetup, layers: int) -> VideoTransformer:
    """As it is loaded: what needs float32 stays in it."""
    network = without_numbers(empty_network(setup.sizes.student, layers), getattr(torch, setup.dtype))
    for name, parameter in list(network.named_parameters()):
        if kept_in_float32(name):
            home, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(home), leaf, nn.Parameter(parameter.float(), requires_grad=False))
    return narrow(network, setup.fp8).eval().requires_grad_(False)


def _decoding(setup: ClipSetup) -> Peaks:
    """All chunks to pixels, which are kept."""
    live, (frames, channels, height, width) = LiveBytes(), setup.sizes.clip
    chunk = setup.sizes.student["chunk_frames"] or frames
    with no_numbers():
        vae = without_numbers(empty_codec(setup.sizes.codec), getattr(torch, setup.vae_dtype)).eval()
        if setup.vae_tile is not None:
            tile_codec(vae, setup.vae_tile)
        codec = VideoCodec(vae.requires_grad_(False))
        with torch.no_grad(), live, live.phase(DECODING):
            stream = codec.stream()
            parts = [stream.decode(torch.zeros(1, chunk, channels, height, width)) for _ in range(frames // chunk)]
            torch.cat(parts, dim=1)
    return live.peaks


def with_chunks(sizes: Sizes, chunk: int | None, window: int | None) -> Sizes:
    """The same network as a causal one.

    Raises:
        NearstepError: for a clip that is no whole number of chunks.
    """
    if chunk and sizes.clip[0] % chunk:
        raise NearstepError(f"{sizes.clip[0]} latent frames are no whole number of chunks of {chunk}")
    return replace(sizes, student={**arguments_of(sizes.student), "chunk_frames": chunk, "window_frames": window})
