"""A loaded model that is told what to show: texts, or their features, bound to its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.guidance import Guided
from nearstep.flow.live_plan import LivePlan, live_plan
from nearstep.models.folder import shift_of
from nearstep.nets.cache import KVCache
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.text import Tokens, text_length, tokens
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import CausalDenoiser
from nearstep.shapes import TEMPORAL_STRIDE
from nearstep.stream.finite import check_finite
from nearstep.stream.given import GivenTensor
from nearstep.stream.model import VideoModel
from nearstep.stream.request import Conditioning, guidance_of, own_guidance, row_seeds_of, samples_of, seed_of
from nearstep.stream.texts import Texts


class PromptedModel(VideoModel):
    """A model, and what binds texts and plans to it."""

    def conditioning(
        self,
        prompt: str | Sequence[str] | None,
        *,
        negative_prompt: str | Sequence[str] | None = "",
        guidance_scale: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        samples: Sequence[int] | None = None,
        num_videos_per_prompt: int | None = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> Conditioning:
        """What is to be shown, checked and tokenised, apart from size and plan; arguments as for :meth:`request`."""
        texts = Texts.of(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            width=self.transformer.config["text_dim"],
            times=num_videos_per_prompt,
        )
        count, own = len(texts.prompts), own_guidance(self.configs)
        guidance = guidance_of(own if guidance_scale is None else guidance_scale)
        length = texts.length_of(max_sequence_length, guided=guidance != 1)
        if isinstance(generator, Sequence):
            row_seeds = row_seeds_of(generator, seed, samples, count)
            first = row_seeds[0]
        else:
            row_seeds, first = (), seed_of(seed, generator)
        return Conditioning(
            prompts=texts.prompts,
            negative=texts.negative,
            guidance=guidance,
            seed=first,
            samples=(0,) * count if row_seeds else samples_of(samples, count),
            tokens=self._tokens(texts.different, length),  # unknown words are found here
            row_seeds=row_seeds,
            features=texts.features,
            negative_features=texts.negative_features,
            text_length=length,
        )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = "",
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int | None = 1,
        *,
        max_sequence_length: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Features [B, L, D] of prompts, to be handed over as ``prompt_embeds``, and of negative ones.

        Args:
            prompt: one, or several.
            negative_prompt: one, or one for each.
            do_classifier_free_guidance: whether the second is wanted; else it is None.
            num_videos_per_prompt: so many rows for each prompt, one after the other.
            max_sequence_length: L, the tokenizer's own by default.
        """
        texts = Texts.of(prompt, negative_prompt, times=num_videos_per_prompt)
        length = texts.length_of(max_sequence_length, guided=True)
        made = [
            self._encoded(part, self._tokens(part, length), length)
            for part in (texts.prompts, texts.negative)[: 1 + do_classifier_free_guidance]
        ]
        return made[0], made[1] if do_classifier_free_guidance else None

    def features(self, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Features [B, L, D] of the prompts, where the network is; and of the negative ones, where there is guidance.

        Raises:
            NearstepError: if both are there and their lengths differ.
        """
        text = self._features(conditioning, conditioning.prompts, conditioning.features)
        if not conditioning.guided:
            return text, None
        negative = self._features(conditioning, conditioning.negative, conditioning.negative_features)
        if text.shape != negative.shape:
            raise NearstepError(
                f"features of prompts {tuple(text.shape)} and of negative prompts {tuple(negative.shape)}: guidance "
                f"needs one shape; give both, or max_sequence_length"
            )
        return text, negative

    @torch.no_grad()
    def denoiser(self, conditioning: Conditioning) -> CausalDenoiser[KVCache]:
        """The network with the text bound, guided where that is wanted; under grad its keys would hold a graph."""
        text, negative = self.features(conditioning)
        return self.bound(text, negative, conditioning.guidance)

    @torch.no_grad()
    def bound(self, text: Tensor, negative: Tensor | None, guidance: float) -> CausalDenoiser[KVCache]:
        """The network with features [B, L, D] bound, guided where there are negative ones."""
        network = cast(VideoTransformer, self.transformer)
        if negative is None:
            return TextDenoiser(network, text)
        return Guided(TextDenoiser(network, torch.cat([text, negative.to(text)])), guidance)

    def _features(self, conditioning: Conditioning, texts: Sequence[str], given: GivenTensor | None) -> Tensor:
        if given is not None:
            return given.tensor.to(self.network_device)
        return self._encoded(texts, conditioning.tokens_of(texts), conditioning.text_length).to(self.network_device)

    def _tokens(self, texts: Sequence[str], length: int | None) -> Tokens:
        """Of texts, checked; the text encoder may be elsewhere."""
        return tokens(self.tokenizer, texts, length or text_length(self.tokenizer))

    def _encoded(self, texts: Sequence[str], made: Tokens, length: int | None) -> Tensor:
        """Texts [B] -> [B, L, D]; a text that is there more than once is encoded once."""
        if self.text_encoder is None and self._deferred_text is None:
            raise NearstepError("the text encoder was taken away; give prompt_embeds and, with guidance, negative ones")
        rows: dict[str, int] = {}
        for row, text in enumerate(texts):
            rows.setdefault(text, row)
        features = self.prompt_encoder_of(length)(list(rows), made.rows(list(rows.values())))
        check_finite(features, f"the text encoder's features of {texts[0][:60]!r}")
        if len(rows) == len(texts):
            return features
        places = {text: place for place, text in enumerate(rows)}
        return features[[places[text] for text in texts]]

    def live_plan(self, text: str) -> LivePlan:
        """What a plan string means for a stream of this model."""
        return live_plan(
            text,
            shift=shift_of(self.scheduler.config),
            grid=self.settings.grid,
            frames=TEMPORAL_STRIDE * self.chunk_frames,
            levels=self.settings.agreement,
        )
