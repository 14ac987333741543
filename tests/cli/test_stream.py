"""``nearstep stream``: a file of as many frames as were made, changes on the way, and the take again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from nearstep.cli import stream
from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.pictures import fitted, upright
from nearstep.stream.mp4 import growing_mp4
from nearstep.stream.opening import read_picture
from nearstep.stream.output import count_frames, pixels, read_comment
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.recording import Recording
from nearstep.stream.session import Session

RED, BLUE = "a small red ball slides left on snow", "the large blue football bounces"


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


def test_the_preview_is_written_at_once_and_the_final_pixels_beside(
    model_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(TinyDecoder(channels=4, widths=(8, 8, 8, 8)).state_dict(), "tiny.safetensors")
    asked = ["stream", RED, "--chunks", "3", "--at", "2", BLUE, "--seed", "3", "--model", str(model_folder)]
    tiny = ["--tiny-decoder", "tiny.safetensors"]
    assert main([*asked, "-o", "plain.mp4"]) == 0
    assert main([*asked, "-o", "coarse.mp4", *tiny]) == 0
    assert not np.array_equal(frames(Path("coarse.mp4")), frames(Path("plain.mp4")))
    both = [*asked, "-o", "a.mp4", "--final", "b.mp4", *tiny]
    capsys.readouterr()
    assert main(both) == 0
    assert capsys.readouterr().out == "a.mp4\nb.mp4\n"
    for made, alone in (("a.mp4", "coarse.mp4"), ("b.mp4", "plain.mp4")):
        assert np.array_equal(frames(Path(made)), frames(Path(alone)))
        assert read_comment(Path(made)) == read_comment(Path(alone))
    assert read_comment(Path("a.mp4"))["tiny_decoder"] == "tiny.safetensors"

    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(both) == 0
    assert "skipped" in capsys.readouterr().err
    assert main([*asked, "-o", "coarse.mp4"]) == 2  # the codec's pixels are asked for, the tiny decoder's are there
    assert "shows something else (tiny decoder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made
    Path("b.mp4").unlink()
    assert main(both) == 2
    assert "a.mp4 is there already, b.mp4 is not; --overwrite makes both again" in capsys.readouterr().err
    assert main([*both, "--overwrite"]) == 0
    assert np.array_equal(frames(Path("b.mp4")), frames(Path("plain.mp4")))


def test_final_pixels_that_cannot_be_written_leave_the_preview(
    model_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(TinyDecoder(channels=4, widths=(8, 8, 8, 8)).state_dict(), "tiny.safetensors")
    growing = stream.growing_mp4

    @contextmanager
    def full(path: Path, **how):
        with growing(path, **how) as grow:
            calls = iter((None, OSError(errno.ENOSPC, "No space left on device")))

            def fill(clip) -> None:
                if path.name == "b.mp4" and (error := next(calls, None)):
                    raise error
                grow(clip)

            yield fill

    monkeypatch.setattr(stream, "growing_mp4", full)
    asked = [RED, "-o", "a.mp4", "--final", "b.mp4", "--tiny-decoder", "tiny.safetensors", "--chunks", "3"]
    assert main(["stream", *asked, "--model", str(model_folder)]) == 2
    assert "cannot write b.mp4: No space left on device; what was made before is in it" in capsys.readouterr().err
    assert (len(frames(Path("a.mp4"))), len(frames(Path("b.mp4")))) == (21, 5)


def test_a_picture_goes_on(model_folder: Path, tmp_path: Path, capsys) -> None:
    picture, video = tmp_path / "a.png", tmp_path / "a.mp4"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(picture)
    asked = ["stream", RED, "--image", str(picture), "-o", str(video), "--chunks", "2", "--model", str(model_folder)]
    assert main(asked) == 0
    assert len(frames(video)) == 16
    capsys.readouterr()
    assert main(asked) == 0 and "skipped" in capsys.readouterr().err
    Image.new("RGB", (32, 32), (30, 200, 30)).save(picture)  # another one under the same name
    assert main(asked) == 2 and "image" in capsys.readouterr().err


def test_the_end_of_a_video_goes_on_and_is_made_again(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    made: list[np.ndarray] = []  # before they are encoded
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
        asked += ["--overwrite"]
        assert main(["stream", *asked, "--model", str(model_folder)]) == 0
        assert Recording.load(log).opening.relative_sink is relative


def test_what_is_there_is_kept_or_refused(model_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["stream", RED, "-o", "a.mp4", "--chunks", "2", "--seed", "3", "--model", str(model_folder)]
    assert main([*asked, "--log", "take.jsonl"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*asked, "--log", "take.jsonl"]) == main(asked) == 0
    assert capsys.readouterr().err.count("skipped, made by this request already") == 2
    other = [(["--seed", "4"], "(seed 3"), (["--chunks", "3"], "(chunks 2"), (["--at", "1", BLUE], "(changes []")]
    for extra, said in other:
        assert main([*asked, *extra]) == 2
        assert said in capsys.readouterr().err
    assert main([*asked, "-o", "b.mp4", "--log", "take.jsonl"]) == 2
    assert "--log take.jsonl is there already" in capsys.readouterr().err
    assert main(["stream", "--replay", "take.jsonl", "-o", "a.mp4", "--model", str(model_folder)]) == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):
        assert main(["stream", "--replay", "take.jsonl", "-o", "c.mp4", "--model", str(model_folder)]) == 0
    assert "skipped" in capsys.readouterr().err
    assert main(["stream", "--replay", "take.jsonl", "--chunks", "3", "-o", "d.mp4", "--model", str(model_folder)]) == 2
    assert "the recording has 2" in capsys.readouterr().err


def stopped(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """The session breaks off once so many chunks were made."""
    go_on = Session.__next__

    def breaks_off(session: Session):
        if session.index == after:
            raise error
        return go_on(session)

    monkeypatch.setattr(Session, "__next__", breaks_off)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 0), (SystemExit(143), 143), (NearstepError("out of luck"), 2)], ids=str
)
def test_what_was_made_stays_whatever_ends_it(
    model_folder: Path, tmp_path: Path, monkeypatch, capsys, error: BaseException, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["stream", RED, "-o", "a.mp4", "--chunks", "4", "--seed", "3", "--model", str(model_folder)]
    stopped(monkeypatch, error, after=2)
    try:
        assert main(asked) == code
    except SystemExit as ended:
        assert ended.code == code
    assert "2 chunks, 13 frames" in capsys.readouterr().err
    assert len(frames(tmp_path / "a.mp4")) == 13 and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(asked) == 2
    assert "13 of 29 frames" in capsys.readouterr().err
    (tmp_path / "a.mp4").unlink()
    stopped(monkeypatch, error, after=0)
    with pytest.raises(SystemExit) if code == 143 else nullcontext():
        assert main(asked) in (2, 130)
    assert not list(tmp_path.iterdir())


def test_a_killed_program_leaves_what_it_had_made(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    program = f"""
import os, numpy as np
from nearstep.stream.mp4 import growing_mp4
with growing_mp4({str(path)!r}, height=32, width=48, fps=12) as grow:
    for part in range(3):
        grow(np.full((8, 32, 48, 3), 60 * part, np.uint8))
    os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": "src"}, check=False)
    assert ended.returncode == -9 and list(tmp_path.iterdir()) == [path]
    there = frames(path)
    assert len(there) >= 23  # the newest frame may still be in the writer
    assert np.abs(there[:16:8].mean((1, 2, 3)) - [0, 60]).max() < 4


def test_it_can_be_watched_as_it_grows(tmp_path: Path) -> None:
    path, there = tmp_path / "a.mp4", []
    path.write_bytes(b"before")
    with growing_mp4(path, height=32, width=48, fps=12, comment='{"a": 1}') as grow:
        assert path.read_bytes() == b"before"
        for part in range(3):
            grow(np.full((8, 32, 48, 3), 60 * part, np.uint8))
            there.append(len(frames(path)))
    assert there == [7, 15, 23] and len(frames(path)) == 24 == count_frames(path)
    assert read_comment(path) == {"a": 1}


def test_a_full_disk_stops_the_log_and_not_the_video(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    def full(recording: Recording, path: Path) -> None:
        if len(recording.chunks) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(recording, path)

    append = Recording.append_last
    monkeypatch.setattr(Recording, "append_last", full)
    monkeypatch.chdir(tmp_path)
    asked = ["stream", RED, "-o", "a.mp4", "--chunks", "4", "--log", "a.jsonl", "--model", str(model_folder)]
    with pytest.warns(UserWarning, match="the log a.jsonl ends at chunk 1: .*No space left"):
        assert main(asked) == 0
    assert len(frames(tmp_path / "a.mp4")) == 29
    assert len(Recording.load("a.jsonl").chunks) == 1


def test_a_torn_log_is_read_up_to_its_last_whole_line(model_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(model_folder)]
    assert main(["stream", RED, "-o", "a.mp4", "--chunks", "2", "--log", "a.jsonl", *model]) == 0
    whole = Path("a.jsonl").read_text()
    for cut in range(len(whole.rstrip().rpartition("\n")[0]) + 2, len(whole) - 2):
        Path("a.jsonl").write_text(whole[:cut])
        with pytest.warns(UserWarning, match="breaks off in its line 3"):
            assert len(Recording.load("a.jsonl").chunks) == 1
    Path("a.jsonl").write_text(whole[:-1])
    assert len(Recording.load("a.jsonl").chunks) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32], pixels[:8] = (200, 30, 30), (30, 200, 30)
    shown, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x112] = orientation
    stored = shown.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else shown
    file = tmp_path / f"a.{suffix}"
    stored.save(file, exif=exif.tobytes(), **({} if suffix == "png" else {"quality": 95}))
    difference = np.abs(np.asarray(read_picture(file), dtype=float) - pixels).mean()
    assert difference < 6


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_greys_of_16_bits_keep_their_shades(kind: type, tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64)[None].repeat(48, 0).astype(kind)
    image = Image.fromarray(grey)
    if kind is np.uint16:
        image.save(tmp_path / "a.png")
        image = read_picture(tmp_path / "a.png")
    assert np.abs(np.asarray(upright(image)).astype(float) - (grey / 257)[..., None]).max() <= 0.51


def test_a_picture_of_another_size_is_cut_and_resized_as_videos_are(model_folder: Path, tmp_path: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    wide = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "a.png")
    made = []
    for image in (tmp_path / "a.png", Image.fromarray(wide), fitted(wide, height=32, width=32)):
        with pipe.open(RED, "1", seed=1, image=image) as session:
            made.append(next(session).video)
    assert np.array_equal(made[0], made[2]) and np.array_equal(made[1], made[2])
    with pytest.raises(NearstepError, match="40 high and 90 wide"):
        pipe.open(RED, image=wide)


def test_a_recording_without_a_chunk_makes_nothing_and_says_so(model_folder: Path, tmp_path: Path, capsys) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    with pipe.open(RED, "1", seed=1) as session:
        session.recording.save(tmp_path / "t.jsonl")
    line = [
        "stream",
        "--replay",
        str(tmp_path / "t.jsonl"),
        "-o",
        str(tmp_path / "a.mp4"),
        "--model",
        str(model_folder),
    ]
    assert main(line) == 2 and "holds no chunk" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()


def test_a_file_is_an_image_for_a_session(model_folder: Path, tmp_path: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    file = tmp_path / "a.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file)
    made = []
    for image in (file, str(file), Image.open(file)):
        with pipe.open(RED, "1", seed=1, image=image) as session:
            made.append(next(session).video)
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
    for image in (tmp_path / "none.png", "a\0b.png", "n" * 300, tmp_path):
        with pytest.raises(NearstepError):
            pipe.open(RED, image=image)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "a.mp4"], "give a prompt to begin with, or --replay"),
        ([RED, "--replay", "t.jsonl", "-o", "a.mp4"], "not both"),
        (["--replay", "t.jsonl", "--seed", "3", "-o", "a.mp4"], "--seed is in the recording already"),
        ([RED, "-o", "a.gif"], "ends in .mp4"),
        ([RED, "-o", "a.mp4", "--chunks", "0"], "at least 1"),
        ([RED, "-o", "a.mp4", "--at", "0", BLUE], "the first chunk is 0"),
        ([RED, "-o", "a.mp4", "--chunks", "3", "--at", "3", BLUE], "--at 3: 3 chunks are made, 0 to 2"),
        ([RED, "-o", "a.mp4", "--at", "900", BLUE], "--at 900: "),
        ([RED, "-o", "a.mp4", "--at", "1", BLUE, "--at", "1", RED], "--at 1 is given twice"),
        ([RED, "-o", "a.mp4", "--at", "1", " "], "a prompt is empty"),
        (["", "-o", "a.mp4"], "a prompt is empty"),
        ([RED, "-o", "a.mp4", "--plan", ""], "plan '' does not parse"),
        ([RED, "-o", "a.mp4", "--log", "./a.mp4"], "are one file"),
        ([RED, "-o", "a.mp4", "--final", "b.mp4"], "--final: the codec makes -o already; give --tiny-decoder"),
        ([RED, "-o", "a.mp4", "--tiny-decoder", "t", "--final", "-"], "--final -: "),
        ([RED, "-o", "a.mp4", "--tiny-decoder", "t", "--final", "b.gif"], "--final b.gif: a stream is written to"),
        ([RED, "-o", "a.mp4", "--tiny-decoder", "t", "--final", "./a.mp4"], "are one file"),
        ([RED, "-o", "a.mp4", "--tiny-decoder", "t", "--final", "b.mp4", "--video", "b.mp4"], "are one file"),
        ([RED, "-o", "a.mp4", "--log", "b.mp4", "--video", "b.mp4"], "are one file"),
        ([RED, "-o", "é" * 130 + ".mp4"], "264 bytes; 255 are allowed"),
        ([RED, "-o", "a\0b.mp4"], "holds a NUL"),
        ([RED, "-o", "a.mp4", "--window", "1000000000"], "positions for"),
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
