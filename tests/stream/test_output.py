"""Writers: what is read back is what was written, and nothing half-written is ever left."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from nearstep import files
from nearstep.errors import NearstepError
from nearstep.stream import output

SUFFIXES = [".mp4", ".gif", ".webp", ".png"]


@pytest.fixture
def clip() -> torch.Tensor:
    """A bright square that walks over a dark ground, 9 frames."""
    video = torch.full((9, 3, 32, 48), 0.1)
    for t in range(9):
        video[t, 0, 8:24, 4 + 2 * t : 20 + 2 * t] = 0.9
    return video


def test_mp4_is_h264_yuv420p_and_says_what_made_it(clip: torch.Tensor, tmp_path: Path) -> None:
    path = output.write_video(tmp_path / "new" / "clip.mp4", clip, fps=12, metadata={"plan": "4,1x", "seed": 7})
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (48, 32, 12)
        assert json.loads(container.metadata["comment"]) == {"plan": "4,1x", "seed": 7}
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.shape == (9, 32, 48, 3)
    assert np.abs(frames.astype(float) - output.pixels(clip)).mean() < 4


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_frames_and_time(clip: torch.Tensor, tmp_path: Path, suffix: str) -> None:
    path = output.write_video(tmp_path / f"clip{suffix}", clip, fps=10)
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (9, (48, 32))
        image.seek(4)
        image.load()
        assert image.info["duration"] == 100
        shown = np.asarray(image.convert("RGB"), dtype=float)
    assert np.abs(shown - output.pixels(clip)[4]).mean() < 4


@pytest.mark.parametrize(("suffix", "unit"), [(".gif", 10), (".webp", 1)])
@pytest.mark.parametrize("fps", [12, 16, 23.976, 25, 60])
def test_animations_last_as_long_as_their_frames(tmp_path: Path, suffix: str, unit: int, fps: float) -> None:
    clip = torch.arange(31).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) / 31
    path = output.write_video(tmp_path / f"clip{suffix}", clip, fps=fps)
    begins = [0.0]
    with Image.open(path) as image:
        assert image.n_frames == 31
        for frame in range(31):
            image.seek(frame)
            image.load()
            begins.append(begins[-1] + image.info["duration"])
    assert max(abs(found - 1000 * frame / fps) for frame, found in enumerate(begins)) <= unit / 2


def test_a_rate_beyond_what_a_format_can_show_leaves_frames_out_and_keeps_the_time(tmp_path: Path) -> None:
    clip = torch.arange(90).view(-1, 1, 1, 1).expand(-1, 3, 16, 16) / 90
    path = output.write_video(tmp_path / "clip.gif", clip, fps=300)
    with Image.open(path) as image:
        lasting = [(image.seek(frame), image.load(), image.info["duration"])[2] for frame in range(image.n_frames)]
    assert sum(lasting) == 300 and set(lasting) == {10}


@pytest.mark.parametrize(("height", "matrix"), [(704, 6), (720, 1), (736, 1)])
def test_a_video_says_how_its_colours_are_to_be_read_and_they_are(tmp_path: Path, height: int, matrix: int) -> None:
    colour = torch.tensor([200, 30, 60]).view(3, 1, 1) / 255
    path = output.write_video(tmp_path / "clip.mp4", colour.expand(2, 3, height, 32), fps=12)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            matrix,
            1,
            1,
            1,
        )
    assert np.abs(frame.to_ndarray(format="rgb24")[8, 8].astype(int) - [200, 30, 60]).max() <= 3


def test_png_is_a_sheet_of_the_frames(clip: torch.Tensor, tmp_path: Path) -> None:
    path = output.write_video(tmp_path / "clip.png", clip, fps=12)
    with Image.open(path) as image:
        assert image.size == (9 * (96 + 4) + 4, 64 + 8)
    sheet = output.contact_sheet([clip, clip[:3]], ["one", "two"], columns=5)
    assert sheet.size == (5 * 100 + 4, 2 * (64 + 4 + 18) + 4)
    with pytest.raises(NearstepError, match="1 labels for 2 clips"):
        output.contact_sheet([clip, clip], ["one"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_what_was_there(
    clip: torch.Tensor, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NearstepError, match="No space left on device; nothing was left behind"):
        output.write_video(path, clip, fps=12)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_the_folder(clip: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NearstepError, match="cannot write .*out/clip.gif"):
        output.write_video(tmp_path / "out" / "clip.gif", clip, fps=12)


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), output.replacing(tmp_path / "clip.mp4") as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(clip: torch.Tensor, tmp_path: Path) -> None:
    real, link = tmp_path / "real.gif", tmp_path / "link.gif"
    real.write_bytes(b"")
    link.symlink_to(real)
    output.write_video(link, clip, fps=12)
    assert link.is_symlink() and real.stat().st_size > 0


def test_writable_is_found_out_before(tmp_path: Path) -> None:
    output.check_video_path(tmp_path / "deep" / "er" / "clip.mp4")
    assert not list((tmp_path / "deep" / "er").iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    bad = {
        tmp_path / "clip.avi": r"suffix '.avi'; use .mp4",
        tmp_path / "clip": "no suffix",
        tmp_path / "folder.mp4": "it is a folder",
        tmp_path / "file" / "clip.mp4": "cannot write",
        Path("/proc/clip.mp4"): "cannot write",
    }
    for path, message in bad.items():
        with pytest.raises(NearstepError, match=message):
            output.check_video_path(path)


def test_odd_sides_are_refused_for_mp4(tmp_path: Path) -> None:
    with pytest.raises(NearstepError, match="even sides, not 33x32"):
        output.write_video(tmp_path / "clip.mp4", torch.zeros(1, 3, 32, 33), fps=12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
def test_frames_larger_than_a_format_holds_are_refused(tmp_path: Path, suffix: str) -> None:
    side = output.LONGEST_SIDES[suffix] + 2
    for size in ((2, side), (side, 2)):
        with pytest.raises(NearstepError, match=rf"{suffix} has sides of at most {side - 2} pixels"):
            output.write_video(tmp_path / f"clip{suffix}", torch.zeros(1, 3, *size), fps=12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
def test_frame_rates_that_no_format_holds_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    for fps in (0.0, 1e-300, 1e-9, 0.0099, 1000.1, float("nan"), float("inf")):
        with pytest.raises(NearstepError, match=r"from 0\.01 to 1000"):
            output.write_video(path, torch.zeros(2, 3, 16, 16), fps=fps)
    assert output.write_video(path, torch.rand(2, 3, 16, 16), fps=output.LEAST_FPS).is_file()


def test_names_are_the_prompt_or_safe_and_distinct() -> None:
    plain = [
        "a red ball, slowly",
        "Turtle swimming in ocean.",
        "一个停车标志，凝固在时间里",
        "façade",
        'a sign that says "stop": really?',
        "x" * 249,
    ]
    assert [output.safe_name(prompt) for prompt in plain] == plain  # where VBench looks for them
    odd = ["../../etc/passwd", "a/b", "ab", "", " ", "...", "..", ".a", "x" * 250, "x" * 300, "x" * 301, "球" * 90]
    odd += ["a\nb", "a red ball ", "ab~c8687a08", "a\0b", "x" * 249 + "é"]
    names = [output.safe_name(prompt) for prompt in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert not set("/\n\0") & set(name) and not name.startswith(".") and len(f"{name}-0.mp4".encode()) <= 255


def test_a_name_of_255_bytes_is_written(clip: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / (output.safe_name("x" * 400) + "-0.mp4")
    assert len(path.name) == 255
    output.check_video_path(path)
    assert output.write_video(path, clip, fps=12).is_file() and len(list(tmp_path.iterdir())) == 1
