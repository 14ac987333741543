"""The seams: what a denoiser, a codec, a text encoder and a world are to the rest of the code.

Anything with these methods works; tests use closed-form stand-ins of a few lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from nearstep.reach import Reach

Caption = str | tuple[str, ...]
"""Of a whole clip, or of each of its scenes in turn."""
Cache = TypeVar("Cache")
"""What a denoiser keeps of finished chunks; whoever holds it hands it on unopened."""


@runtime_checkable
class Denoiser(Protocol):
    """Predicts the velocity v = eps - x0 (method.md section 2)."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x`` [B, F, C, H, W] noised latents, ``t`` [B, F] in [0, 1] -> v like ``x``."""
        ...


@runtime_checkable
class CausalDenoiser(Protocol[Cache]):
    """A denoiser that can see finished chunks through a cache that the caller owns."""

    def __call__(self, x: Tensor, t: Tensor, *, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Velocity of the frames ``start .. start + F - 1``, given what ``cache`` holds. Never writes."""
        ...

    def commit(self, x: Tensor, *, cache: Cache, start: int) -> None:
        """One call at t = 0 that writes the keys and values of the clean frames ``x``, detached."""
        ...

    def commit_then(self, clean: Tensor, x: Tensor, t: Tensor, *, cache: Cache, start: int) -> Tensor:
        """``commit`` of ``clean``, the frames before ``start``, and then the call on ``x``, in one; without grad."""
        ...

    def new_cache(
        self, batch: int, frames: int | None, height: int, width: int, *, reach: Reach | None = None
    ) -> Cache:
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


@runtime_checkable
class Verdict(Protocol):
    """What a judge says of one clip and its prompt. Every number lies in [0, 1]; 1 is a true clip."""

    @property
    def agreement(self) -> Mapping[str, float]:
        """Attribute that the prompt states -> the part of its statements that the clip shows."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """Name of a figure of quality -> its value."""
        ...

    @property
    def course(self) -> Sequence[float]:
        """How good each part of the clip looks, in order."""
        ...

    @property
    def semantic(self) -> float:
        """Mean agreement over what the prompt states."""
        ...

    @property
    def correct(self) -> bool:
        """Whether the clip shows everything that the prompt states."""
        ...

    @property
    def quality(self) -> float:
        """One number for all figures."""
        ...

    @property
    def total(self) -> float:
        """One number for quality and semantic."""
        ...


@runtime_checkable
class World(Protocol):
    """What a model learns and is measured on: an endless set of captioned clips, and a judge of clips.

    A clip is named by a seed and an index. Streams of different seeds share nothing, so a seed that no training draws
    from is a held-out set.
    """

    @property
    def name(self) -> str:
        """Names the world and every setting of it that changes what a clip shows."""
        ...

    @property
    def size(self) -> int:
        """Height and width of a frame in pixels."""
        ...

    @property
    def frames(self) -> int:
        """Pixel frames of a clip, 4n + 1."""
        ...

    @property
    def fps(self) -> float:
        """Pixel frames per second."""
        ...

    def prompts(
        self, seed: int, indices: Sequence[int], *, wording: int | None = None, complete: bool = True
    ) -> list[str]:
        """Captions of the clips ``indices`` of the stream ``seed``.

        Args:
            seed: names the stream.
            indices: name the clips.
            wording: names the choice of words, the stream's own by default; each is another caption of the same clip.
            complete: leave nothing out that the world's captions can state; otherwise what training should also know
                is left open now and then.
        """
        ...

    def clips(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """The true clips [B, T, 3, H, W] in [0, 1], from frame ``first`` on; ``frames`` of them or all."""
        ...

    def focus(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Where there is most to see in ``clips`` of the same arguments, [B, 2] as (x, y) in pixels."""
        ...

    def foreground(self, seed: int, indices: Sequence[int], *, frames: int | None = None, first: int = 0) -> Tensor:
        """Where ``clips`` of the same arguments show more than a background, [B, T, 1, H, W]: 1 there, else 0."""
        ...

    def judge(self, video: Tensor, prompts: Sequence[str]) -> Sequence[Verdict]:
        """Hold clips [B, T, 3, H, W] in [0, 1] against one prompt each.

        Args:
            video: the clips.
            prompts: one for each; any that the world understands.

        Raises:
            NearstepError: on clips or prompts that are not of this world.
        """
        ...

    def features(self, video: Tensor) -> Tensor:
        """Clips [B, T, 3, H, W] -> [B, D], to compare sets of clips by; another D wherever features are others."""
        ...

    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a caption may hold."""
        ...

    def words(self) -> Mapping[str, Sequence[str]]:
        """What captions can state -> the phrases that state it, for people to choose from."""
        ...


@runtime_checkable
class SurveyWorld(World, Protocol):
    """A world whose judge also knows figures of a set of clips, which no clip has by itself, such as their variety."""

    def survey(self, verdicts: Sequence[Verdict]) -> Mapping[str, float]:
        """Name of a figure in [0, 1] -> its value for at least one clip; absent where they say nothing of it."""
        ...


@runtime_checkable
class StoryWorld(World, Protocol):
    """A world whose clips can change with their captions: what two captions share goes on from where it is."""

    def stories(self, seed: int, indices: Sequence[int], starts: Sequence[int], *, frames: int | None = None) -> Tensor:
        """Clips [B, T, 3, H, W] in [0, 1] of which another scene is shown from each of the frames ``starts`` on."""
        ...

    def story_prompts(
        self,
        seed: int,
        indices: Sequence[int],
        starts: Sequence[int],
        *,
        wording: int | None = None,
        complete: bool = True,
    ) -> list[tuple[str, ...]]:
        """Of each of ``stories``, a caption of every scene in turn; ``wording`` and ``complete`` as for ``prompts``."""
        ...
