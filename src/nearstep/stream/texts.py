"""What clips are to show, in words or as features of words: as diffusers' pipelines take them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.models.prompts import check_prompt
from nearstep.ranges import check_count
from nearstep.stream.given import GivenTensor, each_times, given_features
from nearstep.stream.request import whole

MOST_VIDEOS = MOST_TOKENS = 10**4


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A prompt and a negative one for each clip; "" where features take its place."""

    prompts: tuple[str, ...]
    negative: tuple[str, ...]
    features: GivenTensor | None = None
    """[B, L, D]."""
    negative_features: GivenTensor | None = None

    @property
    def different(self) -> tuple[str, ...]:
        """Every different text, once."""
        return tuple(dict.fromkeys((*self.prompts, *self.negative)))

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str] | None,
        negative: str | Sequence[str] | None = None,
        features: Tensor | None = None,
        negative_features: Tensor | None = None,
        *,
        width: int = 0,
        times: int | None = 1,
    ) -> Texts:
        """What was asked for.

        Args:
            prompt: one, several, or None where there are features.
            negative: one, one for each prompt, or None.
            features: of the prompts.
            negative_features: of the negative ones.
            width: D of features.
            times: clips of each prompt, one after the other.

        Raises:
            NearstepError: unless each is said once, in one number of rows.
        """
        times = 1 if times is None else whole("num_videos_per_prompt", times)
        check_count("num_videos_per_prompt", times, most=MOST_VIDEOS)
        if (prompt is None) == (features is None):
            both = "not both" if prompt is not None else "there is neither"
            raise NearstepError(f"give a prompt (a string or a list of strings) or prompt_embeds; {both}")
        for name, given in (("prompt", prompt), ("negative_prompt", negative)):
            if isinstance(given, np.ndarray | Tensor):
                raise NearstepError(f"{name} is an array; give a string or a list of strings")
        if negative and negative_features is not None:
            raise NearstepError("give a negative_prompt or negative_prompt_embeds, not both")
        text = None if features is None else given_features("prompt_embeds", features, width=width)
        prompts = ("",) * len(text.tensor) if text is not None else _strings("prompt", prompt or ())
        for each in prompts if text is None else ():
            check_prompt(each)
        negatives = _negatives(negative or "", len(prompts))
        against = None
        if negative_features is not None:
            name, rows = "negative_prompt_embeds", len(prompts)
            against = given_features(name, negative_features, width=width, count=rows)
        return cls(
            prompts=_each(prompts, times),
            negative=_each(negatives, times),
            features=each_times(text, times),
            negative_features=each_times(against, times),
        )

    def length_of(self, tokens: int | None, *, guided: bool) -> int | None:
        """Text tokens L to pad to, where they were asked for.

        Raises:
            NearstepError: for no such number, or where features take the place of all texts.
        """
        if tokens is None:
            return None
        check_count("max_sequence_length", whole("max_sequence_length", tokens), most=MOST_TOKENS)
        if self.features and (self.negative_features or not guided):
            raise NearstepError("max_sequence_length is about prompts, and prompt_embeds have their own; leave it out")
        return int(tokens)


def _strings(name: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(texts, str | Sequence):
        raise NearstepError(f"{name}={texts!r}; give a string or a list of strings")
    several = (texts,) if isinstance(texts, str) else tuple(texts)
    if not several:
        raise NearstepError(f"no {name} was given; give a string or a list of strings")
    if strange := [text for text in several if not isinstance(text, str)]:
        raise NearstepError(f"a {name} is a string, not {strange[0]!r}")
    return several


def _negatives(negative: str | Sequence[str], count: int) -> tuple[str, ...]:
    several = _strings("negative prompt", negative)
    if isinstance(negative, str):
        return several * count
    if len(several) != count:
        raise NearstepError(f"{len(several)} negative prompts for {count} prompts; give one, or one each")
    return several


def _each(texts: Sequence[str], times: int) -> tuple[str, ...]:
    return tuple(text for text in texts for _ in range(times))
