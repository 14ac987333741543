"""``nearstep prepare`` as a user calls it, on real clips and on the tiny model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import nearstep
from nearstep.cli.main import main
from nearstep.data.shards import Shards, read_index
from nearstep.data.videos import ClipSize, read_clips
from nearstep.nets.codec import VideoCodec

NAMES = ("bigbuckbunny", "carphone_pristine")
CAPTIONS = {"bigbuckbunny": "a large ball bounces", "carphone_pristine": "the small red football"}


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_videos: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.mp4").symlink_to(real_videos / f"{name}.mp4")
        (folder / f"{name}.txt").write_text(CAPTIONS[name])
    (folder / "broken.mp4").write_bytes((real_videos / "bikes.mp4").read_bytes()[:9000])
    (folder / "broken.txt").write_text("a ball")
    (folder / "odd.mp4").write_bytes(b"")
    (folder / "odd.txt").write_text("a odd ball")  # a word that the model does not know
    return folder


@pytest.fixture
def prepare(model_folder: Path):
    return lambda *arguments: main(["prepare", *map(str, arguments), "--model", str(model_folder)])


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one - other).square().mean().log10())


def test_real_clips_become_latents_that_decode_to_them(prepare, videos: Path, model_folder: Path, capsys):
    assert prepare("videos", "latents", "--workers", "0", "--clips-per-video", "2") == 0
    err = capsys.readouterr().err
    assert "4 videos, 0 of them done" in err and "4 clips in" in err
    assert "skipped 2 of 4 videos (1 its caption, 1 it cannot be decoded): latents/skipped.jsonl says why" in err
    index = read_index(Path("latents"))
    assert (index.shape, index.fps, index.shards) == ((6, 4, 4, 4), 12, (4,))
    shards, codec = Shards(Path("latents"), index), VideoCodec.from_pretrained(model_folder / "vae").eval()
    size = ClipSize(frames=21, height=32, width=32, fps=12, clips_per_video=2)
    for row, record in enumerate(shards.records()):
        assert record["caption"] == CAPTIONS[record["file"].removesuffix(".mp4")]
        pixels = torch.from_numpy(np.stack(read_clips(videos / record["file"], size))).permute(0, 1, 4, 2, 3) / 255
        with torch.no_grad():
            seen = codec.decode(shards.rows([row]))
            round_trips = codec.decode(codec.encode(pixels)).unsqueeze(1)
        fits = [psnr(seen, trip) for trip in round_trips]
        assert fits[record["clip"]] > 50 > fits[1 - record["clip"]]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(prepare, videos: Path, capsys):
    before = sorted(Path().rglob("*"))
    assert prepare("videos", "latents", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "at most 2 clips of 2 videos, 1.54 kB" in out
    assert "would skip odd.mp4: its caption: the model does not know the word 'odd'" in out
    assert sorted(Path().rglob("*")) == before


def test_a_teacher_s_clips_of_prompts(prepare, model_folder: Path, tmp_path: Path, monkeypatch, capsys):
    from nearstep import CausalVideoPipeline

    monkeypatch.chdir(tmp_path)
    prompts = ["a red ball", "a blue football slides left", "the snow"]
    Path("prompts.jsonl").write_text("\n".join(map(json.dumps, [*prompts, prompts[0]])))
    arguments = ("--from-teacher", "prompts.jsonl", "latents", "--plan", "4", "--guidance", "3", "--seed", "5")
    assert prepare(*arguments, "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "would make 3 clips" in out and "8 network calls a clip" in err and not Path("latents").exists()
    assert prepare(*arguments, "--shard", "2") == 0
    assert "count once (1): 'a red ball'" in capsys.readouterr().err
    index = read_index(Path("latents"))
    assert index.shards == (2, 1) and index.made_from["guidance"] == 3
    pipe = CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher")
    shards = Shards(Path("latents"), index)
    for row, prompt in enumerate(prompts):
        assert shards.records()[row]["caption"] == prompt
        made = pipe(prompt, "4", guidance_scale=3.0, seed=5, samples=[row], output_type="latent").frames
        torch.testing.assert_close(shards.rows([row]), made, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none", "latents"), "is not there; give a folder of videos"),
        (("videos/odd.txt", "latents"), "is a file; give a folder of videos, or prompts with --from-teacher"),
        (("videos", "latents", "--frames", "20"), "num_frames=20 is not 4n+1"),
        (("videos", "latents", "--width", "30"), "width=30 must be a multiple of"),
        (("videos", "latents", "--batch", "0"), "--batch 0"),
        (("videos", "videos"), "name a new or an empty folder"),
        (("videos", "latents", "--fps", "-1"), "fps=-1"),
        (("--from-teacher", "videos/odd.txt", "latents"), "videos/odd.txt, line 1: the model does not know"),
        (("--from-teacher", "videos", "latents"), "cannot read videos"),
        (("--from-teacher", "videos/odd.txt", "latents", "--network", "teach"), "has no teach/"),
        (("--from-teacher", "videos/odd.txt", "latents", "--fps", "8"), "clips have 12 fps"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_before_any_work(prepare, videos: Path, arguments, said: str, capsys):
    assert prepare(*arguments) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not Path("latents").exists()


@pytest.mark.slow
def test_killed_by_the_system_and_started_again(prepare, videos: Path, model_folder: Path):
    """SIGKILL while shards are written; the workers go too, and the same command ends as if nothing had happened."""
    options = ["--clips-per-video", "5", "--shard", "1", "--workers", "2"]
    command = [sys.executable, "-m", "nearstep.cli.main", "prepare", "videos", "cut", *options]
    source = str(Path(nearstep.__file__).parents[1])
    process = subprocess.Popen(
        [*command, "--model", str(model_folder)], env={"PYTHONPATH": source}, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while not Path("cut/00001.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("cut/skipped.jsonl").exists()
    assert prepare("videos", "cut", *options) == prepare("videos", "whole", *options) == 0
    cut, whole = ({path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("cut", "whole"))
    assert cut == whole and len(whole) > 4
    deadline = time.monotonic() + 10
    while (left := workers_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, "workers outlive their parent"


def workers_of(session: int) -> list[str]:
    """Processes of a session, by their number."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plan", "4"], "--plan 4: it needs --from-teacher"),
        (["--guidance", "3"], "--guidance 3.0: it needs --from-teacher"),
        (["--negative", "snow"], "--negative snow: it needs --from-teacher"),
        (["--from-teacher", "--workers", "0"], "--workers 0: it is about videos"),
        (["--from-teacher", "--clips-per-video", "2"], "--clips-per-video 2: it is about videos"),
        (["--workers", "-1"], "--workers -1; at least 0"),
        (["--batch", "0"], "--batch 0; at least 1"),
        (["--fps", "0"], "fps=0.0; give a number above 0"),
        (["--fps", "nan"], "fps=nan; give a number above 0"),
        (["--device", "warp"], "device 'warp' is not here"),
    ],
)
def test_what_would_be_ignored_or_is_absurd_is_refused(
    arguments, said: str, model_folder: Path, tmp_path: Path, capsys
):
    (tmp_path / "videos").mkdir()
    target = tmp_path / "latents"
    assert main(["prepare", str(tmp_path / "videos"), str(target), "--model", str(model_folder), *arguments]) == 2
    assert said in capsys.readouterr().err and not target.exists()
