"""What may change between two sittings of a run: what it costs and where things lie, not what it computes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import usual_runs
from safetensors.torch import load_file, save_file

from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.data.shards import FORMAT, INDEX, VERSION
from nearstep.errors import NearstepError
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.lessons import Lesson
from nearstep.train.loop import LoopConfig
from nearstep.train.recipe import check_recipe, recipe_of

SAVED = Path("run/checkpoint-0000002")


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    copied = tmp_path / "model"
    shutil.copytree(model.folder, copied)
    loop = LoopConfig(folder=tmp_path / "run", steps=6, tensorboard=False)
    return replace(model.distillation(loop), model=copied)


def as_saved(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(recipe_of(config)))


def moved(folder: Path) -> Path:
    return folder.rename(folder.with_name(f"moved {folder.name}"))


@pytest.mark.parametrize(
    "change", [{"micro": 2}, {"checkpointing": True}, {"compile": True}, {"text_cache": Path("text")}, {}]
)
def test_what_changes_only_cost_may_change(config: DistillConfig, change: dict[str, Any]):
    check_recipe(as_saved(config), as_saved(replace(config, **change)), SAVED)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ema": 0.5}, "ema was 0.98 and is now 0.5"),
        ({"autocast": True}, "autocast was False and is now True"),
        ({"batch": 8}, "batch was 4 and is now 8"),
        ({"seed": 3}, "seed was 0 and is now 3"),
    ],
)
def test_what_changes_numbers_is_refused_by_name(config: DistillConfig, change: dict[str, Any], said: str):
    with pytest.raises(NearstepError, match=said):
        check_recipe(as_saved(config), as_saved(replace(config, **change)), SAVED)
    inner = replace(config, student=replace(config.student, lr=0.5))
    with pytest.raises(NearstepError, match=r"student\.lr was 0\.001 and is now 0\.5"):
        check_recipe(as_saved(config), as_saved(inner), SAVED)


def test_a_moved_model_is_the_same_and_another_at_its_place_is_not(config: DistillConfig):
    saved, first = as_saved(config), config.model
    there = moved(first)
    check_recipe(saved, as_saved(replace(config, model=there)), SAVED)
    file = next((there / "teacher").glob("*.safetensors"))
    state = load_file(file)
    save_file({name: value + 1 for name, value in state.items()}, file, {"format": "pt"})
    there.rename(first)
    with pytest.raises(NearstepError, match=r"was made from another model: what lies at .* is not what the run began"):
        check_recipe(saved, as_saved(config), SAVED)


def test_a_run_of_an_earlier_version_goes_on_in_its_place(config: DistillConfig):
    saved = as_saved(config)
    del saved["content"]
    check_recipe(saved, as_saved(config), SAVED)
    with pytest.raises(NearstepError, match="model was "):
        check_recipe(saved, as_saved(replace(config, model=moved(config.model))), SAVED)


def test_a_worlds_clips_may_lie_anywhere(config: DistillConfig):
    elsewhere = replace(config, latents=replace(config.latents, folder=Path("elsewhere")))
    check_recipe(as_saved(config), as_saved(elsewhere), SAVED)
    with pytest.raises(NearstepError, match=r"latents\.seed was 0 and is now 5"):
        check_recipe(as_saved(config), as_saved(replace(config, latents=replace(config.latents, seed=5))), SAVED)


def prepared(folder: Path, shards: tuple[int, ...]) -> LatentsConfig:
    folder.mkdir(exist_ok=True)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "codec": "c",
        "shape": [3, 4, 2, 2],
        "dtype": "float16",
        "fps": 12,
        "shards": shards,
    }
    (folder / INDEX).write_text(json.dumps({**index, "made_from": {"kind": "videos"}}))
    for number, count in enumerate(shards):
        (folder / f"{number:05d}.safetensors").write_bytes(bytes([count]) * 100)
    return LatentsConfig(folder=folder)


def test_prepared_clips_may_move_and_grow_behind_those_in_use(tmp_path: Path):
    base = replace(usual_runs.forcing(), model=tmp_path / "nowhere")
    folder = tmp_path / "lat"
    every = replace(base, latents=prepared(folder, (4, 4)))
    some = replace(base, latents=replace(every.latents, clips=6))
    saved = [as_saved(config) for config in (every, some)]
    there = moved(folder)
    elsewhere = [replace(config, latents=replace(config.latents, folder=there)) for config in (every, some)]
    for before, config in zip(saved, elsewhere, strict=True):
        check_recipe(before, as_saved(config), SAVED)
    prepared(there, (4, 4, 2))
    check_recipe(saved[1], as_saved(elsewhere[1]), SAVED)
    with pytest.raises(NearstepError, match="made from another latents: what lies at .*moved lat"):
        check_recipe(saved[0], as_saved(elsewhere[0]), SAVED)


def test_prompts_may_move_and_not_change(tmp_path: Path):
    file = tmp_path / "p.txt"
    file.write_text("a ball\na box\n")
    base = replace(usual_runs.self_forcing(), model=tmp_path / "nowhere")
    size = {"frames": 3, "channels": 4, "height": 4, "width": 4}
    config = replace(base, latents=PromptsConfig(files=(file,), **size))
    saved = as_saved(config)
    there = replace(config, latents=PromptsConfig(files=(moved(file),), **size))
    check_recipe(saved, as_saved(there), SAVED)
    there.latents.files[0].write_text("a ball\na cup\n")
    with pytest.raises(NearstepError, match="made from another latents"):
        check_recipe(saved, as_saved(there), SAVED)


def test_clips_of_lessons_may_move_and_not_change(tmp_path: Path):
    base = replace(usual_runs.forcing(), model=tmp_path / "nowhere", latents=prepared(tmp_path / "usual", (4,)))
    own = prepared(tmp_path / "own", (4, 4))
    config = replace(base, lessons=(Lesson(latents=own), Lesson(latents=replace(own, clips=6), batch=2)))
    saved, there = as_saved(config), moved(tmp_path / "own")
    elsewhere = tuple(replace(each, latents=replace(each.latents, folder=there)) for each in config.lessons)
    check_recipe(saved, as_saved(replace(config, lessons=elsewhere)), SAVED)
    other = (elsewhere[0], replace(elsewhere[1], batch=3))
    with pytest.raises(NearstepError, match="lessons was"):
        check_recipe(saved, as_saved(replace(config, lessons=other)), SAVED)
    prepared(there, (4, 3))
    with pytest.raises(NearstepError, match="made from another lessons: what lies at .*moved own"):
        check_recipe(saved, as_saved(replace(config, lessons=elsewhere)), SAVED)


def test_an_option_that_an_earlier_version_did_not_have_is_one_that_is_not_given(tmp_path: Path):
    lessons = (Lesson(latents=LatentsConfig(folder=tmp_path / "own", clips=8)),)
    config = replace(usual_runs.self_forcing(), model=tmp_path / "nowhere", lessons=lessons)
    saved = as_saved(config)
    del saved["lessons"][0]["first_steps"], saved["first_steps"]
    check_recipe(saved, as_saved(config), SAVED)
    with pytest.raises(NearstepError, match="lessons was"):
        check_recipe(saved, as_saved(replace(config, lessons=(replace(lessons[0], first_steps=4),))), SAVED)
