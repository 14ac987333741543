"""``nearstep info --words``: what prompts may say, by what it states."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from nearstep.cli import info
from nearstep.errors import NearstepError
from nearstep.models.folder import ModelFolder
from nearstep.nets.text import build_tokenizer
from nearstep.playground import PLAYGROUND, Playground
from nearstep.playground.world import WorldConfig
from nearstep.recipes.worlds import WORLDS


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_phrase_is_one_that_the_world_reads(world):
    known = set(world.vocabulary())
    for name, phrases in world.words().items():
        assert phrases, name
        for phrase in phrases:
            assert set(phrase.replace("-", " ").split()) <= known | {"sized"}, phrase


def test_the_things_are_those_of_the_world_by_category():
    words = PLAYGROUND.words()
    assert sum(len(words[name]) for name in list(words)[:8]) >= len(PLAYGROUND.config.names)
    assert words["fruit"] == ["apple", "banana"]
    few = Playground(WorldConfig(things=8)).words()
    assert all(1 <= len(few[name]) <= 2 for name in list(few)[:8])  # one of each category, by all of its names


def test_words_of_the_embedded_model(capsys: pytest.CaptureFixture[str]):
    info.run(["playground", "--words"])
    shown = capsys.readouterr().out
    assert "colour" in shown
    assert "for example" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    info.run(["playground", "--words", "--json"])
    words = json.loads(capsys.readouterr().out)
    assert words["colour"] == PLAYGROUND.words()["colour"]
    assert all(PLAYGROUND.vocabulary() for _ in words["for example"])


def folder_of(vocabulary: Iterable[str], path: Path) -> ModelFolder:
    build_tokenizer([*vocabulary], length=8).save_pretrained(path / "tokenizer")
    return ModelFolder(path, {})


def test_a_model_of_no_known_world(tmp_path: Path):
    assert info.words_of(folder_of(("apple", "pear"), tmp_path / "few")) == {"words": ["apple", "pear"]}
    with pytest.raises(NearstepError, match="reads any prompt"):
        info.words_of(folder_of(map(str, range(6000)), tmp_path / "many"))


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path):
    with pytest.raises(NearstepError, match="no tokenizer"):
        info.words_of(ModelFolder(tmp_path, {}))
