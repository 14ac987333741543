"""A folder of clips: judged as the same clips in memory, named clearly, refused clearly."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from worlds import Shades

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.evaluate.clips import measure_clips
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.results import SUMS, Results
from nearstep.evaluate.run import measure
from nearstep.evaluate.tables import compare
from nearstep.playground import PLAYGROUND
from nearstep.protocols import World
from nearstep.stream.output import pixels, safe_name, write_video

WORLD = Shades(size=16, frames=5)


def write(folder: Path, shown: str, video: Tensor, *, index: int = 0, **metadata) -> Path:
    return write_video(folder / f"{safe_name(shown)}-{index}.mp4", video, fps=12, metadata=metadata)


def filled(folder: Path, world: World = WORLD, count: int = 6) -> Path:
    """The true clips of the first held-out captions."""
    prompts, clips = world.prompts(CAPTIONS_SEED, range(count)), world.clips(CAPTIONS_SEED, range(count))
    for index, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
        write(folder, prompt, clip, index=index, prompt=prompt, plan="4", steps=12, commits=2)
    return folder


def write_lossless(folder: Path, shown: str, video: Tensor) -> None:
    with av.open(folder / f"{shown}-0.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=12)
        stream.width, stream.height, stream.pix_fmt = PLAYGROUND.size, PLAYGROUND.size, "bgr0"
        for picture in pixels(video):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def in_memory(count: int, out: Path) -> Results:
    """The same clips, in the 256 levels of a file, measured as a model's."""

    def generate(prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        return (PLAYGROUND.clips(CAPTIONS_SEED, samples) * 255).round() / 255

    return measure(PLAYGROUND, generate, ["clips"], calls=lambda plan: 0, captions=count, batch=4, out=out)


def test_clips_on_disk_are_judged_as_in_memory_and_pair_with_a_model(tmp_path: Path):
    folder = tmp_path / "clips"
    folder.mkdir()
    clips = zip(PLAYGROUND.prompts(CAPTIONS_SEED, range(8)), PLAYGROUND.clips(CAPTIONS_SEED, range(8)), strict=True)
    for prompt, clip in clips:
        write_lossless(folder, prompt, clip)
    on_disk = measure_clips(PLAYGROUND, folder, batch=4, out=tmp_path / "disk.json")
    model = in_memory(8, tmp_path / "memory.json")
    disk, memory = (found["plans"]["clips"] for found in (on_disk, model))
    for name in memory.keys() - {"calls", "seconds_per_clip"}:
        assert disk[name] == memory[name]
    assert str(compare(on_disk, model)).splitlines()[2].count("+0.00 [+0.00, +0.00]") == 4
    assert json.loads((tmp_path / "disk.json").read_text()) == on_disk


def test_mp4_changes_the_look_and_not_what_is_shown(tmp_path: Path):
    on_disk = measure_clips(PLAYGROUND, filled(tmp_path / "clips", PLAYGROUND, 8), batch=4, out=tmp_path / "disk.json")
    disk, memory = on_disk["plans"]["4"], in_memory(8, tmp_path / "memory.json")["plans"]["clips"]
    assert disk["calls"] == 14
    assert disk["clips"]["semantic"] == memory["clips"]["semantic"]
    assert 0 < memory["total"]["value"] - disk["total"]["value"] < 0.1


def test_what_a_model_generates_is_measured_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture):
    prompts, folder, out = tmp_path / "prompts.txt", tmp_path / "clips", tmp_path / "found.json"
    assert main(["evaluate", "--list-captions", "--captions", "3"]) == 0
    prompts.write_text(capsys.readouterr().out)
    assert prompts.read_text().splitlines() == PLAYGROUND.prompts(CAPTIONS_SEED, range(3))
    made = ["--plan", "4,1x", "--seed", "0", "-o", f"{folder}/"]
    assert main(["generate", "--prompts-file", str(prompts), *made]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["plans"]) == ["4,1x"] and found["settings"]["captions_seed"] == CAPTIONS_SEED
    assert found["plans"]["4,1x"]["semantic"]["value"] > 0.4
    calls = found["plans"]["4,1x"]["calls"]
    assert capsys.readouterr().out.splitlines()[2].startswith(f"| 4,1x | {calls} | ")


def test_foreign_clips_say_their_prompt_by_name_alone(tmp_path: Path):
    clips = WORLD.clips(0, range(4))
    write(tmp_path, "dark", clips[0])
    write(tmp_path, "Bright, and still", clips[1])
    write(tmp_path, "dark", clips[3], index=1)
    results = measure_clips(WORLD, tmp_path, batch=2, out=tmp_path / "found.json")
    found = results["plans"]["clips"]
    assert found["calls"] is None
    assert "captions_seed" not in results["settings"]
    assert sorted(found["clips"]["correct"]) == [0.0, 1.0, 1.0]


def test_a_shortened_name_is_completed_by_the_file(tmp_path: Path):
    long = " and ".join(["dark"] + ["still"] * 40)
    clips = WORLD.clips(0, range(2))
    first = write(tmp_path, long, clips[0], prompt=long)
    assert "~" in first.name
    write(tmp_path, "bright", clips[1])
    found = measure_clips(WORLD, tmp_path, batch=2, out=tmp_path / "found.json")
    assert found["plans"]["clips"]["correct"]["value"] == 1.0
    write(tmp_path, long, clips[0])
    with pytest.raises(NearstepError, match="shortened prompt in its name and none in its comment"):
        measure_clips(WORLD, tmp_path, batch=2, out=tmp_path / "found.json")


@pytest.mark.parametrize(
    ("prompt", "size", "frames", "metadata", "said"),
    [
        ("dark and stil", 16, 5, {}, "does not know the word 'stil': did you mean still"),
        ("dark", 32, 5, {}, "is 32x32 pixels; clips of shades-16 are 16x16"),
        ("dark", 16, 4, {}, "has 4 frames; clips of shades-16 have 5"),
        ("dark", 16, 9, {}, "has more than 5 frames"),
        ("dark", 16, 5, {"prompt": "bright"}, "named otherwise than its comment, 'bright'"),
        ("still", 16, 5, {}, "says no shade"),
    ],
)
def test_a_clip_that_is_not_of_the_world_is_named(
    prompt: str, size: int, frames: int, metadata: dict, said: str, tmp_path: Path
):
    filled(tmp_path)
    write(tmp_path, prompt, torch.full((frames, 3, size, size), 0.2), index=9, **metadata)
    out = tmp_path / "found.json"
    with pytest.raises(NearstepError, match=said):
        measure_clips(WORLD, tmp_path, batch=4, out=out)
    assert not out.exists()


def damaged(folder: Path) -> None:
    filled(folder, PLAYGROUND, 2)
    (folder / "a red ball-0.mp4").write_bytes(b"no video")


def unnumbered(folder: Path) -> None:
    write(folder, "a red ball", PLAYGROUND.clips(0, [0])[0]).rename(folder / "a red ball.mp4")
    filled(folder, PLAYGROUND, 2)


def test_a_clip_whose_prompt_says_what_cannot_be_is_named(tmp_path: Path):
    folder, out = tmp_path / "clips", tmp_path / "found.json"
    folder.mkdir()
    filled(folder, PLAYGROUND, 2)
    write(folder, "a purple cat rests", PLAYGROUND.clips(0, [0])[0], index=0)
    with pytest.raises(NearstepError, match="a purple cat rests-0.mp4: no cat here is purple"):
        measure_clips(PLAYGROUND, folder, batch=4, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("fill", "options", "said"),
    [
        (Path.mkdir, (), "holds 0 clips"),
        (lambda folder: filled(folder, PLAYGROUND, 1), (), "holds 1 clips"),
        (damaged, (), "cannot be decoded"),
        (unnumbered, (), "does not say what it shows; name it PROMPT-INDEX.mp4"),
        (filled, ("--plans", "4"), "--plans is about a model"),
        (filled, ("--seed", "0"), "--seed is about a model"),
        (filled, ("--world", "playgrond"), "did you mean playground?"),
        (filled, ("--batch", "0"), "--batch 0: at least 1"),
    ],
)
def test_misuse_is_one_clear_line(fill, options: tuple[str, ...], said: str, tmp_path: Path, capsys):
    folder = tmp_path / "clips"
    fill(folder)
    assert main(["evaluate", str(folder), "--out", str(tmp_path / "out.json"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_results_of_other_clips_are_not_overwritten(tmp_path: Path):
    out = tmp_path / "found.json"
    first = measure_clips(WORLD, filled(tmp_path / "a"), batch=4, out=out)
    assert set(SUMS) < set(first["plans"]["4"])
    assert measure_clips(WORLD, tmp_path / "a", batch=3, out=out) == first
    with pytest.raises(NearstepError, match="name another file"):
        measure_clips(WORLD, filled(tmp_path / "b"), batch=4, out=out)
