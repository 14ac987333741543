"""Long videos for tests, their clips, and the official cutter's own functions where they are at hand."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from vbench_files import write_info

from nearstep.cli.main import main
from nearstep.data.videos import read_frames
from nearstep.stream.output import write_video

OFFICIAL, CONFIGS = "NEARSTEP_VBENCH_PYTHON", "NEARSTEP_VBENCH_LONG_CONFIGS"
STILL, CAT, BEAR = "a toilet, frozen in time.", "a cat runs", "a bear sings"
ROWS = [
    {"prompt_en": STILL, "dimension": ["temporal_flickering"]},
    {"prompt_en": CAT, "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": BEAR, "dimension": ["overall_consistency", "aesthetic_quality"]},
]
FRAMES = (81, 64, 20, 33, 96)  # of the videos of a prompt: five of two seconds or more at 16 a second, and a short one
NEAR = 1.2  # greys of a frame that is encoded twice; those of two frames are 2.6 apart or more


def ramp(frames: int) -> torch.Tensor:
    """A video of frames of as many greys, far from those of the frames beside them."""
    return (torch.arange(frames) * 36 % 97 / 96)[:, None, None, None].expand(frames, 3, 16, 32)


def greys(path: Path) -> list[float]:
    return [float(frame.mean()) for frame in read_frames(path, 999)]


def write_videos(folder: Path, prompts: tuple[str, ...] = (STILL, CAT, BEAR), frames: tuple[int, ...] = FRAMES) -> Path:
    for prompt in prompts:
        for index, count in enumerate(frames):
            write_video(folder / "videos" / f"{prompt}-{index}.mp4", ramp(count), fps=16)
    return folder


def write_both(home: Path) -> tuple[Path, Path]:
    """A folder of videos, and one of their clips."""
    write_info(home, ROWS)
    assert main(["vbench", "cut", str(write_videos(home / "set")), "--info", str(home), "-o", str(home / "long")]) == 0
    return home / "set", home / "long"


def official_functions() -> dict[str, Any]:
    """The official functions that cut, look up and add up; who uses one gives it what it reads and writes by."""
    if not (python := os.environ.get(OFFICIAL)):
        pytest.skip(f"{OFFICIAL} names no Python with the package vbench in it, so its code is not at hand")
    code = "import pathlib, vbench; print(pathlib.Path(vbench.__file__).parents[1])"
    home = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    wanted = {"split_video_into_clips", "reorganize_clips_results", "fuse_inclip_clip2clip", "linear_interpolate"}
    wanted |= {"get_duration_from_json", "build_full_info_json"}
    functions: list[ast.stmt] = []
    for file in ("utils.py", "__init__.py"):
        tree = ast.parse((Path(home) / "vbench2_beta_long" / file).read_text())
        functions += [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name in wanted]
    assert {each.name for each in functions if isinstance(each, ast.FunctionDef)} == wanted
    known: dict[str, Any] = {"os": os, "re": re, "Path": Path, "defaultdict": defaultdict, "bisect_left": bisect_left}
    known["print"] = lambda *_: None
    exec(compile(ast.Module(body=functions, type_ignores=[]), "utils.py", "exec"), known)
    return known
