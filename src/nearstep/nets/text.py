"""Prompts to token features: UMT5's encoder and its tokenizer, as Wan uses them.

Wan pads every prompt to a fixed length, zeroes the features of the padding and lets the video attend to those zeros
(method.md section 8); so does this. The playground's encoder is the same class, small, with a tokenizer of whole words
(:func:`build_tokenizer`), so that a word it has never seen is an error that names its neighbours, not a silent unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5EncoderModel
from transformers.tokenization_utils_base import LARGE_INTEGER

from nearstep.errors import NearstepError
from nearstep.nets.devices import device_of
from nearstep.nets.prompts import Encoded, check_encoded, cleaned, words_of

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # T5's special tokens, in T5's order
WAN_TEXT_LENGTH = 512


class Tokens(NamedTuple):
    """Prompts as a text encoder reads them, [B, L] int64 both."""

    ids: Tensor
    mask: Tensor

    def rows(self, chosen: Sequence[int]) -> Tokens:
        """Those of some of the prompts."""
        return Tokens(self.ids[[*chosen]], self.mask[[*chosen]])


class PromptEncoder(nn.Module):
    """Prompts -> ``[B, L, D]``, zero from each prompt's end to ``length``; differentiable.

    Args:
        tokenizer: a fast tokenizer (one that knows where in the prompt each token came from).
        encoder: UMT5's encoder, of any size.
        length: text tokens L; by default the tokenizer's ``model_max_length``, or Wan's 512 where it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, length: int | None = None):
        super().__init__()
        self.length = length or text_length(tokenizer)
        self.tokenizer = tokenizer
        self.encoder = encoder

    @classmethod
    def from_pretrained(cls, folder: str | Path, length: int | None = None, **options: Any) -> PromptEncoder:
        """The ``tokenizer/`` and ``text_encoder/`` of a model folder."""
        tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
        return cls(tokenizer, UMT5EncoderModel.from_pretrained(Path(folder) / "text_encoder", **options), length)

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.encoder.config.d_model

    def forward(self, prompts: Sequence[str], tokens: Tokens | None = None) -> Tensor:
        """``prompts`` -> features [B, L, D] in the encoder's dtype.

        Args:
            prompts: the texts.
            tokens: theirs, where they have been made already (:meth:`tokens`).

        Raises:
            NearstepError: if a prompt holds words the tokenizer does not know, or is longer than L tokens.
        """
        ids, mask = tokens or self.tokens(prompts)
        device, longest = device_of(self.encoder), int(mask.sum(1).max())  # attention skips padding: so does the work
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        features = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        features = features * mask.unsqueeze(-1).to(features)
        return pad(features, (0, 0, 0, self.length - longest))

    def tokens(self, prompts: Sequence[str]) -> Tokens:
        """Checked token ids and mask; raises as :meth:`forward` does, and runs no network."""
        return tokens(self.tokenizer, prompts, self.length)

    def vocabulary(self) -> list[str]:
        """Every word (or piece of one) that the tokenizer knows, without its special tokens, sorted."""
        return vocabulary(self.tokenizer)


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer that prompts cannot be read with.

    Raises:
        NearstepError: if it names no end, or nothing to fill up with.
    """
    text_length(tokenizer)
    if tokenizer.pad_token_id is None:
        raise NearstepError("the tokenizer has no token for padding: its tokenizer_config.json is damaged")


def text_length(tokenizer: PreTrainedTokenizerFast) -> int:
    """Text tokens L that a tokenizer names as its most, or Wan's 512 where it names none."""
    most = tokenizer.model_max_length
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise NearstepError(f"the tokenizer's model_max_length is {most!r}, not a number of tokens: it is damaged")
    return most if most < LARGE_INTEGER else WAN_TEXT_LENGTH


def tokens(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], length: int) -> Tokens:
    """Cleaned prompts as token ids and mask, both ``[B, length]`` int64.

    Raises:
        NearstepError: if a prompt holds words the tokenizer does not know, or is longer than ``length`` tokens.
    """
    if isinstance(prompts, str):
        raise NearstepError(f"a list of prompts is needed, got the single string {prompts!r}")
    prompts = [cleaned(prompt) for prompt in prompts]
    encoded = tokenizer(prompts, return_offsets_mapping=True)
    rows = [Encoded(*row) for row in zip(prompts, encoded["input_ids"], encoded["offset_mapping"], strict=True)]
    known = partial(vocabulary, tokenizer)
    check_encoded(rows, unknown=cast(int | None, tokenizer.unk_token_id), length=length, known=known)
    padded = torch.full((len(rows), length), cast(int, tokenizer.pad_token_id))
    mask = torch.zeros_like(padded)
    for row, (_, ids, _) in enumerate(rows):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return Tokens(padded, mask)


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Every word (or piece of one) that a tokenizer knows, without its special tokens, sorted."""
    return words_of(tokenizer.get_vocab(), tokenizer.all_special_tokens)


def build_tokenizer(words: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, in the standard folder format, that any AutoTokenizer loads.

    Case and punctuation do not count: "A red apple, sliding." is ``a red apple sliding </s>``, as T5 ends its text.

    Args:
        words: the vocabulary, lower case, one word each; order and repeats do not matter.
        length: text tokens L that a prompt is padded to, ``</s>`` included.
    """
    known = sorted(set(words))
    bad = [word for word in known if not word.isalnum() or word != word.lower()]
    if bad:
        raise NearstepError(f"a vocabulary holds single words in lower case, not {', '.join(map(repr, bad))}")
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=None, special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=length
    )
