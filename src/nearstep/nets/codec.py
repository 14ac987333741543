"""Pixels to normalised latents and back: diffusers' AutoencoderKLWan with our axes, range and streams.

The Wan codec is causal in time. Its first latent frame is one pixel frame and each later one is four, and what a
frame needs of its past is the last inputs of every causal convolution: the feature cache. diffusers keeps that cache on
the module, so one module decodes one clip at a time; here it belongs to a :class:`CodecStream`, so any number of clips
can be open on one codec, and a clip decoded chunk by chunk equals the clip decoded whole, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor, nn

from nearstep.errors import NearstepError
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
        return cast(DiagonalGaussianDistribution, self.vae.encode(pixels.to(self.vae.dtype), return_dict=False)[0])

    def encode(self, video: Tensor) -> Tensor:
        """``video`` [B, T, 3, H, W] in [0, 1] -> normalised latents [B, F, C, h, w]: the posterior's mean."""
        return self.normalise(self.posterior(video).mode())

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """Normalised latents [B, F, C, h, w] -> video [B, T, 3, H, W] in [0, 1] (see CodecStream.decode)."""
        return self.stream().decode(latents, clamp=clamp)

    def stream(self) -> CodecStream:
        """A fresh stream for one clip (or one batch of clips in step); any number may be open at once."""
        return CodecStream(self)

    def normalise(self, raw: Tensor) -> Tensor:
        """The network's latents [B, C, F, h, w] -> ours [B, F, C, h, w] (method.md section 14)."""
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


class CodecStream:
    """Decodes one clip, a chunk at a time, holding the causal convolutions' feature cache between chunks."""

    def __init__(self, codec: VideoCodec):
        self._codec = codec
        self._features: list[Any] = [None] * codec.vae._cached_conv_counts["decoder"]  # one slot per convolution
        self.frames = 0
        """Latent frames decoded so far."""

    def decode(self, latents: Tensor, *, clamp: bool = True) -> Tensor:
        """The next normalised latents [B, f, C, h, w] -> their pixel frames [B, T, 3, H, W] in [0, 1].

        T is 4f, or 4f - 3 for the first chunk of the clip, whose first latent frame is a single picture. Without
        ``clamp`` values may leave [0, 1]: a codec in training needs the gradient there, or it stays out.
        """
        vae = self._codec.vae
        raw = self._codec.denormalise(latents).to(vae.dtype)
        # One latent frame a call: the floating-point work of a frame is then the same however a clip is cut.
        pixels = torch.cat([self._frame(vae, frame) for frame in raw.split(1, dim=2)], dim=2)
        pixels = unpatchify(pixels, vae.config["patch_size"] or 1)
        video = rearrange(pixels, "b c t h w -> b t c h w") * 0.5 + 0.5
        return video.clamp(0, 1) if clamp else video

    def _frame(self, vae: AutoencoderKLWan, raw: Tensor) -> Tensor:
        features = vae.post_quant_conv(raw)
        out = vae.decoder(features, feat_cache=self._features, feat_idx=[0], first_chunk=self.frames == 0)
        self.frames += 1
        return out
