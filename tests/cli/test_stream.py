"""``nearstep stream``: a file of as many frames as were made, changes on the way, and the take again."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from nearstep.cli import stream
from nearstep.cli.main import main
from nearstep.stream.output import pixels
from nearstep.stream.recording import Recording

RED, BLUE = "a small red ball slides left on snow", "the large blue square bounces"


def frames(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_stream_is_written_and_made_again(model_folder: Path, tmp_path: Path, capsys) -> None:
    video, log, again, final = (tmp_path / name for name in ("a.mp4", "take.jsonl", "again.mp4", "final.mp4"))
    model = ["--model", str(model_folder)]
    asked = [RED, "-o", str(video), "--chunks", "4", "--at", "2", BLUE, "--plan", "2,1x", "--seed", "3"]
    assert main(["stream", *asked, "--log", str(log), *model]) == 0
    assert "4 chunks, 29 frames" in capsys.readouterr().err
    recording = Recording.load(log)
    assert [len(entry.times) for entry in recording.chunks] == [2, 1, 2, 1]
    assert recording.chunks[2].changes.prompt == BLUE

    assert main(["stream", "--replay", str(log), "-o", str(again), *model]) == 0
    assert frames(video).shape == (29, 32, 32, 3)
    assert np.array_equal(frames(again), frames(video))
    assert main(["stream", "--replay", str(log), "-o", str(final), "--plan", "4", *model]) == 0
    assert not np.array_equal(frames(final), frames(video))


def test_a_picture_goes_on(model_folder: Path, tmp_path: Path) -> None:
    picture, video = tmp_path / "a.png", tmp_path / "a.mp4"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(picture)
    assert (
        main(["stream", RED, "--image", str(picture), "-o", str(video), "--chunks", "2", "--model", str(model_folder)])
        == 0
    )
    assert len(frames(video)) == 16


def test_the_end_of_a_video_goes_on_and_is_made_again(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    made: list[np.ndarray] = []  # before they are encoded: x264 need not write the same bytes twice
    monkeypatch.setattr(stream, "pixels", lambda video: (made.append(pixels(video)), made[-1])[1])
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(model_folder)]
    assert main(["stream", RED, "-o", "a.mp4", "--chunks", "2", "--seed", "1", *model]) == 0
    assert len(frames(Path("a.mp4"))) == 13  # 4n + 1: all of it is taken
    log = ["--log", "take.jsonl"]
    assert main(["stream", RED, "--video", "a.mp4", "-o", "b.mp4", "--chunks", "2", "--seed", "2", *log, *model]) == 0
    assert main(["stream", "--replay", "take.jsonl", "--video", "a.mp4", "-o", "c.mp4", *model]) == 0
    assert len(frames(Path("b.mp4"))) == 16
    assert np.array_equal(np.concatenate(made[2:4]), np.concatenate(made[4:6]))
    assert main(["stream", RED, "--video", "c.mp4", "-o", "d.mp4", "--chunks", "1", *model]) == 0  # 16: the last 13


def test_a_sink_stays_where_it_was(model_folder: Path, tmp_path: Path) -> None:
    log, video = tmp_path / "take.jsonl", tmp_path / "a.mp4"
    for extra, relative in (([], True), (["--no-relative-sink"], False)):
        asked = [RED, "-o", str(video), "--log", str(log), "--chunks", "1", "--window", "2", "--sink", "2", *extra]
        assert main(["stream", *asked, "--model", str(model_folder)]) == 0
        assert Recording.load(log).opening.relative_sink is relative


def test_a_model_streams_with_the_student_it_has_for_streams(tmp_path: Path) -> None:
    log, seen = tmp_path / "take.jsonl", []
    for network in ([], ["--network", "stream"], ["--network", "transformer"]):
        asked = [RED, "-o", str(tmp_path / "a.mp4"), "--log", str(log), "--chunks", "1", "--plan", "1", "--seed", "1"]
        assert main(["stream", *asked, *network]) == 0
        opening = Recording.load(log).opening
        seen.append((opening.weights, opening.window, opening.sink))
    assert seen[0] == seen[1] != seen[2]
    assert (seen[0][1:], seen[2][1:]) == ((9, 0), (6, 3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "a.mp4"], "give a prompt to begin with, or --replay"),
        ([RED, "--replay", "t.jsonl", "-o", "a.mp4"], "not both"),
        (["--replay", "t.jsonl", "--seed", "3", "-o", "a.mp4"], "--seed is in the recording already"),
        ([RED, "-o", "a.gif"], "ends in .mp4"),
        ([RED, "-o", "a.mp4", "--chunks", "0"], "at least 1"),
        ([RED, "-o", "a.mp4", "--at", "0", BLUE], "the first chunk is 0"),
        ([RED, "-o", "a.mp4", "--image", "none.png"], "cannot read the picture"),
        ([RED, "-o", "a.mp4", "--video", "none.mp4"], "cannot read the video none.mp4: there is no such file"),
        ([RED, "-o", "a.mp4", "--video", "b.mp4", "--image", "c.png"], "not both"),
        (
            ["--replay", "t.jsonl", "--no-relative-sink", "-o", "a.mp4"],
            "--no-relative-sink is in the recording",
        ),
        ([RED, "-o", "a.mp4", "--at", "2", "a cat"], "'cat'"),
        (["--replay", "none.jsonl", "-o", "a.mp4"], "cannot read the recording"),
    ],
)
def test_misuse_is_one_line_and_leaves_nothing(
    model_folder: Path, tmp_path: Path, monkeypatch, capsys, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["stream", *arguments, "--model", str(model_folder)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
