"""Words from outside: what is near them makes sense in every vocabulary, and nothing else is offered."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep import NearstepError
from nearstep.data.prompts import read_prompts
from nearstep.models.folder import ModelFolder
from nearstep.models.prompts import check_prompts
from nearstep.playground import PLAYGROUND, parsing
from nearstep.words import near_word, unknown_words

WORDS = parsing.vocabulary()
"""Of all things; the world that is shipped has fewer."""


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("kitten", "cat"),
        ("cat", "cat"),  # and never "at"
        ("sofa", None),  # nor "of"
        ("sphere", "ball"),
        ("violet", "hyacinth"),
        ("evening", "night"),
        ("meadows", "meadow"),
        ("gigantic", "large"),
        ("balls", "ball"),
        ("sldies", "slides"),
        ("purpel", "purple"),
        ("elefant", "elephant"),
        ("ein", None),
        ("zeppelin", None),
        ("🎈", None),
    ],
)
def test_near_words_make_sense(word: str, near: str | None) -> None:
    assert near_word(word, WORDS) == near


def test_a_world_of_fewer_words_is_offered_those() -> None:
    assert (
        near_word("violet", PLAYGROUND.vocabulary()) == "purple"
        and near_word("elefant", PLAYGROUND.vocabulary()) is None
    )


@settings(max_examples=20)
@given(st.text(max_size=12))
def test_what_is_offered_is_known(word: str) -> None:
    near = near_word(word, WORDS)
    assert near is None or set(near.split()) <= set(WORDS)


@pytest.mark.parametrize("known", [PLAYGROUND.vocabulary(), WORDS])
def test_messages_are_short(known: tuple[str, ...]) -> None:
    assert unknown_words(["purpel"], known) == "'purpel': did you mean purple?"
    assert len(unknown_words(["sofa"], known).split()) < 70
    many = unknown_words([f"sofa{number}" for number in range(3000)], known)
    assert "; and 2940 more" in many and len(many) < 3000


def test_the_place_in_a_file_is_named(tmp_path: Path) -> None:
    for name, text in {
        "a.txt": "a red ball\n\na crimson ball\n",
        "a.jsonl": '{"text": "a red ball"}\n\n"a crimson ball"\n',
        "a.csv": "prompt\na red ball\na crimson ball\n",
    }.items():
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        found = read_prompts([file])
        with pytest.raises(NearstepError, match=f"{name}, line 3: .* the word 'crimson': did you mean red\\?$"):
            check_prompts(ModelFolder.open("playground"), dict(zip(found.texts, found.places, strict=True)))


def test_checking_takes_as_long_as_there_are_prompts() -> None:
    folder, scenes = ModelFolder.open("playground"), [f"{'big ' * (n % 7)}red ball" for n in range(7)]

    def seconds(count: int) -> float:
        prompts = {f"{scenes[n % 7]}{'!' * (n // 7 % 50)}{'.' * (n // 350)}": "" for n in range(count)}
        assert len(prompts) == count
        began = time.process_time()
        check_prompts(folder, prompts)
        return time.process_time() - began

    seconds(10)
    assert seconds(8000) < 30 * seconds(1000) + 0.1  # 64 times as long where pairs are looked at
