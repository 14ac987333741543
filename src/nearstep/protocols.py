"""The seams: what a denoiser, a codec and a text encoder are to the rest of the code.

Anything with these methods works; tests use closed-form stand-ins of a few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """Predicts the velocity v = eps - x0 (method.md section 2)."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x`` [B, F, C, H, W] noised latents, ``t`` [B, F] in [0, 1] -> v like ``x``."""
        ...


@runtime_checkable
class CausalDenoiser(Protocol):
    """A denoiser that can see finished chunks through a cache that the caller owns."""

    def __call__(self, x: Tensor, t: Tensor, *, cache: Any = None, start: int = 0) -> Tensor:
        """Velocity of the frames ``start .. start + F - 1``, given what ``cache`` holds. Never writes."""
        ...

    def commit(self, x: Tensor, *, cache: Any, start: int) -> None:
        """One call at t = 0 that writes the keys and values of the clean frames ``x``, detached."""
        ...

    def commit_then(self, clean: Tensor, x: Tensor, t: Tensor, *, cache: Any, start: int) -> Tensor:
        """``commit`` of ``clean``, the frames before ``start``, and then the call on ``x``, in one; without grad."""
        ...

    def new_cache(self, batch: int, frames: int | None, height: int, width: int, *, reach: Any = None) -> Any:
        """An empty cache for ``frames`` latent frames of ``height x width`` (latent units), or without end (None).

        ``reach`` says how far back chunks look, if not as far as the network was made for.
        """
        ...


@runtime_checkable
class LatentStream(Protocol):
    """Decodes one clip chunk by chunk; equal to decoding it whole."""

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents [B, F, C, H, W] -> their pixel frames [B, T, 3, H, W] in [0, 1]."""
        ...

    def copy(self) -> LatentStream:
        """A stream of its own that has decoded the same."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Pixels to normalised latents and back."""

    def encode(self, video: Tensor) -> Tensor:
        """[B, T, 3, H, W] in [0, 1] -> normalised latents [B, F, C, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> [B, T, 3, H, W] in [0, 1]."""
        ...

    def stream(self) -> LatentStream:
        """A fresh stream; any number may be open at once."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to token features."""

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, L, D], zero beyond each prompt's end (those zeros are attended, as in Wan)."""
        ...
