"""Prompts as a tokenizer reads them, held against its vocabulary and length; torch is not needed."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import ftfy

from nearstep.errors import NearstepError
from nearstep.words import unknown_words

WORD_START = "\u2581"  # how sentence-piece vocabularies mark a piece that begins a word


class Encoded(NamedTuple):
    """A cleaned prompt and its tokens."""

    prompt: str
    ids: Sequence[int]
    places: Sequence[tuple[int, int]]
    """Where in the prompt each token came from."""


def cleaned(prompt: str) -> str:
    """What Wan does to a prompt first: broken encodings mended, HTML entities read, white space made single."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def words_of(vocabulary: Iterable[str], special: Iterable[str]) -> list[str]:
    """Every word (or piece of one) of a tokenizer's vocabulary, without its special tokens, sorted."""
    return sorted({token.removeprefix(WORD_START) for token in set(vocabulary) - set(special)})


def check_encoded(rows: Iterable[Encoded], *, unknown: int | None, length: int, known: Callable[[], list[str]]) -> None:
    """Refuse prompts that a tokenizer cannot hold.

    Args:
        rows: the prompts.
        unknown: the id of what it does not know.
        length: tokens that fit.
        known: its words, asked for only where one is missing.

    Raises:
        NearstepError: on words that it does not know, with those that come closest, a prompt in which it reads nothing
            at all though it is not empty, or one that is too long. (Wan cuts it there without a word: diffusers
            ``pipeline_wan.py``, truncation=True.)
    """
    long: Encoded | None = None
    strange: dict[str, None] = {}  # an ordered set
    for row in rows:
        if row.prompt and not any(end > start for start, end in row.places):
            raise NearstepError(f"the model reads no word in {row.prompt[:60]!r}; say what the clip shows")
        found = zip(row.ids, row.places, strict=True)
        strange |= dict.fromkeys(_word_at(row.prompt, *place) for token, place in found if token == unknown)
        long = row if long is None and len(row.ids) > length else long
    if strange:
        what = "the word" if len(strange) == 1 else "the words"
        raise NearstepError(f"the model does not know {what} {unknown_words([*strange], known())}")
    if long is not None:
        raise NearstepError(f"a prompt has {len(long.ids)} tokens, {length} fit: shorten {long.prompt[:60]!r}...")


def _word_at(prompt: str, start: int, end: int) -> str:
    """The whole word around ``prompt[start:end]``, which a sub-word tokenizer may have cut to a letter."""
    while start > 0 and prompt[start - 1].isalnum():
        start -= 1
    while end < len(prompt) and prompt[end].isalnum():
        end += 1
    return prompt[start:end]
