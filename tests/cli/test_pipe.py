"""``-o -``: a video through a pipe, and nothing else in it."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest

from nearstep.cli.main import main
from nearstep.stream.output import read_comment

RED = "a small red ball slides left on snow"


@contextmanager
def printing_to(descriptor: int) -> Iterator[None]:
    before, sys.stdout = sys.stdout, os.fdopen(descriptor, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = before


def piped(arguments: list[str], file: Path, most: int = -1) -> int:
    """The exit code of a command whose output a reader puts into a file, and leaves after so many bytes."""
    end, begin = os.pipe()

    def read() -> None:
        with os.fdopen(end, "rb") as pipe:
            file.write_bytes(pipe.read(most))

    reader = Thread(target=read)
    reader.start()
    with printing_to(begin):
        code = main(arguments)
    reader.join()
    return code


def frames(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture
def asked(model_folder: Path) -> dict[str, list[str]]:
    end = ["--seed", "3", "--model", str(model_folder), "-o"]
    return {"stream": ["stream", RED, "--chunks", "3", *end], "generate": ["generate", RED, *end]}


def test_a_stream_in_a_pipe_is_the_stream_in_a_file(asked, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert piped([*asked["stream"], "-"], tmp_path / "piped.mp4") == 0
    assert main([*asked["stream"], "there.mp4"]) == 0
    assert np.array_equal(frames(tmp_path / "piped.mp4"), frames(tmp_path / "there.mp4"))
    assert (tmp_path / "piped.mp4").read_bytes()[4:8] == b"ftyp"  # no message comes before the video
    assert read_comment(tmp_path / "piped.mp4") == read_comment(tmp_path / "there.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["piped.mp4", "there.mp4"]


def test_a_clip_in_a_pipe_is_the_clip_in_a_file(asked, tmp_path: Path) -> None:
    assert piped([*asked["generate"], "-"], tmp_path / "piped.mp4") == 0
    assert main([*asked["generate"], str(tmp_path / "there.mp4")]) == 0
    there, through = frames(tmp_path / "there.mp4").astype(int), frames(tmp_path / "piped.mp4").astype(int)
    assert there.shape == through.shape
    assert np.abs(there - through).mean() < 3  # coded without frames that wait for later ones
    assert read_comment(tmp_path / "piped.mp4") == read_comment(tmp_path / "there.mp4")


@pytest.mark.parametrize("command", ["stream", "generate"])
def test_a_reader_that_leaves_ends_it(asked, command: str, tmp_path: Path, capfd) -> None:
    assert piped([*asked[command], "-"], tmp_path / "piped.mp4", most=100) == 141
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("command", ["stream", "generate"])
def test_a_terminal_gets_no_video(asked, command: str, capfd) -> None:
    keyboard, screen = pty.openpty()
    with printing_to(screen):
        assert main([*asked[command], "-"]) == 2
    os.close(keyboard)
    assert "terminal" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["stream", "generate"])
def test_a_full_disk_behind_the_pipe_is_one_line(asked, command: str, capfd) -> None:
    with printing_to(os.open("/dev/full", os.O_WRONLY)):
        assert main([*asked[command], "-"]) == 2
    assert "cannot write the video: No space left" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("generate", ["--samples", "2"], "one clip"),
        ("generate", ["--format", "gif"], "as mp4"),
        ("generate", ["--sheet", "a.png"], "--sheet and -o -"),
        ("stream", ["--log", "-"], "only -o takes -"),
    ],
)
def test_what_a_pipe_cannot_hold_is_refused(asked, command, more, said, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    assert piped([*asked[command], "-", *more], tmp_path / "piped.mp4") == 2
    assert said in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["piped.mp4"]
