"""VBench-Long: clips hold the frames they should, are found by the official look-up, and add up as officially."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vbench_files import write_info
from vbench_long import CAT, FRAMES, NEAR, ROWS, STILL, greys, official_functions, ramp, write_both, write_videos

from nearstep.cli.main import main
from nearstep.evaluate.vbench.dimensions import DIMENSIONS
from nearstep.evaluate.vbench.long import LONGER, clip_seconds, clips_of
from nearstep.stream.output import write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of videos, and one of their clips."""
    return write_both(tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """The official functions."""
    return official_functions()


def found_officially(videos: Path, entries: list[dict], listed: list[str]) -> list[str]:
    """The clips that the official long_vbench_standard mode looks up, after its own code: `listed` is what the file
    system lists first."""
    suffix = Path(listed[0]).suffix
    known = [name.replace(suffix, "") for name in listed]
    found: list[str] = []
    for entry in entries:
        for index in range(5):
            folder = videos / "split_clip" / f"{entry['prompt_en']}-{index}"
            if folder.is_dir():
                found += [name for name in os.listdir(folder) if name.split("_")[0] in known]  # noqa: PTH208
    return sorted(found)


def expected_clips(prompt: str, index: int, frames: int, each: int) -> dict[str, range]:
    """Clip -> the frames of the video that it shows, in closed form."""
    video = f"{prompt}-{index}"
    if frames < each:
        return {f"{video}_full.mp4": range(frames)}
    whole, rest = divmod(frames, each)
    found = {f"{video}_{place:03d}.mp4": range(place * each, (place + 1) * each) for place in range(whole)}
    return {**found, f"{video}_{whole:03d}.mp4": range(frames - each, frames)} if rest else found


def test_clips_show_the_frames_of_their_videos_in_order(both: tuple[Path, Path]) -> None:
    source, out = both
    for row in ROWS:
        each = 16 * clip_seconds(row["dimension"])
        for index, frames in enumerate(FRAMES):
            name = f"{row['prompt_en']}-{index}"
            clips = expected_clips(row["prompt_en"], index, frames, each)
            folder = out / "videos" / "split_clip" / name
            assert {path.name for path in folder.iterdir()} == set(clips)
            whole = greys(source / "videos" / f"{name}.mp4")
            for clip, shown in clips.items():
                assert greys(folder / clip) == pytest.approx([whole[place] for place in shown], abs=NEAR)
            firsts = out / "first_frames" / f"{name}.mp4"
            assert firsts.exists() == (len(clips) > 1)
            if len(clips) > 1:
                begins = [whole[clips[clip][0]] for clip in sorted(clips)]
                assert greys(firsts) == pytest.approx(begins, abs=NEAR)


def test_what_81_frames_become() -> None:
    first, second, third = clips_of(range(81), 32)
    assert (first[0], second[0], third[0]) == (0, 32, 49) and len(third) == 32 and third[-1] == 80
    assert [*clips_of(range(81), 160)] == [[*range(81)]]  # of dimensions with clips of 10 seconds
    assert [*clips_of(range(64), 32)] == [[*range(32)], [*range(32, 64)]]  # a rest of no frame is no clip
    assert [*clips_of([], 32)] == []
    assert [len(clip) for clip in clips_of(range(33), 32)] == [32, 32]


@pytest.mark.parametrize("each", [1, 2, 7, 32])
def test_clips_cover_every_frame_and_are_of_one_length(each: int) -> None:
    for frames in range(1, 100):
        clips = [*clips_of(range(frames), each)]
        assert sorted({frame for clip in clips for frame in clip}) == [*range(frames)]
        assert len(clips) == -(-frames // each) and {len(clip) for clip in clips} == {min(each, frames)}
        assert all(later == sooner + 1 for clip in clips for sooner, later in pairwise(clip))


def test_the_official_look_up_finds_all_clips(both: tuple[Path, Path]) -> None:
    _, out = both
    videos = out / "videos"
    made = sorted(path.name for path in (videos / "split_clip").rglob("*.mp4"))
    names = sorted(path.name for path in videos.iterdir())
    assert found_officially(videos, ROWS, [*reversed([name for name in names if name.endswith(".mp4")])]) == made
    assert not found_officially(videos, ROWS, ["split_clip", *names])  # which is why the command warns of that order
    # It cuts again unless as many folders as videos have a number at the end.
    assert len([*(videos / "split_clip").iterdir()]) == len(names) - 1 == len(ROWS) * 5


def test_what_is_cut_is_kept_and_a_new_video_is_cut_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_info(tmp_path, ROWS)
    source = write_videos(tmp_path / "set", (CAT,), (33, 33))
    command = ["vbench", "cut", str(source), "--info", str(tmp_path), "-o", str(tmp_path / "long")]
    assert main(command) == 0 and len(capsys.readouterr().err.splitlines()) >= 2
    clips = tmp_path / "long" / "videos" / "split_clip"
    before = {path: path.stat().st_mtime_ns for path in clips.rglob("*.mp4")}
    assert main(command) == 0 and "frames at 16 a second" not in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in clips.rglob("*.mp4")} == before
    write_video(source / "videos" / f"{CAT}-1.mp4", ramp(20), fps=16)
    assert main(command) == 0 and f"{CAT}-1.mp4: 1 clip of 20" in capsys.readouterr().err
    assert [path.name for path in (clips / f"{CAT}-1").iterdir()] == [f"{CAT}-1_full.mp4"]
    assert not (tmp_path / "long" / "first_frames" / f"{CAT}-1.mp4").exists()
    assert (
        main([*command, "--seconds", "1"]) == 2 and "clips of seconds 'by dimension', not 1" in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_while_cutting_it_goes_on_to_the_same_clips(tmp_path: Path, both: tuple[Path, Path]) -> None:
    source, whole = both
    out = tmp_path / "long"
    command = ["vbench", "cut", str(source), "--info", str(source.parent), "-o", str(out)]
    for count in (2, 9):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "nearstep.cli.main", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and len([*out.glob("videos/*.mp4")]) < count:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.glob("videos/split_clip/[!.]*/*.mp4")}
    assert main(command) == 0 and all(path.stat().st_mtime_ns == made for path, made in kept.items())
    made, expected = ({path.relative_to(each).as_posix() for path in each.rglob("*")} for each in (out, whole))
    assert made == expected - {each for each in expected if each.startswith("scores")}
    assert 0 < len(kept) < len(made)
    for path in (out / "videos" / "split_clip").rglob("*.mp4"):
        assert greys(path) == pytest.approx(greys(whole / path.relative_to(out)), abs=NEAR)


# --- refused -------------------------------------------------------------------------------------------------------


def test_names_that_the_official_look_up_cannot_find_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "set"
    for prompt, said in (("a_b", "no _ and no second .mp4"), ("a.mp4 b", "no second .mp4"), ("a" * 246, "250 bytes")):
        write_info(tmp_path, [{"prompt_en": prompt, "dimension": ["color"]}])
        path = source / "videos" / f"{prompt}-0.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert main(["vbench", "cut", str(source), "--info", str(tmp_path), "-o", str(tmp_path / "long")]) == 2
        err = capsys.readouterr().err
        assert (said in err or "256 bytes" in err) and not (tmp_path / "long").exists()
        path.unlink()


def test_videos_that_cannot_be_cut_are_named_and_the_others_are_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_info(tmp_path, [ROWS[1]])
    videos = tmp_path / "set" / "videos"
    write_video(videos / f"{CAT}-0.mp4", ramp(33), fps=16)
    write_video(videos / f"{CAT}-1.mp4", ramp(1), fps=16)
    (videos / f"{CAT}-2.mp4").write_bytes(b"no video")
    (videos / "stranger-0.mp4").touch()
    out = tmp_path / "long"
    command = ["vbench", "cut", str(tmp_path / "set"), "--info", str(tmp_path), "-o"]
    assert main([*command, str(out)]) == 2
    err = capsys.readouterr().err
    assert "1 of 4 videos are of none of the prompts, such as stranger-0.mp4" in err
    assert "2 of 3 videos could not be cut: " in err and "it has one frame" in err and "cannot be decoded" in err
    assert [path.name for path in (out / "videos" / "split_clip").iterdir()] == [f"{CAT}-0"]
    assert {path.name for path in (out / "videos").iterdir()} == {"split_clip", f"{CAT}-0.mp4"}
    write_video(videos / f"{CAT}-1.mp4", ramp(33), fps=0.5)
    assert main([*command, str(out)]) == 2 and "0 frames a second" in capsys.readouterr().err
    assert {path.name for path in (out / "videos").iterdir()} == {"split_clip", f"{CAT}-0.mp4"}
    for place in (tmp_path / "set", videos, videos / "deeper"):
        assert main([*command, str(place)]) == 2 and "name a folder of its own" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "set"), "--seconds", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


# --- the official code, where it is ----------------------------------------------------------------------------------


def test_the_official_code_finds_the_clips(official: dict[str, Any], both: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = both
    listed = SimpleNamespace(path=os.path, listdir=lambda folder: sorted(os.listdir(folder)))  # noqa: PTH208
    written: list[list[dict]] = []
    official.update(os=listed, save_json=lambda rows, _: written.append(rows))
    official["load_json"] = lambda _: [{**row, "dimension": [*row["dimension"]]} for row in ROWS]
    vbench = SimpleNamespace(full_info_dir="", output_path=str(tmp_path))
    dimensions = [name for row in ROWS for name in row["dimension"]]
    official["build_full_info_json"](
        vbench, str(out / "videos"), "x", dimensions, mode="long_vbench_standard", num_of_samples_per_prompt=5
    )
    official["os"] = os
    (rows,) = written
    found = sorted(path for row in rows for path in row["video_list"])
    assert found == sorted(str(path) for path in (out / "videos" / "split_clip").rglob("*.mp4")) and found
    lengths = {name: clip_seconds([name]) for name in DIMENSIONS}
    assert {name for name, seconds in lengths.items() if seconds != 2} == set(LONGER)
    for row in ROWS:
        seconds = official["get_duration_from_json"](f"{row['prompt_en']}-3.mp4", ROWS, lengths)
        assert seconds == clip_seconds(row["dimension"])


def test_cuts_are_those_of_the_official_code(official: dict[str, Any], tmp_path: Path) -> None:
    for frames in (*range(2, 100), 480, 1201):
        written: dict[str, list[int]] = {}
        official["get_video_properties"] = lambda _: {"fps": 16}
        official["load_video"] = lambda *_, count=frames, **__: torch.arange(count)[:, None, None, None]
        official["write_video"] = lambda path, shown, fps, to=written: to.update(
            {Path(path).name: shown.flatten().tolist()}
        )
        official["split_video_into_clips"](f"x/{STILL}-3.mp4", str(tmp_path), duration=2, fps=8)
        expected = expected_clips(STILL, 3, frames, 32)
        assert written == {name: [*shown] for name, shown in expected.items()}
        assert [*clips_of(range(frames), 32)] == [written[name] for name in sorted(written)]
