"""The text encoder's laws: padding is zero and does not matter, unknown words are named, folders load anywhere."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from nearstep.errors import NearstepError
from nearstep.nets.text import PromptEncoder, build_tokenizer, cleaned

WORDS = "a small large red blue ball football slides bounces left right fast on the sky".split()


def tiny_encoder(vocabulary: int) -> UMT5EncoderModel:
    torch.manual_seed(0)
    sizes = dict(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, **sizes)).eval()


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    tokenizer = build_tokenizer(WORDS, length=12)
    return PromptEncoder(tokenizer, tiny_encoder(len(tokenizer)))


def test_padding_is_zero_and_words_are_not(encoder: PromptEncoder) -> None:
    features = encoder(["a red ball", "", "a small blue football slides left"])
    assert features.shape == (3, 12, 16)
    for row, tokens in zip(features, (4, 1, 7), strict=True):  # the words and </s>
        assert (row[:tokens].abs().amax(-1) > 0).all()
        assert not row[tokens:].any()


def test_a_prompt_does_not_depend_on_its_batch_or_on_the_length(encoder: PromptEncoder) -> None:
    alone = encoder(["a red ball"])
    together = encoder(["a small blue football slides left", "a red ball"])[1:]
    torch.testing.assert_close(alone, together)
    longer = PromptEncoder(encoder.tokenizer, encoder.encoder, length=30)(["a red ball"])
    torch.testing.assert_close(alone, longer[:, :12])


@pytest.mark.parametrize(
    "prompt", ["A Red BALL.", "a  red,ball!", " a\nred-ball", "a&nbsp;red ball", "a (red) 'ball'..."]
)
def test_case_space_and_punctuation_do_not_count(encoder: PromptEncoder, prompt: str) -> None:
    assert torch.equal(encoder([prompt]), encoder(["a red ball"]))


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(["a&amp;nbsp;b", "sÃ³", " \u3000a\x1cb\n"]))
def test_prompts_are_cleaned_as_wan_cleans_them(prompt: str) -> None:
    assert cleaned(prompt) == prompt_clean(prompt)  # diffusers'


def test_unknown_words_are_named_with_their_neighbours(encoder: PromptEncoder) -> None:
    with pytest.raises(NearstepError) as caught:
        encoder(["a read ball", "a Zeppelin slids left"])
    message = str(caught.value)
    assert "'read': did you mean red?" in message and "'slids': did you mean slides?" in message
    assert "'Zeppelin'" in message and "it shows: football, ball" in message and "\n" not in message


@pytest.mark.parametrize("prompt", ["a 🙂 ball", "a красный ball", "a ball → left"])
def test_signs_it_cannot_read_are_unknown_words(encoder: PromptEncoder, prompt: str) -> None:
    with pytest.raises(NearstepError, match="does not know the word"):
        encoder([prompt])


def test_too_long_and_not_a_list(encoder: PromptEncoder) -> None:
    with pytest.raises(NearstepError, match="has 14 tokens, 12 fit"):
        encoder(["red " * 13])
    with pytest.raises(NearstepError, match="list of prompts"):
        encoder("a red ball")


def test_gradients_reach_the_embedding_of_the_words_said(encoder: PromptEncoder) -> None:
    encoder(["a red ball"]).square().sum().backward()
    grad = encoder.encoder.get_input_embeddings().weight.grad
    assert grad is not None
    said, unsaid = (encoder.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue"))
    assert grad[said].any() and not grad[unsaid].any()


def test_folder_round_trip(encoder: PromptEncoder, tmp_path) -> None:
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.tokenize("A large, red ball.") == ["a", "large", "red", "ball"]
    assert tokenizer("A large ball")["input_ids"] == encoder.tokenizer("a large ball")["input_ids"]
    loaded = PromptEncoder.from_pretrained(tmp_path).eval()
    assert loaded.length == 12
    assert torch.equal(loaded(["a red ball"]), encoder(["a red ball"]))


def test_vocabulary_is_the_words(encoder: PromptEncoder) -> None:
    assert encoder.vocabulary() == sorted(WORDS)
    with pytest.raises(NearstepError, match="'Red'.*'left right'"):
        build_tokenizer(["Red", "left right"], length=4)


def test_a_subword_tokenizer_works_unchanged() -> None:
    """T5's own kind: pieces, where an odd word is spelt out and a missing letter is unknown."""
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁a", -2.0), ("▁red", -2.0)]
    pieces += [(letter, -5.0) for letter in "abcdelr"]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=16)
    encoder = PromptEncoder(tokenizer, tiny_encoder(len(tokenizer)))
    assert encoder(["a red ball"]).shape == (1, 16, 16)
    with pytest.raises(NearstepError, match="'fox'.*'Band'"):
        encoder(["a red fox", "a Band"])
