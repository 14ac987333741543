"""Video folders and clips: captions found, frames taken at the right moment, pictures as another library cuts them."""

from __future__ import annotations

import itertools
import json
import weakref
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nearstep.data import videos
from nearstep.data.videos import (
    ClipSize,
    at_rate,
    count_clips,
    list_videos,
    read_clips,
    read_ending,
    read_facts,
    read_frames,
)
from nearstep.errors import NearstepError
from nearstep.pictures import fitted
from nearstep.stream.output import write_video

SMALL = ClipSize(frames=5, height=32, width=48, fps=12)


def empty(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


# --- folders -------------------------------------------------------------------------------------------------------


def beside(folder: Path) -> None:
    (folder / "a.mp4").with_suffix(".txt").write_text("a red\n ball \n")
    (folder / "sub" / "b.webm").with_suffix(".txt").write_text("ein Bär", encoding="utf-8")


def as_csv(folder: Path) -> None:
    (folder / "metadata.csv").write_text("file_name,text\na.mp4,a red ball\nsub/b.webm,ein Bär\n", encoding="utf-8")


def as_json_lines(folder: Path) -> None:
    rows = [{"video": "./a.mp4", "caption": "a red ball"}, {"video": "sub/b.webm", "caption": "ein Bär"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("write", [beside, as_csv, as_json_lines])
def test_captions_are_found_in_either_place(write, tmp_path: Path):
    empty(tmp_path, "a.mp4", "c.MOV", "sub/b.webm", ".hidden/d.mp4", ".e.mp4", "f.png")
    write(tmp_path)
    found = list_videos(tmp_path)
    assert [(video.name, video.caption) for video in found] == [
        ("a.mp4", "a red ball"), ("c.MOV", ""), ("sub/b.webm", "ein Bär"),
    ]  # fmt: skip
    assert all(video.path == tmp_path / video.name for video in found)


def test_a_video_that_only_the_metadata_knows_is_listed(tmp_path: Path):
    empty(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text("file_name,caption\nz.mp4,a ball\n")
    assert [video.name for video in list_videos(tmp_path)] == ["a.mp4", "z.mp4"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no videos"),
        ({"metadata.csv": "file_name,words\na.mp4,x\n"}, "line 2: no column caption or text or prompt or cap"),
        ({"metadata.csv": "name,caption\na.mp4,x\n"}, "line 2: no column file_name, file, video"),
        ({"metadata.csv": "file_name,caption\n../a.mp4,x\n"}, "is not inside"),
        ({"metadata.csv": "file_name,caption\na.mp4,x\n./a.mp4,y\n"}, "is named twice"),
        ({"metadata.csv": "", "metadata.jsonl": ""}, "keep one"),
        ({"metadata.jsonl": '"a.mp4"'}, "no column file_name"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_folder_is_named(files: dict[str, str], said: str, tmp_path: Path):
    if files:
        empty(tmp_path, "a.mp4")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(NearstepError, match=said):
        list_videos(tmp_path)


def test_no_folder(tmp_path: Path):
    empty(tmp_path, "a.mp4")
    for path, said in ((tmp_path / "a.mp4", "is a file"), (tmp_path / "none", "is not there")):
        with pytest.raises(NearstepError, match=said):
            list_videos(path)


# --- time ----------------------------------------------------------------------------------------------------------


@given(
    gaps=st.lists(st.floats(0.01, 0.2), max_size=30), fps=st.floats(2, 60), last=st.floats(0.01, 0.2)
)  # fmt: skip
def test_each_moment_shows_the_frame_nearest_to_it(gaps: list[float], fps: float, last: float):
    times = [0.0, *np.cumsum(gaps).tolist()]
    taken = list(at_rate([(time, number) for number, time in enumerate(times)], fps, last=last))
    for place, frame in enumerate(taken):
        distances = [abs(time - place / fps) for time in times]
        assert distances[frame] <= min(distances) + 1e-9
    assert (len(taken) - 1) / fps <= times[-1] + last / 2 < len(taken) / fps + 1e-9


def test_the_same_rate_keeps_every_frame_even_if_times_are_rounded():
    milliseconds = [(round(1000 * number / 24) / 1000, number) for number in range(240)]  # as in webm
    assert list(at_rate(milliseconds, 24, last=1 / 24)) == list(range(240))
    assert list(at_rate(milliseconds, 12, last=1 / 24)) == list(range(0, 240, 2))


def test_one_picture_that_stands_for_years_is_an_hour_of_it():
    assert list(at_rate([(0.0, 0)], 2, last=2e9)) == [0] * (2 * 1800 + 1)


@pytest.mark.parametrize("name", ["a" * 300 + ".mp4", "b\udce9.mp4"])
def test_a_name_that_no_file_has_costs_that_video_alone(name: str, tmp_path: Path):
    with pytest.raises(NearstepError):
        read_facts(tmp_path / name)


# --- pictures ------------------------------------------------------------------------------------------------------


def with_pillow(picture: np.ndarray, box: tuple[float, float, float, float], size: ClipSize) -> np.ndarray:
    """Crop and resize by another library."""
    return np.array(Image.fromarray(picture).crop(box).resize((size.width, size.height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("bigbuckbunny.mp4", (100, 0, 1180, 720)),  # 3:2 out of 16:9
        ("carphone_pristine.mp4", (0, 8, 176, 136)),  # 3:2 out of 11:9 pixels that are 128/117 wide
    ],
)
def test_clips_are_what_another_library_cuts(name: str, box, real_videos: Path):
    (clip,) = read_clips(real_videos / name, SMALL)
    assert clip.shape == (5, 32, 48, 3) and clip.dtype == np.uint8
    with av.open(real_videos / name) as container:
        decoded = itertools.islice(container.decode(video=0), 20)
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in decoded]
    for place, picture in enumerate(clip):
        _, nearest = min(frames, key=lambda frame: abs(frame[0] - place / SMALL.fps))
        difference = picture.astype(float) - with_pillow(nearest, box, SMALL)
        assert np.abs(difference).mean() < 0.5 and np.abs(difference).max() <= 8


def test_clips_follow_each_other(real_videos: Path):
    size = ClipSize(frames=9, height=16, width=16, fps=8)
    several = read_clips(real_videos / "bigbuckbunny.mp4", ClipSize(**{**vars(size), "clips_per_video": 9}))
    long = read_clips(real_videos / "bigbuckbunny.mp4", ClipSize(**{**vars(size), "frames": 36}))[0]
    assert len(several) == 4  # 5.28 s are 42 frames
    assert np.array_equal(np.concatenate(several), long)


def displayed(content: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An mp4 whose display matrix takes (x, y) to (a x + c y, b x + d y)."""
    place = content.index(b"tkhd") + 4 + 40
    units = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    matrix = b"".join(unit.to_bytes(4, "big", signed=True) for unit in units)
    return content[:place] + matrix + content[place + len(matrix) :]


@pytest.mark.parametrize("signs", itertools.product((1, -1), (1, -1)))
@pytest.mark.parametrize("transposed", [False, True])
def test_a_picture_is_turned_and_mirrored_as_its_matrix_says(signs: tuple, transposed: bool, tmp_path: Path):
    """Each of the eight ways to hold a square: the corner that the matrix takes a red one to is red."""
    across, down = signs
    picture = torch.zeros(3, 32, 32)
    picture[0, :8, :8], picture[1, 24:, :8] = 1, 1  # red at the top left, green at the bottom left
    write_video(tmp_path / "a.mp4", picture.expand(5, -1, -1, -1), fps=10)
    matrix = (0, down, across, 0) if transposed else (across, 0, 0, down)
    (tmp_path / "b.mp4").write_bytes(displayed((tmp_path / "a.mp4").read_bytes(), *matrix))
    (clip,) = read_clips(tmp_path / "b.mp4", ClipSize(frames=5, height=32, width=32, fps=10))

    def shown(x: int, y: int) -> np.ndarray:  # of a point around the centre
        a, b, c, d = matrix
        return clip[0, 16 + 12 * (b * x + d * y), 16 + 12 * (a * x + c * y)]

    red, green, black = shown(-1, -1), shown(-1, 1), shown(1, 1)
    assert red[0] > 200 > 60 > red[1] and green[1] > 200 > 60 > green[0] and black.max() < 60


def streams(path: Path, *films: tuple[int, int, int], codec: str = "ffv1") -> Path:
    """A file of several video streams: height, width and frames of each; frame i of stream n is of grey 40 n + i."""
    with av.open(path, "w") as container:
        made = [container.add_stream(codec, rate=16) for _ in films]
        for stream, (height, width, _) in zip(made, films, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "bgr0"
        for number, (stream, (height, width, frames)) in enumerate(zip(made, films, strict=True)):
            for index in range(frames):
                grey = np.full((height, width, 3), 40 * number + index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("films", "chosen"),
    [
        ([(16, 16, 9), (32, 48, 9)], 1),  # a thumbnail first
        ([(32, 48, 9), (16, 16, 9)], 0),
        ([(64, 64, 1), (32, 48, 9)], 1),  # a cover that is larger than the film
        ([(32, 48, 9), (32, 48, 9)], 0),  # as large: the first
    ],
)
def test_the_film_among_several_streams_is_read(films, chosen: int, tmp_path: Path):
    path = streams(tmp_path / "a.mkv", *films)
    (clip,) = read_clips(path, ClipSize(frames=9, height=16, width=24, fps=16))
    assert np.abs(clip.astype(int).mean((1, 2, 3)) - (40 * chosen + np.arange(9))).max() < 1.5
    assert read_facts(path)[:2] == films[chosen][:2]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_told(transfer: int, name: str, tmp_path: Path):
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8)).reformat(format="yuv420p10le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(NearstepError, match=rf"it is HDR \({name}\).*make an SDR copy"):
        read_clips(tmp_path / "a.mp4", ClipSize(frames=5, height=16, width=16, fps=10))


@pytest.mark.parametrize("fps", [3, 8, 12, 25])
@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("rate", [10, 24])
def test_a_head_tells_how_many_clips_there_are(fps: int, frames: int, rate: int, tmp_path: Path):
    write_video(tmp_path / "a.mp4", torch.zeros(33, 3, 16, 16), fps=rate)
    size = ClipSize(frames=frames, height=16, width=16, fps=fps, clips_per_video=99)
    try:
        made = len(read_clips(tmp_path / "a.mp4", size))
    except NearstepError as error:
        with pytest.raises(NearstepError) as caught:
            count_clips(tmp_path / "a.mp4", size)
        assert str(caught.value) == str(error)
    else:
        assert count_clips(tmp_path / "a.mp4", size) == made


def test_the_end_of_a_video_is_that_of_all_its_pictures(real_videos: Path):
    size = ClipSize(frames=1, height=16, width=16, fps=8, clips_per_video=999)
    every = np.concatenate(read_clips(real_videos / "bigbuckbunny.mp4", size))
    assert np.array_equal(read_ending(real_videos / "bigbuckbunny.mp4", size, 5), every[-5:])
    assert np.array_equal(read_ending(real_videos / "bigbuckbunny.mp4", size, 999), every)


def test_a_phone_held_upright(tmp_path: Path):
    picture = torch.zeros(3, 32, 64)
    picture[0, :, :32], picture[2, :, 32:] = 1, 1  # red on the left, blue on the right
    write_video(tmp_path / "a.mp4", picture.expand(5, -1, -1, -1), fps=10)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(displayed(content, 0, 1, -1, 0))  # turned clockwise
    (clip,) = read_clips(tmp_path / "b.mp4", ClipSize(frames=5, height=64, width=32, fps=10))
    top, bottom = clip[0, 8, 16], clip[0, 56, 16]
    assert top[0] > 200 > 60 > top[2] and bottom[2] > 200 > 60 > bottom[0]


@given(rows=st.integers(2, 90), columns=st.integers(2, 90), aspect=st.sampled_from([1.0, 128 / 117, 0.5]))
def test_any_picture_fits(rows: int, columns: int, aspect: float):
    picture = np.full((rows, columns, 3), 137, np.uint8)
    assert np.array_equal(fitted(picture, height=12, width=20, aspect=aspect), np.full((12, 20, 3), 137, np.uint8))


# --- what cannot be read -------------------------------------------------------------------------------------------


def broken(folder: Path, source: Path) -> dict[str, tuple[Path, str]]:
    content = source.read_bytes()
    files = {"text": b"a red ball", "empty": b"", "truncated": content[: len(content) // 2]}
    for name, held in files.items():
        (folder / f"{name}.mp4").write_bytes(held)
    return {name: (folder / f"{name}.mp4", "cannot be decoded") for name in files}


def test_broken_files_say_so(tmp_path: Path, real_videos: Path):
    cases = broken(tmp_path, real_videos / "carphone_distorted.mp4")
    cases["missing"] = (tmp_path / "none.mp4", "no such file")
    for path, said in cases.values():
        with pytest.raises(NearstepError, match=said):
            read_clips(path, SMALL)
    with pytest.raises(NearstepError, match="too short: 48 frames at 12 fps, 81 are needed"):
        read_clips(real_videos / "carphone_distorted.mp4", ClipSize(**{**vars(SMALL), "frames": 81}))


def test_a_file_as_it_is(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", torch.full((9, 3, 32, 48), 0.5), fps=10, metadata={"seed": 7})
    assert read_facts(path) == (32, 48, '{"seed": 7}')
    frames = read_frames(path, most=99)
    assert frames.shape == (9, 32, 48, 3) and frames.dtype == np.uint8
    assert np.array_equal(read_frames(path, most=4), frames[:4])
    for read in (read_facts, lambda file: read_frames(file, 1)):
        with pytest.raises(NearstepError, match="there is no such file"):
            read(tmp_path / "b.mp4")


def test_a_file_without_pictures(tmp_path: Path):
    with av.open(tmp_path / "sound.mp4", "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(NearstepError, match="no video stream"):
        read_clips(tmp_path / "sound.mp4", SMALL)


@pytest.mark.parametrize(("field", "value"), [("fps", 0.0), ("clips_per_video", 0)])
def test_sizes_are_checked(field: str, value: float):
    with pytest.raises(NearstepError, match=field):
        ClipSize(**{**vars(SMALL), field: value})


def test_the_end_of_a_long_video_is_all_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shades = torch.linspace(0, 1, 40)[:, None, None, None].expand(-1, 3, 32, 48)
    path = write_video(tmp_path / "a.mp4", shades, fps=12)
    every = np.concatenate(read_clips(path, replace(SMALL, frames=1, clips_per_video=100)))
    assert len(every) == 40
    held, alive = [], []

    def noted(*arguments, **options):
        picture = fitted(*arguments, **options)
        held.append(weakref.ref(picture))
        alive.append(sum(each() is not None for each in held))
        return picture

    monkeypatch.setattr(videos, "fitted", noted)
    for most in (1, 9, 100):
        held.clear()
        alive.clear()
        assert np.array_equal(read_ending(path, SMALL, most), every[-most:])
        assert max(alive) <= most + 2 and len(alive) == 40
