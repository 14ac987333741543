"""Pixels to normalised latents and back: diffusers' AutoencoderKLWan with our axes, range and streams.

The Wan codec is causal in time. Its first latent frame is one pixel frame and each later one is four, and what a
frame needs of its past is the last inputs of every causal convolution: the feature cache. diffusers keeps that cache on
the module, so one module decodes one clip at a time; here it belongs to a stream, so any number of clips can be open on
one codec, and a clip decoded (or encoded) chunk by chunk equals the clip done whole, bit for bit.

Tiles are diffusers' setting, ``vae.enable_tiling(...)``; each tile of a stream has a feature cache of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from nearstep.errors import NearstepError
from nearstep.nets.devices import device_of, wake
from nearstep.nets.tiles import Tile, Tiling, blend, cut
from nearstep.precision import wide
from nearstep.shapes import TEMPORAL_STRIDE, LatentShape, latent_frames, spatial_stride


class VideoCodec(nn.Module):
    """Video ``[B, T, 3, H, W]`` in [0, 1] <-> latents ``[B, F, C, h, w]`` with mean 0 and variance 1 per channel.

    Works with any AutoencoderKLWan, patchified (``patch_size``) or not. Nothing here switches gradients off.
    """

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        halvings = vae.config["temperal_downsample"]
        if 2 ** sum(halvings) != TEMPORAL_STRIDE:
            raise NearstepError(
                f"a codec with temperal_downsample={halvings} packs {2 ** sum(halvings)} pixel frames into one; "
                f"AutoencoderKLWan can only run with {TEMPORAL_STRIDE}, that is two entries that are true"
            )
        self.vae = vae
        for module in vae.modules():
            if type(module) is WanCausalConv3d:
                module.__class__ = _CausalConv3d  # the same weights under the same names, another forward

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> VideoCodec:
        """The codec saved in ``folder`` (a model folder's ``vae/``)."""
        return cls(AutoencoderKLWan.from_pretrained(folder, **options))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes ``config.json`` and safetensors that diffusers' AutoencoderKLWan loads."""
        self.vae.save_pretrained(folder)

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.vae.config["z_dim"]

    @property
    def temporal_stride(self) -> int:
        """Pixel frames per latent frame after the first."""
        return TEMPORAL_STRIDE

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent along height and width."""
        return spatial_stride(self.vae.config)

    def latent_shape(self, frames: int, height: int, width: int) -> LatentShape:
        """The latent size of a clip of ``frames`` pixel frames of ``height x width`` pixels.

        Raises:
            NearstepError: unless frames is 4n+1 and both sides are multiples of :attr:`spatial_stride`.
        """
        stride = self.spatial_stride
        for name, side in (("height", height), ("width", width)):
            if side < stride or side % stride:
                raise NearstepError(f"{name}={side} is not a multiple of {stride}, the codec's spatial stride")
        return LatentShape(
            frames=latent_frames(frames, self.temporal_stride),
            channels=self.channels,
            height=height // stride,
            width=width // stride,
        )

    def posterior(self, video: Tensor) -> DiagonalGaussianDistribution:
        """The encoder's Gaussian over raw latents ``[B, C, F, h, w]``, differentiable: what codec training needs."""
        _, frames, _, height, width = video.shape
        self.latent_shape(frames, height, width)
        pixels = rearrange(video, "b t c h w -> b c t h w") * 2 - 1
        return cast(
            DiagonalGaussianDistribution,
            self.vae.encode(pixels.to(device_of(self.vae), self.vae.dtype), return_dict=False)[0],
        )

    def encode(self, video: Tensor) -> Tensor:
        """``video`` [B, T, 3, H, W] in [0, 1] -> normalised latents [B, F, C, h, w]: the posterior's mean."""
        _, frames, _, height, width = video.shape
        self.latent_shape(frames, height, width)
        return self.encoder_stream().encode(video)

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents [B, F, C, h, w] -> video [B, T, 3, H, W] in [0, 1] (see CodecStream.decode)."""
        return self.stream().decode(latents, clamp=clamp)

    def stream(self) -> CodecStream:
        """A fresh stream for one clip (or one batch of clips in step); any number may be open at once."""
        return CodecStream(self)

    def encoder_stream(self) -> EncoderStream:
        """The way back, for videos too long to hold: a fresh stream that encodes one clip part by part."""
        return EncoderStream(self)

    @property
    def tiling(self) -> Tiling | None:
        """The tiles that ``vae.enable_tiling`` asked for."""
        vae = self.vae
        if not vae.use_tiling:
            return None
        size = (vae.tile_sample_min_height, vae.tile_sample_min_width)
        step = (vae.tile_sample_stride_height, vae.tile_sample_stride_width)
        tiling = Tiling(size=size, overlap=(size[0] - int(step[0]), size[1] - int(step[1])))
        tiling.check(self.spatial_stride)
        return tiling

    def normalise(self, raw: Tensor) -> Tensor:
        """The network's latents [B, C, F, h, w] -> ours [B, F, C, h, w] (method.md section 8)."""
        mean, std = self._statistics(raw)
        return (rearrange(raw, "b c f h w -> b f c h w") - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of :meth:`normalise`."""
        mean, std = self._statistics(latents)
        return rearrange(latents * std + mean, "b f c h w -> b c f h w")

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
            for values in (config["latents_mean"], config["latents_std"])
        )
        return mean, std


class _CausalConv3d(WanCausalConv3d):
    """diffusers' causal convolution without the products with zeros that a clip's first frame has for a past."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        left, _, top, _, past, _ = cast(tuple[int, ...], self._padding)
        if cache_x is not None or x.shape[2] != 1 or past != self.kernel_size[0] - 1:
            return super().forward(x, cache_x)
        # Of the kernel's taps in time only the last meets the frame: a convolution of the picture, a third of the work.
        _, height, width = self.stride
        return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, (height, width), (top, left)).unsqueeze(2)


class _Tiles:
    """The tiles of one clip, each with a feature cache: one slot per causal convolution of ``half``."""

    def __init__(
        self,
        codec: VideoCodec,
        half: str,
        caches: Mapping[Tile, list[Any]] | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._codec, self._half = codec, half
        self._caches = {tile: [*cache] for tile, cache in (caches or {}).items()}
        self._size = size

    def copy(self) -> _Tiles:
        """The same tiles; the tensors in their caches are replaced by decoding, never written to."""
        return _Tiles(self._codec, self._half, self._caches, self._size)

    def of(self, height: int, width: int) -> dict[Tile, list[Any]]:
        """Tile (in latents) -> feature cache, for ``height x width`` latents."""
        if self._size is None:
            self._size = (height, width)
            tiles = cut(height, width, self._codec.tiling, self._codec.spatial_stride)
            slots = self._codec.vae._cached_conv_counts[self._half]  # diffusers' own count of causal convolutions
            self._caches = {tile: [None] * slots for tile in tiles}
        if self._size != (height, width):
            raise NearstepError(
                f"this stream's clip has {self._size[0]} x {self._size[1]} latents a frame, got {height} x {width}; "
                "open a stream for each clip"
            )
        return self._caches


class CodecStream:
    """Decodes one clip, a chunk at a time, holding the causal convolutions' feature cache between chunks."""

    def __init__(self, codec: VideoCodec, tiles: _Tiles | None = None, frames: int = 0):
        self._codec, self._tiles = codec, tiles or _Tiles(codec, "decoder")
        self.frames = frames
        """Latent frames decoded so far."""

    def copy(self) -> CodecStream:
        """A stream of its own that has decoded the same."""
        return CodecStream(self._codec, self._tiles.copy(), self.frames)

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """The next normalised latents [B, f, C, h, w] -> their pixel frames [B, T, 3, H, W] in [0, 1].

        T is 4f, or 4f - 3 for the first chunk of the clip, whose first latent frame is a single picture. Without
        ``clamp`` values may leave [0, 1]: a codec in training needs the gradient there, or it stays out.
        """
        vae = self._codec.vae
        caches = self._tiles.of(*latents.shape[-2:])
        wake(vae)
        raw = self._codec.denormalise(latents).to(device_of(vae), vae.dtype)
        # One latent frame a call: the floating-point work of a frame is then the same however a clip is cut.
        pixels = torch.cat([self._frame(frame, caches) for frame in raw.split(1, dim=2)], dim=2)
        video = rearrange(wide(pixels), "b c t h w -> b t c h w") * 0.5 + 0.5
        return video.clamp(0, 1) if clamp else video

    def _frame(self, raw: Tensor, caches: dict[Tile, list[Any]]) -> Tensor:
        """Raw latents [B, C, 1, h, w] -> pixels [B, 3, 1 or 4, H, W] in [-1, 1]."""
        parts = [self._tile(tile.of(raw), cache) for tile, cache in caches.items()]
        self.frames += 1
        return blend(parts, [tile.times(self._codec.spatial_stride) for tile in caches])

    def _tile(self, raw: Tensor, cache: list[Any]) -> Tensor:
        vae = self._codec.vae
        features = vae.post_quant_conv(raw)
        out = vae.decoder(features, feat_cache=cache, feat_idx=[0], first_chunk=self.frames == 0)
        return unpatchify(out, vae.config["patch_size"] or 1)


class EncoderStream:
    """Encodes one clip part by part; what it holds does not grow with the clip."""

    def __init__(self, codec: VideoCodec):
        self._codec, self._tiles = codec, _Tiles(codec, "encoder")
        self.frames = 0
        """Latent frames encoded so far."""

    def encode(self, video: Tensor) -> Tensor:
        """The next pixel frames [B, T, 3, H, W] in [0, 1] -> their normalised latents [B, f, C, h, w].

        T is 4f, or 4f - 3 for the first part of the clip.

        Raises:
            NearstepError: for another number of frames, or sides that the codec cannot halve.
        """
        codec, frames = self._codec, video.shape[1]
        if self.frames and (frames % TEMPORAL_STRIDE or not frames):
            raise NearstepError(f"{frames} frames go on with a clip; parts after the first hold {TEMPORAL_STRIDE}n")
        shape = codec.latent_shape(frames + bool(self.frames), *video.shape[-2:])
        caches = self._tiles.of(shape.height, shape.width)
        wake(codec.vae)
        pixels = rearrange(video, "b t c h w -> b c t h w") * 2 - 1
        cuts = [TEMPORAL_STRIDE] * (frames // TEMPORAL_STRIDE)
        parts = pixels.split(cuts if self.frames else [1, *cuts], dim=2)
        return codec.normalise(wide(torch.cat([self._frame(part, caches) for part in parts], dim=2)))

    def _frame(self, pixels: Tensor, caches: dict[Tile, list[Any]]) -> Tensor:
        """Pixels [B, 3, 1 or 4, H, W] in [-1, 1] -> raw latents [B, C, 1, h, w]."""
        stride = self._codec.spatial_stride
        parts = [self._tile(tile.times(stride).of(pixels), cache) for tile, cache in caches.items()]
        self.frames += 1
        return blend(parts, list(caches))

    def _tile(self, pixels: Tensor, cache: list[Any]) -> Tensor:
        vae = self._codec.vae
        pixels = patchify(pixels.to(device_of(vae), vae.dtype), vae.config["patch_size"] or 1)
        moments = vae.quant_conv(vae.encoder(pixels, feat_cache=cache, feat_idx=[0]))
        return moments.chunk(2, dim=1)[0]  # the mean; the rest is the log variance
