"""Prompts held against a model's tokenizer before anything of the model is loaded. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nearstep.errors import NearstepError
from nearstep.models.folder import ModelFolder, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that says nothing, or is no text.

    Raises:
        NearstepError: for what is empty or blank, also when it is cleaned as Wan does, or holds half a character.
    """
    if not isinstance(prompt, str):
        raise NearstepError(f"a prompt is a string, not {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise NearstepError(f"the prompt {prompt[:60]!r} is no text in UTF-8: it holds half a character") from None
    from nearstep.nets.prompts import cleaned

    if not cleaned(prompt):
        raise NearstepError("a prompt is empty; say what the clip shows")


def check_prompts(folder: ModelFolder, prompts: Mapping[str, str], length: int = 512) -> None:
    """Refuse prompts that a model's tokenizer cannot hold; all of them in one pass.

    A model without a ``tokenizer.json`` has its prompts checked when it is loaded.

    Args:
        folder: the model.
        prompts: each, and where it stands ("" where it was typed).
        length: tokens that fit where the tokenizer does not say.

    Raises:
        NearstepError: naming the first such prompt's place, its unknown words and what is near them, or its length.
    """
    from nearstep.nets.prompts import Encoded, check_encoded, cleaned

    home = folder.path / "tokenizer"
    tokenizer = _tokenizer(home) if prompts else None
    if tokenizer is None:
        return
    settings = read_json(home / _SETTINGS) if (home / _SETTINGS).is_file() else {}
    known = partial(_words, tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    stated, unknown = settings.get("model_max_length"), settings.get("unk_token")
    most = stated if isinstance(stated, int) and 0 < stated < length else length
    strange = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
    texts = [cleaned(prompt) for prompt in prompts]
    for text, place, found in zip(texts, prompts.values(), tokenizer.encode_batch(texts), strict=True):
        try:
            check_encoded([Encoded(text, found.ids, found.offsets)], unknown=strange, length=most, known=known)
        except NearstepError as error:
            raise NearstepError(f"{place}: {error}" if place else str(error)) from None


def vocabulary(folder: ModelFolder) -> list[str] | None:
    """Every word (or piece of one) that a model's tokenizer knows, sorted; None where its folder does not say."""
    tokenizer = _tokenizer(folder.path / "tokenizer")
    return None if tokenizer is None else _words(tokenizer)


def _tokenizer(home: Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    if not (home / _TOKENIZER).is_file():
        return None
    try:
        return Tokenizer.from_file(str(home / _TOKENIZER))
    except Exception:  # of any type; loading says what is wrong with it
        return None


def _words(tokenizer: Tokenizer) -> list[str]:
    from nearstep.nets.prompts import words_of

    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    return words_of(tokenizer.get_vocab(with_added_tokens=False), special)
