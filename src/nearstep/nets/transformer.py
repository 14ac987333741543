"""The video transformer: Wan's architecture with per-frame times, an explicit cache and features at asked blocks.

One class serves as bidirectional teacher and assistant (full visibility) and as causal student (masked, or cached).
Parameter names and configuration are those of diffusers' WanTransformer3DModel, so its folders load unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

from nearstep.errors import NearstepError
from nearstep.nets.blocks import TransformerBlock, WideLayerNorm
from nearstep.nets.cache import KeysValues, KVCache
from nearstep.nets.devices import device_of, wake
from nearstep.nets.masks import Visibility, block_causal, full, token_groups
from nearstep.nets.rope import check_distances, rope_table
from nearstep.nets.script import Script, TextKeys, without
from nearstep.precision import wide
from nearstep.reach import Reach

TICKS = 1000.0
"""Wan networks are fed 1000 t; everywhere else t lies in [0, 1]."""


class Projection(nn.Module):
    """Linear, activation, linear: the time and the text embedder."""

    def __init__(self, source: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(source, dim)
        self.linear_2 = nn.Linear(dim, dim)


class PatchEmbedding(nn.Conv3d):
    """A convolution whose patches do not overlap, as the linear map that it is."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, F, C, H, W] -> tokens [B, F, N, D] in the weights' dtype."""
        _, rows, columns = self.kernel_size
        patches = rearrange(input, "b f c (h r) (w s) -> b f (h w) (c r s)", r=rows, s=columns)
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias).to(self.weight.dtype)


class ConditionEmbedder(nn.Module):
    """Embeds times and texts."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = Projection(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = Projection(text_dim, dim)

    def times(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B, F] in [0, 1] -> embedding [B, F, D] and the blocks' modulation [B, F, 6, D]."""
        first, second, last = self.time_embedder.linear_1, self.time_embedder.linear_2, self.time_proj
        waves = sinusoid(t, self.freq_dim).to(first.weight.dtype)
        embedding = second(silu(first(waves)))
        modulation = last(silu(embedding.to(last.weight.dtype)))
        return embedding, modulation.unflatten(-1, (6, -1))

    def text(self, text: Tensor) -> Tensor:
        """[B, L, text_dim] -> [B, L, D]; zero tokens are embedded and attended like any other (Wan2.1)."""
        first, second = self.text_embedder.linear_1, self.text_embedder.linear_2
        return second(gelu(first(text.to(first.weight.dtype)), approximate="tanh"))


class VideoTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the velocity v = eps - x0 of latent video.

    Args:
        patch_size: (1, rows, columns) of a token, in latent pixels.
        num_attention_heads: heads of every attention.
        attention_head_dim: width of a head; the model is num_attention_heads times as wide.
        in_channels: latent channels.
        out_channels: channels of the prediction.
        text_dim: width of the text encoder's tokens.
        freq_dim: width of the time sinusoid.
        ffn_dim: hidden width of the feed-forward.
        num_layers: blocks.
        cross_attn_norm: affine norm before cross-attention.
        qk_norm: must be "rms_norm_across_heads".
        eps: of every norm.
        image_dim: must be None: image conditioning is not built.
        added_kv_proj_dim: must be None, likewise.
        rope_max_seq_len: positions that each rotary axis knows.
        pos_embed_seq_len: must be None, likewise.
        chunk_frames: frames that a causal network denoises together; None for a bidirectional one.
        window_frames: how many of the newest frames, its own included, a chunk sees; None for all.
        sink_frames: first frames of the video that every chunk sees in addition.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerBlock"]
    _repeated_blocks = ["TransformerBlock"]
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]
    _keep_in_fp32_modules = ["time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]
    cache_fp8 = False
    """Whether caches hold eight-bit floats (fp8_layers.py); those of training never do."""

    @register_to_config
    def __init__(
        self,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        image_dim: int | None = None,
        added_kv_proj_dim: int | None = None,
        rope_max_seq_len: int = 1024,
        pos_embed_seq_len: int | None = None,
        chunk_frames: int | None = None,
        window_frames: int | None = None,
        sink_frames: int = 0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        dim = num_attention_heads * attention_head_dim
        frames, rows, columns = patch_size
        self.patch_embedding = PatchEmbedding(in_channels, dim, (frames, rows, columns), (frames, rows, columns))
        self.condition_embedder = ConditionEmbedder(dim, freq_dim, text_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, ffn_dim, num_attention_heads, cross_attn_norm=cross_attn_norm, eps=eps)
            for _ in range(num_layers)
        )
        self.norm_out = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(dim, out_channels * rows * columns)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Wan's initialisation: Xavier for what carries the stream, std .02 for embedders and (ours) for the output.

        Wan starts the output at zero; a small start predicts nearly nothing as well and lets every gradient through.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        embedder = self.condition_embedder
        for projection in (embedder.time_embedder, embedder.text_embedder):
            nn.init.normal_(projection.linear_1.weight, std=0.02)
            nn.init.normal_(projection.linear_2.weight, std=0.02)
        nn.init.normal_(self.proj_out.weight, std=0.02)

    def text_keys(self, text: Float[Tensor, "B L text_dim"] | Script) -> TextKeys:
        """Text [B, L, text_dim], or a script, as every block's cross-attention keys and values."""
        wake(self)
        features, starts = (text.features.flatten(0, 1), text.starts) if isinstance(text, Script) else (text, ())
        embedded = self.condition_embedder.text(features)
        return TextKeys(tuple(cast(TransformerBlock, block).text_keys(embedded) for block in self.blocks), starts)

    @property
    def reach(self) -> Reach:
        """How far back its chunks look, as configured."""
        return Reach.of(self.config)

    def new_cache(
        self,
        batch: int,
        frames: int | None,
        height: int,
        width: int,
        *,
        reach: Reach | None = None,
        append_only: bool = False,
    ) -> KVCache:
        """An empty cache for clips of `frames` frames of height x width (latent pixels); None: without end.

        Sized by `reach` (the configured window and sink by default) with room for the next chunk, unless append_only.
        In autocast's dtype where autocast is on.

        Raises:
            NearstepError: for an endless clip without a window, or a window shorter than a chunk.
        """
        config, weight = self.config, self.patch_embedding.weight
        rows, columns = self._grid(height, width)
        reach = reach or self.reach
        chunk = config["chunk_frames"] or 0
        if reach.window is not None and reach.window < chunk:
            raise NearstepError(f"a window of {reach.window} frames is shorter than a chunk of {chunk}; give more")
        if reach.window is None and frames is None:
            raise NearstepError("a stream without end needs a window: memory would grow with every chunk")
        bounded = None if reach.window is None or append_only else reach.window + reach.sink + chunk
        capacity = min(size for size in (frames, bounded) if size is not None)
        device = device_of(self)
        return KVCache(
            layers=config["num_layers"],
            batch=batch,
            capacity_frames=capacity,
            tokens_per_frame=rows * columns,
            heads=config["num_attention_heads"],
            head_dim=config["attention_head_dim"],
            reach=reach,
            chunk_frames=chunk or 1,
            append_only=append_only,
            fp8=self.cache_fp8 and not append_only,
            dtype=torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype,
            device=device,
        )

    def forward(
        self,
        x: Float[Tensor, "B F C H W"],
        t: Float[Tensor, "B ..."],
        text: Float[Tensor, "B L text_dim"] | Script | TextKeys,
        *,
        visibility: Visibility | None = None,
        cache: KVCache | None = None,
        start: int = 0,
        commit: int = 0,
        features: Sequence[int] = (),
    ) -> Float[Tensor, "B _ C H W"] | tuple[Float[Tensor, "B _ C H W"], dict[int, Float[Tensor, "B S D"]]]:
        """Velocity of the frames x.

        Args:
            x: [B, F, C, H, W] noised latents.
            t: [B, F] in [0, 1], or [B] where all frames share a time.
            text: [B, L, text_dim], a script (script.py), or what `text_keys` made of either.
            visibility: who sees whom among the frames of x, counted from 0 (masks.py); None: all see all.
            cache: finished frames that x sees in addition; only written with `commit`.
            start: absolute index of x's first frame.
            commit: append the keys and values of so many of x's first frames to the cache, detached. The last block
                does no more for them than that, so their v is left out of what is returned.
            features: indices of blocks whose outputs are wanted, e.g. for a discriminator.

        Returns:
            v [B, F - commit, C, H, W] in x's dtype; with `features` also {index: [B, F * tokens, D]}.
        """
        _, frames, _, height, width = x.shape
        rows, columns = self._grid(height, width)
        keys = text if isinstance(text, TextKeys) else self.text_keys(text)
        self._check_call(x, t, keys, cache, commit)

        # Who sees whom: the call's own frames, and before them the committed frames (`past`) that lie within reach.
        visibility = self._visibility(frames, visibility, cache).shifted(start)
        past = () if cache is None else cache.in_sight(visibility.past())
        slots = [] if cache is None else cache.find(past)
        groups = token_groups(visibility, past, rows * columns, 0 if cache is None else cache.sink_shift)

        # Rotary angles of the call's [F * rows * columns] tokens; keys in the cache carry theirs already.
        check_distances(visibility.positions, _oldest(visibility, past), rows, columns, self.config["rope_max_seq_len"])
        rope = rope_table(
            visibility.positions,
            rows,
            columns,
            head_dim=self.config["attention_head_dim"],
            dtype=torch.promote_types(self.patch_embedding.weight.dtype, torch.float32),
            device=x.device,
        )

        # Under a script, which of the call's frames read which prompt.
        turns = keys.turns(visibility.positions)

        # Tokens [B, F, N, D], N a frame, and one row of modulation a frame, [B, F or 1, 6, D]: never one a token.
        stream = self.patch_embedding(x)
        # Official Wan computes times and output head in float32 under autocast.
        with torch.autocast(x.device.type, enabled=False):
            embedding, modulation = self.condition_embedder.times(t if t.ndim == 2 else t[:, None])
        outputs: dict[int, Tensor] = {}
        committed: list[KeysValues] = []
        for index, block in enumerate(self.blocks):
            before = None if cache is None else cache.read(index, slots, frames=frames)
            # Of frames that are committed the last block makes keys and values alone: nobody reads its output.
            keys_only = commit if index + 1 == len(self.blocks) else 0
            script = without(turns, keys_only)
            arguments = (stream, modulation, keys.layers[index], rope, groups, before, bool(commit), keys_only, script)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                stream, own = cast(Any, self)._gradient_checkpointing_func(block, *arguments)
            else:
                stream, own = block(*arguments)
            if commit:
                committed.append(_first(own, commit * rows * columns))
            if index in features:
                outputs[index] = stream.flatten(1, 2)

        # Only now, after all reads: a commit may drop frames that this call has seen.
        if cache is not None and commit:
            cache.commit(start, committed)
        # The stream holds F - commit frames by now -> v [B, F - commit, C, H, W].
        with torch.autocast(x.device.type, enabled=False):
            v = self._head(stream, embedding[:, commit:] if embedding.shape[1] > 1 else embedding, rows).to(x.dtype)
        return (v, outputs) if features else v

    def _head(self, x: Tensor, embedding: Tensor, rows: int) -> Tensor:
        """Tokens [B, F, N, D] and time embedding [B, F or 1, D] -> v [B, F, C, H, W]."""
        shift, scale = wide(self.scale_shift_table + embedding.unsqueeze(2)).unsqueeze(-2).unbind(2)
        normed = self.norm_out(x) * (1 + scale) + shift
        out = self.proj_out(normed.to(self.proj_out.weight.dtype))
        _, r, s = self.config["patch_size"]
        return rearrange(out, "b f (h w) (r s c) -> b f c (h r) (w s)", h=rows, r=r, s=s)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens in a frame of height x width latent pixels."""
        _, rows, columns = self.config["patch_size"]
        if height % rows or width % columns:
            raise NearstepError(
                f"latent frames of {height}x{width} do not divide into patches of {rows}x{columns}; "
                f"use multiples of {rows} and {columns}"
            )
        return height // rows, width // columns

    @staticmethod
    def _visibility(frames: int, visibility: Visibility | None, cache: KVCache | None) -> Visibility:
        if visibility is None and cache is not None:
            return block_causal((frames,), cache.reach)
        if visibility is None:
            return full(frames)
        if len(visibility.positions) != frames:
            raise NearstepError(f"visibility is for {len(visibility.positions)} frames, but x has {frames}")
        return visibility

    @staticmethod
    def _check_call(x: Tensor, t: Tensor, keys: TextKeys, cache: KVCache | None, commit: int) -> None:
        batch, frames = x.shape[:2]
        if t.shape not in ((batch, frames), (batch,), (batch, 1)):
            raise NearstepError(
                f"t has shape {tuple(t.shape)}; give [{batch}, {frames}], one time per frame, or [{batch}]"
            )
        if keys.batch != batch:
            raise NearstepError(f"x has batch {batch} and the text has {keys.batch}; give one prompt for each")
        if not 0 <= commit <= frames:
            raise NearstepError(f"commit={commit} of {frames} frames; give how many of the first ones to commit")
        if commit and cache is None:
            raise NearstepError("a commit needs a cache to write to; make one with new_cache")
        if cache is not None and cache.batch != batch:
            raise NearstepError(f"the cache is for batch {cache.batch}, x has batch {batch}; make a new cache")


def _first(own: KeysValues, tokens: int) -> KeysValues:
    """The first of a layer's own keys and values: by themselves, so that the others need not live to the call's end."""
    if own[0].shape[1] == tokens or torch.is_grad_enabled():  # nothing is saved, or the graph holds them anyway
        return own[0][:, :tokens], own[1][:, :tokens]
    return own[0][:, :tokens].clone(), own[1][:, :tokens].clone()


def linear_layers(network: VideoTransformer) -> list[str]:
    """Names of the blocks' linear layers, which hold nearly all of a network's numbers."""
    found = network.blocks.named_modules(prefix="blocks")
    return [name for name, module in found if isinstance(module, nn.Linear)]


def kept_in_float32(name: str) -> bool:
    """Whether a weight stays in float32 where a network is loaded in a narrower type."""
    return any(part in name.split(".") for part in VideoTransformer._keep_in_fp32_modules)


def _oldest(visibility: Visibility, past: Sequence[int]) -> int:
    """Where the frame that is seen furthest back is seen: a relative sink lies nearer than its positions say."""
    if not past:
        return min(visibility.positions)
    return past[0] + (visibility.sink_shift(0) if past[0] < visibility.reach.sink else 0)


def sinusoid(t: Float[Tensor, "*B"], width: int) -> Float[Tensor, "*B {width}"]:
    """cos and sin of 1000 t at `width` / 2 frequencies, [..., width] in float64 (float32 costs 2e-5 in parity)."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = TICKS * t.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what this network does not have, by name."""
    for name in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
        if (value := config[name]) is not None:
            raise NearstepError(f"{name}={value}: image-conditioned Wan is not supported; use a text-to-video model")
    if config["qk_norm"] != "rms_norm_across_heads":
        raise NearstepError(f"qk_norm={config['qk_norm']!r} is not supported; use 'rms_norm_across_heads'")
    if config["patch_size"][0] != 1:
        raise NearstepError(f"patch_size={tuple(config['patch_size'])} joins frames; the first entry must be 1")
