"""A stage trains on a prepared folder of real clips through its public configuration."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import usual_runs

from nearstep.cli.main import main
from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.errors import NearstepError
from nearstep.train.loop import LoopConfig

SIZES = ("--frames", "33", "--height", "32", "--width", "32", "--fps", "12")


@pytest.fixture(scope="module")
def latents(model, real_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("prepared") / "latents"
    for path in real_videos.glob("*.mp4"):
        (source / path.name).symlink_to(path)
        (source / path.name).with_suffix(".txt").write_text(f"a {'red' if 'bikes' in path.name else 'blue'} ball")
    options = ["--model", str(model.folder), *SIZES, "--workers", "0", "--shard", "2"]
    assert main(["prepare", str(source), str(target), *options]) == 0
    return target


def config(model, latents: LatentsConfig, folder: Path):
    loop = LoopConfig(folder=folder, steps=4, log_every=1, save_every=2, preview_every=100, tensorboard=False)
    return replace(usual_runs.forcing(), loop=loop, model=model.folder, latents=latents, batch=2)


@pytest.mark.usefixtures("few_clips")
def test_forcing_trains_on_real_clips(model, latents: Path, tmp_path: Path):
    folder = config(model, LatentsConfig(folder=latents), tmp_path).run()
    assert (folder / "model_index.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "loss" in row]) == 4


@pytest.mark.usefixtures("few_clips")
def test_a_recipe_that_wants_more_clips_says_what_to_change(model, latents: Path, tmp_path: Path):
    with pytest.raises(NearstepError, match="holds 4 clips, not 12288; latents.clips=None takes all"):
        config(model, replace(usual_runs.forcing().latents, folder=latents), tmp_path).run()


@pytest.mark.usefixtures("few_clips")
@pytest.mark.parametrize("words", ["a zebra", "a red ball \N{BALLOON}", " ".join(["red"] * 40)])
def test_a_caption_that_was_corrected_wrongly_is_named_before_the_first_step(
    model, latents: Path, tmp_path, words: str
):
    copied = tmp_path / "latents"
    shutil.copytree(latents, copied)
    file = sorted(copied.glob("*.jsonl"))[-1]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), "caption": words})]) + "\n")
    with pytest.raises(NearstepError, match=rf"caption 4 in {copied}, '{words[:10]}"):
        config(model, LatentsConfig(folder=copied), tmp_path / "run").run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("few_clips")
def test_a_prompt_that_the_model_does_not_know_is_named_before_the_first_step(model, tmp_path: Path):
    (tmp_path / "p.txt").write_text("a red ball\na green frog\na zebra on snow\n")
    size = {"frames": 3, "channels": 4, "height": 6, "width": 6}
    loop = LoopConfig(folder=tmp_path / "run", steps=4, tensorboard=False)
    base = replace(usual_runs.self_forcing(), loop=loop, model=model.folder, network="transformer", batch=2)
    with pytest.raises(NearstepError, match=r"p\.txt, line 3, 'a zebra on snow': .*'zebra'"):
        replace(base, latents=PromptsConfig(files=(tmp_path / "p.txt",), **size)).run()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_embedded_model_is_called_by_its_name(tmp_path: Path):
    loop = LoopConfig(folder=tmp_path, steps=4)
    assert replace(usual_runs.forcing(), loop=loop, model=Path("playground")).model == usual_runs.self_forcing().model


@pytest.mark.usefixtures("few_clips")
def test_a_component_that_is_no_network_is_named(model, tmp_path: Path):
    for part, kind in (("vae", "AutoencoderKLWan"), ("text_encoder", "network")):
        run = replace(model.distillation(LoopConfig(folder=tmp_path, steps=1)), teacher=part)
        with pytest.raises(NearstepError, match=rf"{part} holds a {kind} and no video transformer"):
            run.run()
