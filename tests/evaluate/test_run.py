"""Measuring a model: what is written, that it resumes, and that the table says it."""

from __future__ import annotations

import json

import pytest
from worlds import Shades

from nearstep.errors import NearstepError
from nearstep.evaluate import tables as report
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.results import read_results
from nearstep.evaluate.run import measure
from nearstep.playground import PLAYGROUND
from nearstep.protocols import World

CAPTIONS = 10
CALLS = {"4": 14, "1": 5}


class Renderer:
    """Makes the true clip of every caption; with plan "1" a frozen one."""

    def __init__(self, world: World = PLAYGROUND):
        self.world = world
        self.asked: list[tuple[str, int, list[int]]] = []

    def __call__(self, prompts, plan, seed, samples):
        self.asked.append((plan, seed, samples))
        assert prompts == self.world.prompts(CAPTIONS_SEED, samples)
        video = self.world.clips(CAPTIONS_SEED, samples)
        return video if plan == "4" else video[:, :1].expand_as(video)


def run(generate, plans, out, **changes):
    settings = {"calls": CALLS.__getitem__, "captions": CAPTIONS, "batch": 4, "seed": 3, **changes}
    return measure(generate.world, generate, plans, out=out, **settings)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "results.json"
    generate = Renderer()
    return generate, run(generate, ("4", "1"), out), out


def test_perfect_clips_score_perfectly(measured):
    _, results, _ = measured
    found = results["plans"]["4"]
    assert found["semantic"]["value"] == found["correct"]["value"] == 1.0
    assert found["total"]["value"] > 0.98
    assert found["frechet"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["calls"] == 14


def test_worse_clips_score_worse_with_intervals(measured):
    _, results, _ = measured
    good, bad = results["plans"]["4"], results["plans"]["1"]
    for name in ("total", "quality", "semantic"):
        assert bad[name]["value"] < good[name]["value"]
        assert bad[name]["low"] <= bad[name]["value"] <= bad[name]["high"]
    assert bad["frechet"]["value"] > good["frechet"]["value"]
    assert bad["agreement"]["place"]["value"] == 1.0
    assert len(bad["course"]) == 3


def test_clips_are_surveyed_as_a_set_where_their_world_does(measured, tmp_path):
    _, results, _ = measured
    real, frozen = (results["plans"][plan]["survey"] for plan in ("4", "1"))
    assert frozen["dynamic"]["value"] == 0.0 < real["dynamic"]["value"] <= 1.0
    for figure in (*real.values(), *frozen.values()):
        assert 0.0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1.0
    assert str(report.table(results)).splitlines()[0].endswith("| Fréchet | dynamic | variety |")
    other = run(Renderer(Shades(size=8)), ("4",), tmp_path / "shades.json")
    assert "survey" not in other["plans"]["4"] and "variety" not in str(report.table(other))


def test_every_sample_is_asked_for_once_by_its_number(measured):
    generate, _, _ = measured
    for plan in CALLS:
        asked = [entry for entry in generate.asked if entry[0] == plan]
        assert [sample for _, _, samples in asked for sample in samples] == list(range(CAPTIONS))
        assert {seed for _, seed, _ in asked} == {3}


def test_the_file_is_what_was_returned_and_is_gone_on_with(measured):
    _, results, out = measured
    assert json.loads(out.read_text()) == results
    again = Renderer()
    assert run(again, ("4", "1"), out) == results
    assert again.asked == []


def test_a_stopped_run_keeps_the_finished_plans(tmp_path):
    out = tmp_path / "results.json"

    class Stops(Renderer):
        def __call__(self, prompts, plan, seed, samples):
            if plan == "1" and samples[0] > 0:
                raise KeyboardInterrupt
            return super().__call__(prompts, plan, seed, samples)

    with pytest.raises(KeyboardInterrupt):
        run(Stops(), ("4", "1"), out)
    assert list(json.loads(out.read_text())["plans"]) == ["4"]
    again = Renderer()
    run(again, ("4", "1"), out)
    assert {plan for plan, _, _ in again.asked} == {"1"}


def test_results_of_other_settings_are_not_mixed(measured):
    _, _, out = measured
    with pytest.raises(NearstepError, match="name another file"):
        run(Renderer(), ("4",), out, seed=4)


def test_results_of_a_model_whose_files_changed_are_not_gone_on_with(tmp_path):
    out = tmp_path / "results.json"
    found = run(Renderer(Shades()), ("4",), out, name="runs/model", content="a")
    assert run(Renderer(Shades()), ("4",), out, name="runs/model", content="a") == found
    with pytest.raises(NearstepError, match="what runs/model was before its files changed; name another file"):
        run(Renderer(Shades()), ("4", "1"), out, name="runs/model", content="b")
    del found["settings"]["content"]
    out.write_text(json.dumps(found))
    with pytest.raises(NearstepError, match="runs/model and does not say what its files held; name another file"):
        run(Renderer(Shades()), ("4",), out, name="runs/model", content="a")


def test_the_batch_size_changes_nothing(measured, tmp_path):
    _, results, _ = measured
    other = run(Renderer(), ("1",), tmp_path / "other.json", batch=7)["plans"]["1"]
    assert other["clips"] == results["plans"]["1"]["clips"]
    assert other["frechet"]["value"] == pytest.approx(results["plans"]["1"]["frechet"]["value"], rel=1e-3)


def test_names_are_those_of_the_worlds_verdicts(tmp_path):
    found = run(Renderer(Shades()), ("4",), tmp_path / "shades.json")
    plan = found["plans"]["4"]
    assert list(plan["agreement"]) == ["shade", "rest"] and list(plan["figures"]) == ["evenness"]
    assert plan["agreement"]["rest"]["value"] == plan["correct"]["value"] == 1.0
    assert len(plan["course"]) == 1
    assert "| plan | shade | rest |" in report.details(found)


def test_worlds_are_not_mixed(tmp_path):
    small = run(Renderer(Shades()), ("4",), tmp_path / "shades.json")
    with pytest.raises(NearstepError, match="name another file"):
        run(Renderer(Shades(size=16)), ("4",), tmp_path / "shades.json")
    large = run(Renderer(Shades(size=16)), ("4",), tmp_path / "large.json")
    with pytest.raises(NearstepError, match="world shades-8 and shades-16 cannot be paired"):
        report.compare(small, large)


def test_results_of_before_worlds_had_names_are_not_gone_on_with(measured, tmp_path):
    _, results, _ = measured
    out = tmp_path / "old.json"
    settings = {name: value for name, value in results["settings"].items() if name != "world"}
    out.write_text(json.dumps({**results, "settings": settings}))
    with pytest.raises(NearstepError, match="name another file"):
        run(Renderer(), ("4",), out)
    with pytest.raises(NearstepError, match="world None and playground cannot be paired"):
        report.compare(read_results(out), results)


def test_tables(measured):
    _, results, _ = measured
    lines = str(report.table(results)).splitlines()
    assert lines[0].startswith("| plan | calls | total")
    assert lines[2].startswith("| 4 | 14 | ") and lines[3].startswith("| 1 | 5 | ")
    assert "| plan | count | thing" in report.details(results)
    gained = str(report.compare(results, results)).splitlines()[2]
    assert gained.count("+0.00 [+0.00, +0.00]") == 4


def test_results_on_other_captions_are_not_paired(measured):
    _, results, _ = measured
    other = {**results, "settings": {**results["settings"], "captions": 11}}
    with pytest.raises(NearstepError, match="cannot be paired"):
        report.compare(results, other)
