"""``nearstep vbench`` from prompts to a table on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import av
import pytest
from vbench_files import LONG, write_info

from nearstep.cli.main import main
from nearstep.evaluate.vbench.flickering import flickering
from nearstep.evaluate.vbench.results import read_system
from nearstep.sampling.folder import read_records
from nearstep.stream.output import read_comment

STILL = "a toilet, frozen in time"
ROWS = [
    {"prompt_en": STILL, "dimension": ["temporal_flickering"]},
    {"prompt_en": "The ball stops.", "dimension": ["color"]},
    {"prompt_en": LONG, "dimension": ["scene", "background_consistency"]},
]
WORDED = ["a small red ball on the snow", "a large blue football bounces right", "the red ball slides left"]


@pytest.fixture
def sample(tmp_path: Path, model_folder: Path):
    write_info(tmp_path, ROWS)
    (tmp_path / "longer.txt").write_text("\n".join(WORDED) + "\n")
    fixed = ["--info", str(tmp_path), "--rewritten", str(tmp_path / "longer.txt"), "--model", str(model_folder)]
    fixed += ["--plan", "1", "--frames", "5", "--flickering", "5", "--device", "cpu"]

    def call(folder: str, *more: str) -> int:
        return main(["vbench", "sample", *fixed, "-o", str(tmp_path / folder), *more])

    return call


class Shown(NamedTuple):
    """What a video says of itself, and a digest of the pixels that were encoded: the encoder's own work may differ."""

    said: dict
    digest: str


def contents(folder: Path) -> dict[str, Shown]:
    paths, records = sorted((folder / "videos").iterdir()), read_records(folder)
    return {path.name: Shown(read_comment(path) or {}, records[path.name].digest) for path in paths}


def alike(some: dict[str, Shown], whole: dict[str, Shown]) -> bool:
    """Whether these are videos of the whole."""
    return all(clip == whole[name] for name, clip in some.items())


def test_videos_are_named_by_the_standard_prompts_and_made_of_the_long_ones(sample, tmp_path: Path) -> None:
    assert sample("set") == 0
    folder = tmp_path / "set"
    whole = contents(folder)
    assert set(whole) == {f"{row['prompt_en']}-{index}.mp4" for row in ROWS for index in range(5)}
    for place, (row, text) in enumerate(zip(ROWS, WORDED, strict=True)):
        for index in range(5):
            path = folder / "videos" / f"{row['prompt_en']}-{index}.mp4"
            said = read_comment(path)
            with av.open(path) as container:
                assert said is not None and container.streams.video[0].average_rate == 12  # dynamic degree reads it
            assert (said["prompt"], said["seed"], said["sample"]) == (text, 0, 25 * place + index)
    assert len({clip.digest for clip in whole.values()}) == len(whole)  # each has noise of its own
    told = json.loads((folder / "sample.json").read_text())
    assert (told["label"], told["plan"], told["seed"]) == ("longer.txt, all 3", "1", 0)


def test_a_run_goes_on_and_workers_share_one(sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("whole") == 0
    whole = contents(tmp_path / "whole")
    assert sample("shared", "--part", "2/2") == 0
    assert set(contents(tmp_path / "shared")) == {f"The ball stops.-{index}.mp4" for index in range(5)}
    assert sample("shared", "--part", "1/2") == 0
    shared = contents(tmp_path / "shared")
    assert shared.keys() == whole.keys() and alike(shared, whole)
    (tmp_path / "shared" / "videos" / f"{LONG}-3.mp4").unlink()
    capsys.readouterr()
    assert sample("shared") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 and alike(contents(tmp_path / "shared"), whole)
    assert sample("some", "--dimensions", "scene") == 0  # a subset has videos of the whole
    some = contents(tmp_path / "some")
    assert len(some) == 5 and alike(some, whole)


def test_two_kinds_of_videos_do_not_share_a_folder(sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("set", "--dimensions", "color") == 0
    assert sample("set", "--dimensions", "color", "--seed", "1") == 2
    assert "has videos of seed 0, not 1" in capsys.readouterr().err
    assert sample("set", "--part", "3/2") == 2 and "--part 3/2" in capsys.readouterr().err
    assert sample("set", "--flickering", "4") == 2 and "from 5 to 25" in capsys.readouterr().err
    assert sample("other", "--dry-run") == 0 and not (tmp_path / "other" / "sample.json").exists()
    assert len(capsys.readouterr().out.splitlines()) == 15


def test_from_prompts_to_a_table(sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("set", "--dimensions", "temporal_flickering") == 0
    assert main(["vbench", "score", str(tmp_path / "set")]) == 0  # a sampled folder knows its prompts
    score = read_system(tmp_path / "set").scores["temporal_flickering"]
    made = [tmp_path / "set" / "videos" / f"{STILL}-{index}.mp4" for index in range(5)]
    assert score.score == pytest.approx(sum(map(flickering, made)) / 5)
    capsys.readouterr()
    assert main(["vbench", "table", f"ours={tmp_path / 'set'}", "--allow-missing"]) == 0
    out = capsys.readouterr().out
    assert "| ours | 1 |" in out and "1/16" in out and "longer.txt, 1 entry of temporal_flickering" in out
