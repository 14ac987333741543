"""From videos to shards: the same bits however often it was killed and however many workers decoded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nearstep.data import decoding
from nearstep.data.prepare import SKIPPED, open_folder, prepare_prompts, prepare_videos, remaining, shard_size
from nearstep.data.shards import Index, Shards, ShardWriter, read_index, write_index
from nearstep.data.videos import ClipSize, list_videos, read_clips
from nearstep.errors import NearstepError
from nearstep.nets.codec import VideoCodec
from nearstep.stream.output import write_video

SIZE = ClipSize(frames=9, height=32, width=32, fps=10, clips_per_video=2)
INDEX = Index(codec="tiny", shape=(3, 4, 4, 4), dtype="float16", fps=10, made_from={"kind": "videos"})


@pytest.fixture(scope="module")
def codec(model_folder: Path) -> VideoCodec:
    return VideoCodec.from_pretrained(model_folder / "vae").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of one, two or more clips, and four that give none."""
    folder, draw = tmp_path_factory.mktemp("videos"), torch.Generator().manual_seed(0)
    for number, frames in enumerate((9, 18, 30, 12, 27, 20)):
        coarse = torch.rand(1, 3, frames, 4, 4, generator=draw)
        clip = torch.nn.functional.interpolate(coarse, size=(frames, 36, 48), mode="trilinear")[0]
        write_video(folder / f"{number}.mp4", clip.transpose(0, 1), fps=10)
        (folder / f"{number}.txt").write_text(f"video {number}")
    whole = (folder / "0.mp4").read_bytes()
    for name, content in {"1b-cut": whole[:700], "2b-text": b"a red ball", "3b-mute": whole}.items():
        (folder / f"{name}.mp4").write_bytes(content)
    for name in ("1b-cut", "2b-text"):
        (folder / f"{name}.txt").write_text(name)
    write_video(folder / "4b-short.mp4", torch.rand(8, 3, 32, 32, generator=draw), fps=10)
    (folder / "4b-short.txt").write_text("too short")
    return folder


def prepared(source: Path, target: Path, codec: VideoCodec, *, encode=None, **options) -> list[str]:
    index = open_folder(target, INDEX)
    writer = ShardWriter(target, index, 4)
    options = {"workers": 0, "batch": 3, **options}
    work = remaining(list_videos(source), target, index)
    return [one.file for one in prepare_videos(work, SIZE, writer, encode or codec.encode, **options)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(source: Path, codec: VideoCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    prepared(source, folder, codec)
    return folder


def test_every_clip_is_the_codec_s_of_its_frames(source: Path, whole: Path, codec: VideoCodec):
    index = read_index(whole)
    assert index == replace(INDEX, shards=(4, 4, 2))
    shards = Shards(whole, index)
    records = shards.records()
    assert [(record["file"], record["clip"], record["of"]) for record in records] == [
        ("0.mp4", 0, 1), ("1.mp4", 0, 2), ("1.mp4", 1, 2), ("2.mp4", 0, 2), ("2.mp4", 1, 2),
        ("3.mp4", 0, 1), ("4.mp4", 0, 2), ("4.mp4", 1, 2), ("5.mp4", 0, 2), ("5.mp4", 1, 2),
    ]  # fmt: skip
    for row, record in enumerate(records):
        assert record["caption"] == f"video {record['file'][0]}" and record["start"] == 0.9 * record["clip"]
        clip = (
            torch.from_numpy(read_clips(source / record["file"], SIZE)[record["clip"]]).permute(0, 3, 1, 2)[None] / 255
        )
        torch.testing.assert_close(shards.rows([row]), codec.encode(clip), rtol=2e-3, atol=2e-3)


def test_what_gives_no_clip_is_reported(whole: Path):
    lines = [json.loads(line) for line in (whole / SKIPPED).read_text().splitlines()]
    assert {line["file"]: line["reason"].split(":")[0] for line in lines} == {
        "1b-cut.mp4": "it cannot be decoded",
        "2b-text.mp4": "it cannot be decoded",
        "3b-mute.mp4": "no caption",
        "4b-short.mp4": "too short",
    }


@pytest.mark.parametrize("batches", [0, 1, 2, 3, 4])
def test_killed_and_resumed_equals_uninterrupted(
    batches: int, source: Path, whole: Path, codec: VideoCodec, tmp_path: Path
):
    left = iter(range(batches))

    def encode(video: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return codec.encode(video)

    with pytest.raises(KeyboardInterrupt):
        prepared(source, tmp_path, codec, encode=encode)
    assert contents(tmp_path) != contents(whole)
    prepared(source, tmp_path, codec)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_what_a_sudden_death_leaves_does_no_harm(
    shards: int, source: Path, whole: Path, codec: VideoCodec, tmp_path: Path
):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    index = read_index(whole)
    write_index(tmp_path, replace(index, shards=index.shards[:shards], sums=index.sums[:shards]))
    (tmp_path / f"{shards:05d}.jsonl").write_text("half a li")
    (tmp_path / SKIPPED).unlink()
    (tmp_path / ".999999999.00002.safetensors.part").write_bytes(b"half")
    prepared(source, tmp_path, codec)
    assert contents(tmp_path) == contents(whole)


def test_done_is_done_and_videos_may_be_added(source: Path, whole: Path, codec: VideoCodec, tmp_path: Path):
    videos, target = tmp_path / "videos", tmp_path / "latents"
    shutil.copytree(source, videos)
    shutil.copytree(whole, target)

    def never(video: Tensor) -> Tensor:
        raise AssertionError("all is done")

    prepared(videos, target, codec, encode=never)
    assert contents(target) == contents(whole)
    (videos / "3b-mute.txt").write_text("no longer mute")
    assert "3b-mute.mp4" not in prepared(videos, target, codec)
    index = read_index(target)
    assert index.shards == (4, 4, 2, 1)
    assert Shards(target, index).records()[-1]["caption"] == "no longer mute"


def test_workers_change_nothing(source: Path, whole: Path, codec: VideoCodec, tmp_path: Path):
    prepared(source, tmp_path, codec, workers=2)
    assert contents(tmp_path) == contents(whole)


class Mortal(decoding.ProcessPoolExecutor):
    """Decodes here, and breaks like a pool whose worker was killed by the file named ``2.mp4``."""

    def __init__(self, *_: object) -> None:
        self.broken = False

    def submit(self, call, path: Path, size: ClipSize):  # type: ignore[override]
        future = decoding.Future()
        if self.broken:
            raise decoding.BrokenProcessPool
        if path.name == "2.mp4":
            self.broken = True
        if self.broken:
            future.set_exception(decoding.BrokenProcessPool())
        else:
            future.set_result(call(path, size))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass


def test_a_file_that_crashes_its_decoder_costs_that_file(
    source: Path, codec: VideoCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decoding, "_pool", Mortal)
    skipped = prepared(source, tmp_path, codec, workers=2)
    assert sorted(skipped) == ["1b-cut.mp4", "2.mp4", "2b-text.mp4", "3b-mute.mp4", "4b-short.mp4"]
    assert decoding.CRASHES in (tmp_path / SKIPPED).read_text()
    files = [record["file"] for record in Shards(tmp_path, read_index(tmp_path)).records()]
    assert files == "0.mp4 1.mp4 1.mp4 3.mp4 4.mp4 4.mp4 5.mp4 5.mp4".split()


def test_refused_captions_and_infinite_latents_are_skipped(source: Path, codec: VideoCodec, tmp_path: Path):
    def check(caption: str) -> None:
        if caption == "video 1":
            raise NearstepError("unknown: video; known: all else")

    calls = iter(range(100))

    def encode(video: Tensor) -> Tensor:
        latents = codec.encode(video)
        return latents if next(calls) % 2 else latents + 1e6  # beyond float16

    skipped = prepared(source, tmp_path, codec, encode=encode, check=check, batch=1)
    said = {line["file"]: line["reason"] for line in map(json.loads, (tmp_path / SKIPPED).read_text().splitlines())}
    assert said["1.mp4"] == "its caption: unknown: video" and "not finite in float16" in said["0.mp4"]
    assert len(skipped) == 4 + 1 + 4 and read_index(tmp_path).clips == 4  # of eight clips every other one


def test_a_folder_of_something_else_is_refused(whole: Path, tmp_path: Path):
    with pytest.raises(NearstepError, match=r"fps is 10 there, 12 here.*use another"):
        open_folder(whole, replace(INDEX, fps=12))
    with pytest.raises(NearstepError, match="kind is 'videos' there, 'teacher' here"):
        open_folder(whole, replace(INDEX, made_from={"kind": "teacher"}))
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NearstepError, match="an empty folder"):
        open_folder(tmp_path, INDEX)


def test_shards_have_a_size():
    wan = replace(INDEX, shape=(21, 16, 60, 104))
    assert shard_size(wan) == 64 and shard_size(INDEX) == 512 and shard_size(wan, 3) == 3
    with pytest.raises(NearstepError, match="at least 1"):
        shard_size(wan, 0)


# --- prompts -------------------------------------------------------------------------------------------------------

PROMPTS = [f"prompt {number}" for number in range(7)]


def make(prompts: list[str], numbers: list[int]) -> Tensor:
    assert prompts == [PROMPTS[number] for number in numbers]
    return torch.stack([torch.full(INDEX.shape, float(number)) for number in numbers])


def test_prompts_are_made_in_order_and_resumed(tmp_path: Path):
    def dying(prompts: list[str], numbers: list[int]) -> Tensor:
        if 4 in numbers:
            raise KeyboardInterrupt
        return make(prompts, numbers)

    with pytest.raises(KeyboardInterrupt):
        prepare_prompts(PROMPTS, ShardWriter(tmp_path / "cut", INDEX, 3), dying, batch=2)
    held = open_folder(tmp_path / "cut", INDEX)
    assert held.shards == (3,)
    prepare_prompts(PROMPTS, ShardWriter(tmp_path / "cut", held, 3), make, batch=2)
    prepare_prompts(PROMPTS, ShardWriter(tmp_path / "whole", INDEX, 3), make, batch=2)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    shards = Shards(tmp_path / "cut", read_index(tmp_path / "cut"))
    assert np.array_equal(shards.rows(range(7))[:, 0, 0, 0, 0], range(7))
    with pytest.raises(NearstepError, match="other prompts, from number 2 on"):
        prepare_prompts(["prompt 0", "changed"], ShardWriter(tmp_path / "cut", shards.index, 3), make)


def test_a_teacher_that_diverges_stops_the_work(tmp_path: Path):
    writer = ShardWriter(tmp_path, INDEX, 3)
    with pytest.raises(NearstepError, match="not finite"):
        prepare_prompts(PROMPTS, writer, lambda prompts, numbers: make(prompts, numbers) / 0, batch=2)
    assert read_index(tmp_path).clips == 0
