"""Measuring a model: what is written, that it resumes, and that the table says it."""

from __future__ import annotations

import json

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.evaluate import tables as report
from nearstep.evaluate.run import held_out, measure
from nearstep.playground.captions import parse
from nearstep.playground.train_features import FeaturesConfig
from nearstep.playground.world import render

CAPTIONS = 10
CALLS = {"4": 14, "1": 5}


class Renderer:
    """Makes the true clip of every caption; with plan "1" a frozen one."""

    def __init__(self):
        self.scenes = {text: scene for scene, text in held_out(CAPTIONS)}
        self.asked: list[tuple[str, int, list[int]]] = []

    def __call__(self, prompts, plan, seed, samples):
        self.asked.append((plan, seed, samples))
        video = render([self.scenes[prompt] for prompt in prompts])
        return video if plan == "4" else video[:, :1].expand_as(video)


def run(generate, plans, out, **changes):
    settings = {"calls": CALLS.__getitem__, "captions": CAPTIONS, "batch": 4, "seed": 3, **changes}
    return measure(generate, plans, out=out, **settings)


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
    assert bad["agreement"]["shape"]["value"] == 1.0
    assert len(bad["course"]) == 3


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


def test_the_batch_size_changes_nothing(measured, tmp_path):
    _, results, _ = measured
    other = run(Renderer(), ("1",), tmp_path / "other.json", batch=7)["plans"]["1"]
    assert other["clips"] == results["plans"]["1"]["clips"]
    assert other["frechet"]["value"] == pytest.approx(results["plans"]["1"]["frechet"]["value"], rel=1e-3)


def test_held_out_captions_are_complete_and_repeatable():
    truth = held_out(20)
    assert truth[:5] == held_out(5)
    for scene, text in truth:
        assert parse(text) == {name: value for name, value in scene.attributes.items() if value is not None}


def test_tables(measured):
    _, results, _ = measured
    lines = report.table(results).splitlines()
    assert lines[0].startswith("| plan | calls | total")
    assert lines[2].startswith("| 4 | 14 | ") and lines[3].startswith("| 1 | 5 | ")
    assert "| plan | count | shape" in report.details(results)
    gained = report.compare(results, results).splitlines()[2]
    assert gained.count("+0.00 [+0.00, +0.00]") == 4


def test_results_on_other_captions_are_not_paired(measured):
    _, results, _ = measured
    other = {**results, "settings": {**results["settings"], "captions": 11}}
    with pytest.raises(NearstepError, match="cannot be paired"):
        report.compare(results, other)


def test_training_the_features_is_repeatable(tmp_path):
    paths = [
        FeaturesConfig(path=tmp_path / name / "f.safetensors", clips=16, rounds=2, batch=8, held_out=8).run()
        for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    accuracy = json.loads(paths[0].with_suffix(".json").read_text())
    assert set(accuracy) == {"shape", "colour", "size", "motion", "direction", "speed", "background"}
    assert all(torch.tensor(value).isfinite() for value in accuracy.values())
