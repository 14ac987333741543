"""Latents on disk: there and back, read lazily, and never trusted blindly."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nearstep.data import latents as module
from nearstep.data.latents import LatentsConfig, load_latents
from nearstep.data.shards import Index, Shards, ShardWriter, add_shard, read_index, write_index
from nearstep.errors import NearstepError
from nearstep.playground import PLAYGROUND, Playground
from nearstep.playground.captions import caption
from nearstep.playground.world import sample_scenes

INDEX = Index(codec="a codec", shape=(3, 2, 4, 5), dtype="float16", fps=8, made_from={"kind": "videos"})


class Means:
    """A codec of one channel: the mean brightness of every fourth frame."""

    def encode(self, video: Tensor) -> Tensor:
        return video[:, ::4].float().mean((2, 3, 4))[:, :, None, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def stream(self):
        raise NotImplementedError


def filled(folder: Path, count: int, size: int, index: Index = INDEX) -> Tensor:
    """A folder of random clips; returns them."""
    writer = ShardWriter(folder, index, size)
    clips = torch.randn(count, *index.shape).half()
    for number, clip in enumerate(clips):
        writer.add(clip, {"caption": f"clip {number}"})
    writer.flush()
    return clips.float()


def test_clips_come_back_in_any_order(tmp_path: Path):
    clips = filled(tmp_path, 11, 4)
    index = read_index(tmp_path)
    assert index == replace(INDEX, shards=(4, 4, 3))
    shards = Shards(tmp_path, index)
    assert shards.shape == (11, *INDEX.shape)
    rows = [10, 0, 7, 7, 3, 4]
    assert torch.equal(shards.rows(rows), clips[rows])
    assert [record["caption"] for record in shards.records()] == [f"clip {number}" for number in range(11)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_types(dtype: str, tmp_path: Path):
    index = replace(INDEX, dtype=dtype)
    clips = filled(tmp_path, 2, 2, index)
    tolerance = {"bfloat16": 2**-8, "float32": 0.0}[dtype]
    torch.testing.assert_close(
        Shards(tmp_path, read_index(tmp_path)).rows([1, 0]), clips[[1, 0]], rtol=tolerance, atol=0
    )


def test_a_set_may_be_larger_than_memory(tmp_path: Path):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    index = replace(INDEX, shape=(16, 16, 64, 64))
    add_shard(tmp_path, index, torch.ones(64, *index.shape).half(), [{"caption": str(i)} for i in range(64)])
    before = resident()
    clip = Shards(tmp_path, read_index(tmp_path)).rows([63])
    assert float(clip.min()) == 1
    assert resident() - before < 32e6 < (tmp_path / "00000.safetensors").stat().st_size


def test_a_name_that_is_not_utf_8_is_kept_as_json_escapes_it(tmp_path: Path):
    record = {"caption": "a", "file": "caf\udce9.mp4"}
    add_shard(tmp_path, INDEX, torch.zeros(1, *INDEX.shape), [record])
    (line,) = (tmp_path / "00000.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == record


def test_a_shard_that_the_index_does_not_list_does_not_exist(tmp_path: Path):
    clips = filled(tmp_path, 4, 2)
    write_index(tmp_path, replace(INDEX, shards=(2,)))
    assert torch.equal(Shards(tmp_path, read_index(tmp_path)).rows([0, 1]), clips[:2])
    assert load_latents(LatentsConfig(folder=tmp_path), Means(), "a codec").latents.shape[0] == 2


def test_training_reads_every_clip_once_an_epoch_with_its_caption(tmp_path: Path):
    clips = filled(tmp_path, 7, 3)
    data = load_latents(LatentsConfig(folder=tmp_path, seed=5), Means(), "a codec")
    latents, captions = data.batch(0, 14)
    numbers = [int(text.removeprefix("clip ")) for text in captions]
    assert sorted(numbers[:7]) == sorted(numbers[7:]) == list(range(7)) and numbers[:7] != numbers[7:]
    assert torch.equal(latents, clips[numbers])
    later, words = data.batch(9, 3)
    assert torch.equal(later, latents[9:12]) and words == captions[9:12]
    few = load_latents(LatentsConfig(folder=tmp_path, clips=3), Means(), "a codec").batch(0, 3)[1]
    assert sorted(few) == ["clip 0", "clip 1", "clip 2"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def other_shard(path: Path) -> None:
    """One of the same shape, as a folder that was made twice may hold."""
    add_shard(path.parent / "other", INDEX, torch.zeros(2, *INDEX.shape), [{"caption": "one"}] * 2)
    path.write_bytes((path.parent / "other" / path.name).read_bytes())


def edit(path: Path, **fields) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("00001.safetensors", truncate, "no whole shard"),
        ("00001.safetensors", Path.unlink, "is missing"),
        ("00000.jsonl", Path.unlink, "is missing"),
        ("00000.jsonl", lambda path: path.write_text('{"caption": "one"}\n'), "has 1 lines for 2 clips"),
        ("00000.jsonl", lambda path: path.write_text('{"text": "one"}\n' * 2), "is damaged"),
        ("index.json", truncate, "not valid JSON"),
        ("index.json", lambda path: edit(path, version=2), "this nearstep reads version 1"),
        ("index.json", lambda path: edit(path, format="other"), "no index of latents"),
        ("index.json", lambda path: edit(path, dtype="int8"), "is damaged"),
        ("index.json", lambda path: edit(path, dtype="float32"), "is of float16, not of float32 as index.json says"),
        ("00001.safetensors", lambda path: (path.unlink(), os.mkfifo(path)), "no regular file"),
        ("00001.safetensors", lambda path: (path.unlink(), path.mkdir()), "cannot read|no whole shard"),
        ("index.json", lambda path: edit(path, shape=[3, 2, 4, 4]), "as index.json says"),
        ("index.json", lambda path: edit(path, codec="other"), "this model's is a codec"),
        ("index.json", lambda path: edit(path, fps="12"), "its 'fps' is '12', not a finite number above 0"),
        ("index.json", lambda path: edit(path, shards=[4, 3]), "shards and clips do not add up"),
        ("index.json", lambda path: path.write_text("[" * 100_000), "nested without end"),
        ("00000.safetensors", other_shard, "is not the shard that index.json names"),
        ("index.json", Path.unlink, "nearstep prepare"),
    ],
)
def test_damage_is_named_before_training(name: str, damage, said: str, tmp_path: Path):
    filled(tmp_path, 3, 2)
    damage(tmp_path / name)
    with pytest.raises(NearstepError, match=said):
        load_latents(LatentsConfig(folder=tmp_path), Means(), "a codec")


def test_more_clips_than_there_are(tmp_path: Path):
    filled(tmp_path, 3, 2)
    with pytest.raises(NearstepError, match="holds 3 clips, not 4; latents.clips=None takes all"):
        load_latents(LatentsConfig(folder=tmp_path, clips=4), Means(), "a codec")


# --- a world -------------------------------------------------------------------------------------------------------


def made_here(folder: Path, **changes) -> LatentsConfig:
    return LatentsConfig(folder=folder, world=PLAYGROUND, **changes)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 4)


@pytest.mark.usefixtures("small_shards")
def test_a_world_is_encoded_extended_and_worded_anew(tmp_path: Path):
    few = load_latents(made_here(tmp_path, clips=3), Means(), "means")
    assert few.latents.shape[0] == 4 and few.count == 3
    first = (tmp_path / "00000.safetensors").stat().st_mtime_ns
    data = load_latents(made_here(tmp_path, clips=6), Means(), "means")
    assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == first
    index = read_index(tmp_path)
    assert index.shards == (4, 4) and index.fps == PLAYGROUND.fps

    latents, captions = data.batch(0, 12)
    scenes = sample_scenes(PLAYGROUND.config, 0, range(6))
    expected = Means().encode(PLAYGROUND.clips(0, range(6)))
    for place, (clip, text) in enumerate(zip(latents, captions, strict=True)):
        row = int((expected - clip).abs().amax((1, 2, 3, 4)).argmin())
        torch.testing.assert_close(clip, expected[row], atol=4e-3, rtol=0)
        assert text == caption(scenes[row], seed=place // 6, index=row, complete=False)


@pytest.mark.usefixtures("small_shards")
def test_clips_of_the_playground_may_be_longer_and_keep_to_their_folder(tmp_path: Path):
    long = load_latents(made_here(tmp_path, clips=4, frames=45), Means(), "means")
    expected = Means().encode(PLAYGROUND.clips(0, range(4), frames=45))
    assert long.shape == tuple(expected.shape[1:]) and long.shape[0] == 12
    torch.testing.assert_close(long.latents.rows(range(4)), expected, atol=4e-3, rtol=0)
    with pytest.raises(NearstepError, match=r"shape is \(12, .*use another latents folder"):
        load_latents(made_here(tmp_path, clips=8), Means(), "means")
    with pytest.raises(NearstepError, match="use 41 or 45"):
        made_here(tmp_path, frames=44)


@dataclass(frozen=True)
class Other(Playground):
    """The same clips under another name."""

    @property
    def name(self) -> str:
        return "other"


@pytest.mark.usefixtures("small_shards")
def test_a_folder_belongs_to_its_world(tmp_path: Path):
    config = made_here(tmp_path, clips=4)
    load_latents(config, Means(), "means")
    with pytest.raises(NearstepError, match="kind is 'playground' there, 'other' here"):
        load_latents(replace(config, world=Other()), Means(), "means")
    with pytest.raises(NearstepError, match=r"clips of the world 'playground'.*set latents.world"):
        load_latents(replace(config, world=None), Means(), "means")


def test_numbers_that_are_not_those_that_were_written_are_not_read(tmp_path: Path):
    clips = filled(tmp_path, 4, 2)
    file = tmp_path / "00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # of the last clip
    file.write_bytes(data)
    shards = Shards(tmp_path, read_index(tmp_path))
    assert torch.equal(shards.rows([0, 1, 2]), clips[:3])
    with pytest.raises(NearstepError, match=r"00001.safetensors, clip 1: its numbers are not those that were written"):
        shards.rows([3])


def test_shards_that_were_written_without_checksums_are_read_and_go_on(tmp_path: Path):
    clips = filled(tmp_path, 2, 2)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["sums"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    more = add_shard(tmp_path, read_index(tmp_path), clips[:1], [{"caption": "more"}])
    assert more.sums[0] == "" and more.sums[1]
    assert torch.equal(Shards(tmp_path, read_index(tmp_path)).rows([1, 2]), clips[[1, 0]])
