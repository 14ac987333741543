"""Saving a clip in Python: diffusers' arguments, and whatever a pipeline hands out."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video as theirs
from PIL import Image

from nearstep import CausalVideoPipeline, NearstepError, export_to_video
from nearstep.stream.export import clip_of
from nearstep.stream.output import count_frames, read_comment

PROMPT = "a small red ball slides left"
WISHES = dict(plan="1", seed=7)


@pytest.fixture
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


def test_the_arguments_are_those_of_diffusers() -> None:
    asked = list(inspect.signature(export_to_video).parameters)
    assert asked == list(inspect.signature(theirs).parameters)[: len(asked)]


def test_all_that_a_pipeline_hands_out_is_the_same_clip(pipe) -> None:
    outputs = {kind: pipe(PROMPT, output_type=kind, **WISHES) for kind in ("np", "pt", "pil")}
    whole = outputs["pt"].frames[0]
    chunks = list(pipe.stream(PROMPT, **WISHES))
    same = [outputs["pt"], outputs["pt"].frames, whole, list(whole), outputs["np"], outputs["np"].frames]
    same += [outputs["np"].frames[0], list(outputs["np"].frames), list(outputs["np"].frames[0]), chunks, tuple(chunks)]
    for clip in same:
        assert torch.equal(clip_of(clip), whole)
    assert torch.equal(clip_of(chunks[0]), whole[: len(chunks[0].video[0])])
    for clip in (outputs["pil"], outputs["pil"].frames, outputs["pil"].frames[0]):
        torch.testing.assert_close(clip_of(clip), whole, rtol=0, atol=0.5 / 255 + 1e-6)
    assert torch.equal(clip_of((whole * 255).round().byte()), (whole * 255).round() / 255)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_it_is_written_and_says_what_it_shows(pipe, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"a.{suffix}"
    assert export_to_video(pipe(PROMPT, **WISHES), path, fps=12) == str(path)
    said = read_comment(path)
    assert said and (said["prompt"], said["plan"], said["seed"]) == (PROMPT, "1", 7)
    if suffix == "mp4":
        assert count_frames(path) == 21


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ([], "no frames"),
        (np.zeros((2, 5, 8, 8, 3)), "2 clips are no video"),
        (torch.zeros(2, 5, 3, 8, 8), "2 clips are no video"),
        ([torch.zeros(5, 3, 8, 8)] * 2, "2 clips are no video"),
        (np.zeros((5, 3, 8, 8)), "no clip has the shape"),
        (torch.zeros(5, 8, 8, 3), "no clip has the shape"),
        (torch.zeros(0, 3, 8, 8), "no clip has the shape"),
        (np.zeros((8, 8, 3)), "no clip has the shape"),
        (torch.full((5, 3, 8, 8), 2.0), "numbers from 0 to 1"),
        (np.full((5, 8, 8, 3), -0.1), "numbers from 0 to 1"),
        (torch.full((5, 3, 8, 8), float("nan")), "not finite"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (10, 8))], "one size"),
        ([Image.new("RGB", (8, 8)), np.zeros((8, 8, 3))], "one size|one kind"),
        (["a.png"], "not str"),
    ],
)
def test_what_is_no_clip_is_refused(frames, said: str, tmp_path: Path) -> None:
    with pytest.raises(NearstepError, match=said):
        export_to_video(frames, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_frame_rate_is_one(fps: float, tmp_path: Path) -> None:
    with pytest.raises(NearstepError, match="frames a second"):
        export_to_video(np.zeros((5, 8, 8, 3)), tmp_path / "a.gif", fps=fps)
