"""The judge finds nothing wrong with real clips, and in a clip broken in one way, that one thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.playground.breaks import BREAKS, blurred, noised, spoiled
from nearstep.playground.captions import caption
from nearstep.playground.judge.agreement import compare
from nearstep.playground.judge.judge import Verdict, judge
from nearstep.playground.judge.names import Found, FoundThing
from nearstep.playground.judge.quality import FIGURES
from nearstep.playground.judge.survey import survey
from nearstep.playground.parsing import parse
from nearstep.playground.sprites import THINGS
from nearstep.playground.world import Scene, WorldConfig, render, sample_scenes
from nearstep.rng import generator
from nearstep.shapes import chunk_frames

WORLD = WorldConfig()
KINDS = {"one": WorldConfig(pairs=0.0), "two": WorldConfig(pairs=1.0)}


def sample(kind: str, count: int) -> tuple[list[Scene], list[str]]:
    scenes = sample_scenes(KINDS[kind], 5, range(count))
    return scenes, [caption(s, seed=5, index=i, level=("thing", "category")[i % 2]) for i, s in enumerate(scenes)]


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Mean of every mark and figure."""
    values: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, share in {**verdict.agreement, **verdict.figures, "dynamic": float(verdict.dynamic)}.items():
            values.setdefault(name, []).append(share)
    return {name: sum(parts) / len(parts) for name, parts in values.items()}


@pytest.fixture(scope="module", params=KINDS)
def real(request) -> tuple[str, list[Scene], list[str], dict[str, float], list[Verdict]]:
    scenes, texts = sample(request.param, 16)
    verdicts = judge(render(WORLD, scenes), texts, WORLD)
    return request.param, scenes, texts, shares(verdicts), verdicts


def test_real_clips_agree_with_their_captions_and_look_good(real):
    _, _, texts, seen, verdicts = real
    assert [text for text, verdict in zip(texts, verdicts, strict=True) if not verdict.correct] == []
    assert min(seen[name] for name in FIGURES) > 0.97


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_lowers_what_it_should(real, name: str):
    _, scenes, texts, seen, _ = real
    rows, video = spoiled(BREAKS[name], WORLD, scenes[:8])
    if not rows:
        pytest.skip("no scene of this kind can be broken like this")
    verdicts = judge(video, [texts[row] for row in rows], WORLD)
    found = shares(verdicts)
    for lowered in BREAKS[name].lowers:
        if lowered in found:
            assert found[lowered] < seen[lowered] - 0.05, lowered
    for kept in BREAKS[name].keeps:
        assert found[kept] > seen[kept] - 0.13, kept  # one clip of eight may be taken for another


def test_a_codec_like_loss_leaves_agreement():
    # About 34 dB.
    scenes, texts = sample("one", 8)
    video = torch.stack([noised(blurred(clip, 0.6), 0.015, i) for i, clip in enumerate(render(WORLD, scenes))])
    assert 30 < -10 * (video - render(WORLD, scenes)).square().mean().log10() < 36
    assert all(verdict.correct for verdict in judge(video, texts, WORLD))


def test_what_a_clip_shows_does_not_depend_on_its_batch():
    scenes, texts = sample("two", 3)
    video = render(WORLD, scenes)
    assert judge(video, texts, WORLD)[1].found == judge(video[1:2], texts[1:2], WORLD)[0].found


def test_finer_worlds_and_longer_clips_are_judged_by_configuration_alone():
    fine = replace(KINDS["one"], size=96)
    scenes, texts = sample("one", 2)
    assert all(verdict.correct for verdict in judge(render(fine, scenes), texts, fine))
    assert all(verdict.correct for verdict in judge(render(WORLD, scenes, frames=69), texts, WORLD))


def test_an_empty_place_shows_nothing():
    scenes, texts = sample("one", 2)
    empty = render(WORLD, [replace(scene, actors=()) for scene in scenes])
    for verdict in judge(empty, texts, WORLD):
        assert verdict.found.things == () and verdict.quality == 0
        assert verdict.agreement["count"] == 0


def test_what_leaves_halfway_is_not_found_and_counts_for_nothing_but_the_backdrop():
    scenes, texts = sample("two", 8)
    both, seen = render(WORLD, scenes), 0
    for left in (0, 1):  # whichever sight finds first
        stay = [replace(scene, actors=(scene.actors[1 - left],), relation=None) for scene in scenes]
        alone = render(WORLD, stay)
        video = torch.cat([both[:, :20], alone[:, 20:]], dim=1)
        for scene, verdict in zip(scenes, judge(video, texts, WORLD), strict=True):
            kept = scene.actors[1 - left]
            if [thing.thing for thing in verdict.found.things] != [kept.thing]:
                continue  # what is hidden behind the other one for most of that is not told to have left
            assert verdict.figures["pace"] == pytest.approx(0.5, abs=0.02)
            assert verdict.figures["identity"] > 0.9 and verdict.figures["smoothness"] > 0.9
            assert verdict.dynamic == (kept.motion != "rest")
            seen += 1
    assert seen >= 6


def test_noise_alone_is_no_place():
    noise = torch.rand(1, 17, 3, WORLD.size, WORLD.size, generator=generator("noise alone"))
    (verdict,) = judge(noise, ["an apple rests on snow"], WORLD)
    assert verdict.found.place is None


# --- agreement and variety, without pictures ------------------------------------------------------------------------


def thing(name: str, category: str, motion: str = "slide", way: str | None = "left") -> FoundThing:
    return FoundThing(thing=name, category=category, size="small", motion=motion, direction=way, speed="slow")


def shown(*things: FoundThing, relations: tuple[str, ...] = ()) -> Found:
    return Found(things=things, place="snow", relations=frozenset(relations), more=False)


CAT, BUS = thing("cat", "animal"), thing("bus", "vehicle", "bounce", "vertical")


@pytest.mark.parametrize("things", [(CAT, BUS), (BUS, CAT)])
def test_things_are_matched_by_name_in_any_order(things):
    relation = "in front of" if things[0] is CAT else "behind"
    said = parse("a cat slides left in front of a bus that bounces up and down on snow")
    assert compare(said, shown(*things, relations=(relation,))).correct


def test_swapped_attributes_break_the_binding():
    said = parse("a cat slides left while a bus bounces up and down")
    swapped = (thing("cat", "animal", "bounce", "vertical"), thing("bus", "vehicle"))
    marks = compare(said, shown(*swapped)).marks
    assert marks["binding"] == (0,) and marks["thing"] == (1, 1) and marks["motion"] == (0, 0)


def test_a_missing_thing_shows_nothing_that_is_said_of_it():
    marks = compare(parse("a cat slides left behind a bus on snow"), shown(CAT)).marks
    assert (marks["count"], marks["thing"], marks["relation"], marks["binding"]) == ((0,), (1, 0), (0,), (0,))
    assert marks["place"] == (1,)


def clip(said: str, *things: FoundThing, movement: float = 0.0) -> Verdict:
    """A verdict on a clip that shows these."""
    stated, found = parse(said), shown(*things)
    comparison = compare(stated, found)
    return Verdict(found=found, stated=stated, comparison=comparison, figures={}, course=[], movement=movement)


def test_variety_is_whole_of_every_fruit_and_a_part_of_a_few():
    names = WORLD.names
    fruit = [name for name in names if THINGS[name].category == "fruit"]
    said = "a fruit slides left on snow"
    every = [clip(said, thing(name, "fruit")) for name in fruit * 20]
    one = [clip(said, thing(fruit[0], "fruit"))] * 120
    assert survey(every, names)["variety"] == 1.0
    assert survey(one, names)["variety"] == pytest.approx(1 / len(fruit), rel=0.2)
    halves = survey([*one, *[clip(said, thing(fruit[1], "fruit"))] * 120], names)["variety"]
    assert halves == pytest.approx(2 / len(fruit), rel=0.2)


def test_variety_of_few_true_clips_is_whole_on_average():
    fruit = [name for name in WORLD.names if THINGS[name].category == "fruit"]
    picks = torch.randint(len(fruit), (200, 8), generator=generator("few fruits")).tolist()
    found = [survey([clip("a fruit slides", thing(fruit[i], "fruit")) for i in row], WORLD.names) for row in picks]
    assert sum(each["variety"] for each in found) / len(found) == pytest.approx(1.0, abs=0.1)


def test_variety_counts_answers_to_what_was_left_open_alone():
    apples = [thing("apple", "fruit"), thing("cat", "animal")]
    named = clip("an apple slides left on snow", apples[0])
    astray = clip("a fruit slides left on snow", apples[1])
    missing = clip("a fruit slides left on snow")
    assert "variety" not in survey([named, astray, missing], WORLD.names)
    both = clip("a fruit slides left behind an animal that slides left on snow", *apples)
    assert survey([both], WORLD.names)["variety"] == pytest.approx(1.0)


def test_the_dynamic_degree_is_the_share_of_clips_that_move():
    clips = [clip("an apple slides left on snow", movement=movement) for movement in (0.0, 0.001, 0.01, 0.1)]
    assert survey(clips, WORLD.names)["dynamic"] == 0.5


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 33, 3, 64, 64), (1, 9, 3, 48, 48), (33, 3, 48, 48)])
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...]):
    with pytest.raises(NearstepError, match=r"the judge (knows clips|needs 17)"):
        judge(torch.zeros(shape), ["a cat rests"], WORLD)


def test_a_caption_too_few_and_broken_numbers_are_refused():
    video: Tensor = torch.zeros(2, 33, 3, WORLD.size, WORLD.size)
    with pytest.raises(NearstepError, match="2 clips and 1 captions"):
        judge(video, ["a cat rests"], WORLD)
    with pytest.raises(NearstepError, match="not finite"):
        judge(video / 0, ["a cat rests"] * 2, WORLD)


def test_spans_cover_the_clip():
    assert chunk_frames(33, 3) == (9, 12, 12)
    assert sum(chunk_frames(69, 3)) == 69
