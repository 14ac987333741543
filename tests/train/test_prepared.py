"""A stage trains on a prepared folder of real clips through its public configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.data.latents import LatentsConfig
from nearstep.errors import NearstepError
from nearstep.recipes import playground
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
    return replace(playground.forcing(), loop=loop, model=model.folder, latents=latents, batch=2)


@pytest.mark.usefixtures("few_clips")
def test_forcing_trains_on_real_clips(model, latents: Path, tmp_path: Path):
    folder = config(model, LatentsConfig(folder=latents), tmp_path).run()
    assert (folder / "model_index.json").is_file()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "loss" in row]) == 4


@pytest.mark.usefixtures("few_clips")
def test_a_recipe_that_wants_more_clips_says_what_to_change(model, latents: Path, tmp_path: Path):
    with pytest.raises(NearstepError, match="holds 4 clips, not 12288; latents.clips=None takes all"):
        config(model, replace(playground.forcing().latents, folder=latents), tmp_path).run()
