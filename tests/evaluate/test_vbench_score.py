"""Scores of videos: flickering in closed form, a command's values, and a run that goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from vbench_files import write_info

from nearstep.cli.main import main
from nearstep.data.videos import read_frames
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.flickering import flickering
from nearstep.evaluate.vbench.prompts import of_dimensions, read_prompts
from nearstep.evaluate.vbench.results import read_system
from nearstep.evaluate.vbench.score import jobs
from nearstep.evaluate.vbench.scorers import Command, Native, Official
from nearstep.stream.output import write_video

PROMPTS = [f"a ball, frozen {number}" for number in range(2)]
OFFICIAL = "NEARSTEP_VBENCH_PYTHON"


def clip(seed: int, frames: int = 5, height: int = 32, width: int = 48) -> torch.Tensor:
    """A smooth picture that moves, under noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=draw)
    base = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = 0.05 * torch.randn(frames, 3, height, width, generator=draw)
    return (torch.cat([base.roll(shift, 3) for shift in range(frames)]) + noise).clamp(0, 1)


def official_score(frames: np.ndarray) -> float:
    """The published formula, in float32 as its authors compute it."""
    apart = [np.mean(np.abs(a.astype(np.float32) - b.astype(np.float32))) for a, b in pairwise(frames)]
    return (255.0 - np.mean(np.array(apart)).item()) / 255.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sampled folder: 2 prompts of temporal flickering with 5 videos each, and the prompt file."""
    rows = [{"prompt_en": prompt, "dimension": ["temporal_flickering"]} for prompt in PROMPTS]
    write_info(tmp_path, [*rows, {"prompt_en": "a red ball", "dimension": ["color"]}])
    for number, prompt in enumerate(PROMPTS):
        for index in range(5):
            write_video(tmp_path / "set" / "videos" / f"{prompt}-{index}.mp4", clip(5 * number + index), fps=16)
    return tmp_path / "set"


def score(folder: Path, *more: str, dimensions: str = "temporal_flickering") -> int:
    chosen = ["--dimensions", dimensions] if dimensions else []
    return main(["vbench", "score", str(folder), "--info", str(folder.parent), *chosen, *more])


def test_flickering_is_that_of_the_formula(folder: Path) -> None:
    for path in sorted((folder / "videos").iterdir()):
        assert abs(flickering(path) - official_score(read_frames(path, 99))) < 1e-6
    still = folder / "still.mp4"
    write_video(still, clip(0)[:1].expand(4, -1, -1, -1), fps=16)
    assert flickering(still) > 0.999
    write_video(still, clip(0)[:1], fps=16)
    with pytest.raises(NearstepError, match="one frame"):
        flickering(still)


def test_flickering_is_that_of_the_official_package(tmp_path: Path) -> None:
    python = os.environ.get(OFFICIAL)
    if not python:
        pytest.skip(f"{OFFICIAL} names no Python with the package vbench in it, so its own function is not at hand")
    official = Official(python=python)
    official.check()
    code = "import pathlib, vbench; print(pathlib.Path(vbench.__file__).parent)"
    home = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    prompts = of_dimensions(read_prompts(Path(home)), ["temporal_flickering"])
    for number, entry in enumerate(prompts.unique[:3]):
        for index in range(5):
            write_video(tmp_path / entry.file_name(index), clip(5 * number + index), fps=16)
    (job,) = jobs(tmp_path, prompts, ["temporal_flickering"], allow_missing=True)
    ours, theirs = Native().score(job), official.score(job)
    assert abs(ours.score - theirs.score) < 1e-6
    found = {Path(video.path).name: video.value for video in theirs.videos}
    assert set(found) == set(job.files) and len(found) == 15
    assert all(abs(video.value - found[Path(video.path).name]) < 1e-6 for video in ours.videos)


def test_flickering_is_scored_once_and_again_where_a_video_is_new(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(folder) == 0
    assert "of 10 videos" in capsys.readouterr().err
    file = folder / "scores" / "temporal_flickering_eval_results.json"
    found = read_system(folder / "scores")
    values = {Path(video.path).name: video.value for video in found.scores["temporal_flickering"].videos}
    assert values == {path.name: flickering(path) for path in (folder / "videos").iterdir()}
    assert any("no static filter has chosen" in note for note in found.notes)
    before = file.read_bytes()
    assert score(folder) == 0 and "scored already" in capsys.readouterr().err and file.read_bytes() == before
    write_video(folder / "videos" / f"{PROMPTS[0]}-3.mp4", clip(99), fps=16)
    os.utime(folder / "videos" / f"{PROMPTS[0]}-3.mp4", (2e9, 2e9))
    assert score(folder) == 0 and "scored already" not in capsys.readouterr().err and file.read_bytes() != before


def test_videos_that_a_static_filter_has_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = folder / "filtered"
    write_video(chosen / f"{PROMPTS[1]}-0.mp4", clip(3), fps=16)
    assert score(folder, "--static", str(chosen)) == 0
    found = read_system(folder / "scores")
    assert len(found.scores["temporal_flickering"].videos) == 1 and not found.notes
    for wrong in ("nowhere", "set/videos/" + f"{PROMPTS[0]}-0.mp4"):
        assert score(folder, "--static", str(folder.parent / wrong)) == 2
        assert "there is no folder" in capsys.readouterr().err


def test_missing_videos_and_strangers_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "videos" / f"{PROMPTS[0]}-1.mp4").unlink()
    assert score(folder) == 2
    assert f"lacks 1 of 10 videos of temporal_flickering, such as {PROMPTS[0]}-1.mp4" in capsys.readouterr().err
    assert score(folder, "--allow-missing") == 0 and "of 9 videos" in capsys.readouterr().err
    (folder / "videos" / "notes.txt").touch()
    assert score(folder) == 2 and "notes.txt is no mp4" in capsys.readouterr().err
    assert main(["vbench", "score", str(folder.parent)]) == 2 and "no folder videos" in capsys.readouterr().err


def test_what_needs_the_official_package_says_what_to_install(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(folder, dimensions="color") == 2
    assert "vbench==0.1.5" in capsys.readouterr().err
    write_video(folder / "videos" / "a red ball-0.mp4", clip(1), fps=16)
    for python, said in ((sys.executable, "cannot import vbench"), (str(folder / "python"), "No such file")):
        assert score(folder, "--python", python, "--allow-missing", dimensions="color") == 2
        err = capsys.readouterr().err
        assert said in err and "vbench-env" in err
    assert not list((folder / "scores").glob("*.json"))


PROGRAM = """
import json, sys
videos = open(sys.argv[1]).read().split("\\n")[:-1]
json.dump({video: index / 10 for index, video in enumerate(videos)}, open(sys.argv[2], "w"))
"""


def test_any_program_scores_through_the_same_seam(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path / 'program.py'} {{list}} {{output}}"
    for index in range(5):
        write_video(folder / "videos" / f"a red ball-{index}.mp4", clip(index), fps=16)
    arguments = ("--command", command, "--name", "color")
    assert score(folder, *arguments, dimensions="") == 0
    color = read_system(folder / "scores").scores["color"]
    assert color.score == pytest.approx(0.2) and {video.prompt for video in color.videos} == {"a red ball"}
    assert score(folder, *arguments[:-1], "reward", dimensions="") == 0
    assert len(read_system(folder / "scores").scores["reward"].videos) == 15
    capsys.readouterr()
    assert main(["vbench", "table", str(folder / "scores"), "--allow-missing"]) == 0
    assert "| reward | 0.7000 | 70.00 [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("program {list}", "does not say where to write"),
        ("program {file} {output}", "cannot be filled in"),
        ("program '{output}", "cannot be filled in"),
    ],
)
def test_a_template_is_checked_before_it_runs(template: str, said: str) -> None:
    with pytest.raises(NearstepError, match=said):
        Command(template=template).check()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "ended without writing"),
        ("raise SystemExit('no network')", "no network"),
        ("json.dump({}, open(sys.argv[1], 'w'))", "wrote None for"),
        ("open(sys.argv[1], 'w').write('{')", "wrote no JSON"),
    ],
)
def test_a_program_that_fails_is_named(folder: Path, body: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "program.py").write_text(f"import json, sys\n{body}\n")
    command = f"{sys.executable} {folder / 'program.py'} {{output}}"
    assert score(folder, "--command", command, "--name", "reward", "--allow-missing", dimensions="") == 2
    assert said in capsys.readouterr().err
