"""Captions say what scenes are, at both levels, and are read back without loss."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nearstep.errors import NearstepError
from nearstep.playground import Playground
from nearstep.playground.captions import LEVELS, caption
from nearstep.playground.parsing import parse, tokens, vocabulary
from nearstep.playground.sprites import CATEGORIES, THINGS
from nearstep.playground.words import CATEGORY_NOUNS, RELATION_PHRASES, VERBS, WAY_PHRASES
from nearstep.playground.world import WorldConfig, sample_scenes
from nearstep.words import SHOWN, near_word

SCENES = sample_scenes(WorldConfig(things=len(THINGS)), 3, range(600))
NUMBERED = list(enumerate(SCENES))


@pytest.mark.parametrize("level", LEVELS)
def test_a_complete_caption_is_read_back_whole(level):
    for index, scene in NUMBERED:
        said = parse(caption(scene, seed=1, index=index, level=level))
        assert (said.place, said.relation) == (scene.place, scene.relation)
        assert len(said.subjects) == len(scene.actors)
        for subject, actor in zip(said.subjects, scene.actors, strict=True):
            for name in ("size", "motion", "direction", "speed", "category"):
                assert getattr(subject, name) == actor.attributes[name]
            assert subject.thing == (actor.thing if level == "thing" else None)
            assert actor.thing in subject.things


@pytest.mark.parametrize("level", LEVELS)
def test_an_incomplete_caption_states_nothing_wrong(level):
    left_out = 0
    for index, scene in NUMBERED:
        said = parse(caption(scene, seed=1, index=index, level=level, complete=False))
        assert said.place in (scene.place, None) and said.relation == scene.relation
        for subject, actor in zip(said.subjects, scene.actors, strict=True):
            assert all(actor.attributes[name] == value for name, value in subject.stated.items())
            left_out += subject.size is None
    assert left_out > 0.05 * len(SCENES)


def test_wording_varies_and_repeats_for_the_same_name():
    scene = SCENES[0]
    worded = {caption(scene, seed=0, index=index) for index in range(50)}
    assert len(worded) > 25
    assert caption(scene, seed=0, index=5) == caption(scene, seed=0, index=5)


def test_captions_keep_to_the_vocabulary():
    known, used = set(vocabulary()), set()
    for index, scene in NUMBERED:
        for level in LEVELS:
            used |= set(tokens(caption(scene, seed=2, index=index, level=level)))
    assert used <= known
    assert len(used) > 0.9 * len(known)


def test_a_world_of_fewer_things_knows_fewer_words():
    few = Playground(WorldConfig(things=8))
    words = set(few.vocabulary())
    assert {"cat", "guitar", "animal", "instrument", "red"} <= words < set(vocabulary())
    assert not {"dog", "violin", "penguin"} & words
    assert set(tokens(" ".join(few.prompts(3, range(200))))) <= words


def test_a_category_has_a_noun_and_everything_has_words_from_outside():
    assert set(CATEGORY_NOUNS) == set(CATEGORIES)
    assert {*THINGS, *CATEGORIES} <= SHOWN.keys()


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("a ball rests", {name for name, thing in THINGS.items() if thing.category == "ball"}),
        ("a rugby ball rests", {"rugby ball"}),
        ("a soccer ball rests", {"football"}),
        ("a red fruit rests", {"apple", "watermelon", "strawberry"}),
        ("a donut", {"doughnut"}),
    ],
)
def test_what_a_noun_may_be(text: str, things: set[str]):
    assert parse(text).subjects[0].things == things


def test_attributes_belong_to_their_thing():
    said = parse(
        "In the snow, a small cat slides up and to the left behind a large bus that bounces quickly up and down."
    )
    assert said.place == "snow" and said.relation == "behind"
    assert said.subjects[0].stated == {"thing": "cat", "size": "small", "motion": "slide", "direction": "up left"}
    second = {"thing": "bus", "size": "large", "motion": "bounce", "direction": "vertical", "speed": "fast"}
    assert said.subjects[1].stated == second


def test_a_direction_alone_is_a_slide_and_a_turn_an_orbit():
    assert parse("a cat left").subjects[0].motion == "slide"
    assert parse("a cat clockwise").subjects[0].motion == "orbit"
    assert parse("a cat in front of a wall").relation is None


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("kitten", "cat"),
        ("puppies", None),
        ("puppy", "dog"),
        ("cats", "cat"),
        ("elefant", "elephant"),
        ("sunflowr", "sunflower"),
        ("kat", None),
        ("rose", "tulip"),
        ("ocean", "water"),
        ("xylophone", None),
    ],
)
def test_near_words_are_near_in_meaning_or_misspelt(word: str, near: str | None):
    assert near_word(word, vocabulary()) == near


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a kitten rests", "'kitten': did you mean cat"),
        ("a flibber rests", "'flibber'; it shows: cat, dog, frog"),
        ("a red banana rests", "no banana here is red; banana yellow"),
        ("slides left", "names 0 things"),
        ("a cat a dog a bus", "names 3 things"),
        ("a cat in front of", "in front of what"),
        ("a cat rests large", "says large of nothing"),
        ("a cat rests slowly", "what rests has no speed"),
        ("a cat bounces clockwise", "only what circles"),
        ("a cat slides left and right", "a slide goes one way"),
        ("a cat swings left", "what swings has no such direction"),
        ("a cat swings left and right", "what swings has no such direction"),
        ("a cat circles up and down", "what circles has no such direction"),
        ("a cat slides sideways", "only what bounces goes both ways"),
        ("a cat sideways on snow", "only what bounces goes both ways"),
        ("кошка a frog slides left", "unknown in this world: 'кошка'"),
        ("あ cat rests", "unknown in this world"),
        ("a cat on snow at night", "more than one place: night, snow"),
        ("a small large cat", "more than one size: large, small"),
    ],
)
def test_what_cannot_be_is_said_plainly(text: str, said: str):
    with pytest.raises(NearstepError, match=said):
        parse(text)


def test_a_caption_is_read_in_the_world_that_it_is_of():
    few = WorldConfig(things=16).names
    assert parse("a ball rests", few).subjects[0].things == {"football", "basketball"}
    with pytest.raises(NearstepError, match="no ball here is white; basketball orange, football blue$"):
        parse("a white ball rests", few)
    with pytest.raises(NearstepError, match="'dog'"):
        parse("a dog rests", few)
    colours = Playground(WorldConfig(things=16)).words()["colour"]
    assert {"red", "orange"} <= {*colours} and not {"white", "grey", "gray", "purple"} & {*colours}


def test_a_fast_way_is_worded_after_its_verb_and_apart_from_a_relation():
    texts = [caption(scene, seed=9, index=index) for index, scene in NUMBERED]
    verbs = {word for words in VERBS["motion"].values() for word in words}
    ways = {phrase.split()[-1] for phrases in WAY_PHRASES.values() for phrase in phrases}
    relations = {phrase.split()[0] for phrases in RELATION_PHRASES.values() for phrase in phrases} - {"in", "to"}
    for text in texts:
        words = text.split()
        for word, after in pairwise(words):
            assert not (word == "fast" and after in verbs), text
            assert not (word in ways and after in relations), text


def test_a_level_that_does_not_exist_is_refused():
    with pytest.raises(NearstepError, match="one of thing, category"):
        caption(SCENES[0], seed=0, index=0, level="colour")
