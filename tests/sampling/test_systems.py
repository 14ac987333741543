"""Each system through the one loop: ours, diffusers' pipelines as the libraries build and write them, any program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import MAKERS
from tiny import PROMPT

from nearstep.cli.main import main
from nearstep.data.videos import read_frames
from nearstep.models.wan import to_official
from nearstep.nets.transformer import VideoTransformer
from nearstep.sampling.command import Command
from nearstep.sampling.filming import film
from nearstep.sampling.folder import read_records, took
from nearstep.sampling.pipelines import Pipeline
from nearstep.sampling.target import Target
from nearstep.stream.output import pixels, read_comment, write_video

SMALL = dict(height=32, width=32, frames=9, steps=2, guidance=1.0)
OPTIONS = {
    "wan": {"max_sequence_length": 12},
    "skyreels": {"max_sequence_length": 12, "ar_step": 1, "causal_block_size": 1, "fps": 12},
    "anyflow": {"max_sequence_length": 12},
    "ltx": {"max_sequence_length": 12},
}
CALLS = {"wan": 2, "skyreels": 4, "anyflow": 5, "ltx": 2}
"""Two steps: at once; one latent frame after the other, each a step behind; of two chunks, one of them committed."""
SECOND = "a large blue football bounces"


def grey(frames: np.ndarray) -> np.ndarray:
    return frames @ np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.mark.parametrize("name", MAKERS)
def test_a_pipeline_makes_named_clips_whose_noise_and_calls_are_known(name: str, folders, tmp_path: Path) -> None:
    system = Pipeline(system=name, model=str(folders[name]), options=tuple(OPTIONS[name].items()), **SMALL)
    system.check()
    targets = [Target(prompt=PROMPT, index=index, path=tmp_path / f"{index}.mp4") for index in (0, 1, 0)]
    clips = list(film(system, targets))
    videos = [each.made.video for each in clips]
    assert videos[0].shape == (9, 3, 32, 32) and torch.equal(videos[0], videos[2])
    assert not torch.equal(videos[0], videos[1])
    assert [each.record.calls for each in clips] == [CALLS[name]] * 3
    # The pipeline itself, called as its authors do, makes the same pictures of what the file says.
    said = read_comment(targets[1].path)
    asked = {key: said[key] for key in system.request}
    draw = torch.Generator().manual_seed(said["generator"])
    again = system.pipe(prompt=said["prompt"], generator=draw, output_type="pt", **asked).frames[0]
    assert torch.equal(again.cpu().float(), videos[1])
    shown, meant = (grey(frames) for frames in (read_frames(targets[1].path, 99), pixels(videos[1])))
    assert np.abs(shown - meant).mean() < 4  # h264 keeps the brightness of noise, and a quarter of its colours


def test_what_a_pipeline_cannot_do_is_said_before_it_is_loaded(folders, tmp_path: Path, capsys) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")

    def sample(*more: str) -> str:
        assert main(["sample", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out"), *more]) == 2
        return capsys.readouterr().err

    wan = str(folders["wan"])
    assert "takes a folder of LTXPipeline" in sample("--system", "ltx", "--model", wan)
    asked = ("--system", "wan", "--model", wan)
    assert "did you mean max_sequence_length?" in sample(*asked, "--option", "max_sequence_lenght=3")
    assert "NAME=VALUE" in sample(*asked, "--option", "steps")
    assert "--plan is about ours" in sample(*asked, "--plan", "4")
    assert "--vae-tile is about a model of ours" in sample(*asked, "--vae-tile", "64")
    assert "needs --model" in sample("--system", "wan")
    assert "--steps is about a system that is not ours" in sample("--steps", "4")
    assert "lacks {seed}" in sample("--system", "command", "--command", "program {prompt} {output}")
    assert "no place {height}" in sample(
        "--system", "command", "--command", "program {prompt} {seed} {output}", "--height", "32"
    )
    assert "divisible by 16" in sample(*asked, "--height", "40", "--width", "32", "--frames", "9")
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_systems_share_prompts_layout_and_records(folders, model_folder: Path, tmp_path: Path, capsys) -> None:
    """A published student, ours at two plans, diffusers' Wan, a program: the same files, and a line about each clip."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n{SECOND}\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, av, numpy as np\ndraw = np.random.default_rng(int(sys.argv[1]))\n"
        "with av.open(sys.argv[2], 'w') as file:\n"
        "    stream = file.add_stream('libx264', rate=8)\n"
        "    stream.width, stream.height, stream.pix_fmt = 32, 32, 'yuv420p'\n"
        "    for _ in range(9):\n"
        "        picture = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)\n"
        "        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))\n"
        "    file.mux(stream.encode())\n"
    )
    own = ["--model", str(model_folder), "--frames", "5"]
    wan = [
        "--system",
        "wan",
        "--model",
        str(folders["wan"]),
        "--steps",
        "2",
        "--guidance",
        "5",
        "--option",
        "max_sequence_length=12",
    ]
    weights = VideoTransformer.from_pretrained(model_folder / "transformer").state_dict()
    torch.save({"generator": to_official(weights)}, tmp_path / "s.pt")
    systems = {
        "causvid": [*own, "--student", f"causvid={tmp_path / 's.pt'}", "--chunk-frames", "2"],
        "four": [*own, "--plan", "4"],
        "one": [*own, "--plan", "1"],
        "wan": [*wan, "--height", "32", "--width", "32", "--frames", "9"],
        "program": ["--system", "command", "--command", f"{sys.executable} {program} {{seed}} {{output}} {{prompt}}"],
    }
    for name, asked in systems.items():
        call = ["sample", str(tmp_path / "prompts.txt"), "--samples", "2", "-o", str(tmp_path / name), *asked]
        assert main(call) == 0
        capsys.readouterr()
        (tmp_path / name / "videos" / f"{PROMPT}-1.mp4").unlink()
        assert main(call) == 0  # goes on
        assert capsys.readouterr().out.splitlines() == [str(tmp_path / name / "videos" / f"{PROMPT}-1.mp4")]
    names = {f"{prompt}-{index}.mp4" for prompt in (PROMPT, SECOND) for index in (0, 1)}
    found = {name: took(tmp_path / name) for name in systems}
    for name in systems:
        folder = tmp_path / name
        assert {path.name for path in (folder / "videos").iterdir()} == names == set(read_records(folder))
        assert json.loads((folder / "sample.json").read_text())["label"] == "prompts.txt, all 2"
        samples = {read_comment(path)["sample"] for path in (folder / "videos").iterdir()}
        assert samples == {0, 1, 25, 26}
    assert {name: each.calls for name, each in found.items()} == {
        "causvid": 3,
        "four": 4,
        "one": 1,
        "wan": 4,
        "program": None,
    }
    assert {name: each.fps for name, each in found.items()} == {
        "causvid": 12,
        "four": 12,
        "one": 12,
        "wan": 16,
        "program": 8,
    }
    assert all(
        (each.seconds or 0) > 0 and each.rate == pytest.approx(each.frames / each.seconds) for each in found.values()
    )


def test_a_clip_of_a_program_keeps_its_pictures(tmp_path: Path) -> None:
    """What it encoded is copied, not encoded again: every decoded number is the same."""
    video = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    write_video(tmp_path / "own.mp4", video, fps=8)
    system = Command(template=f"cp {tmp_path / 'own.mp4'} {{output}}")
    target = Target(prompt=PROMPT, index=3, path=tmp_path / "out" / "clip.mp4")
    (filmed,) = film(system, [target])
    assert (filmed.record.frames, filmed.record.height, filmed.record.width) == (5, 32, 48)
    assert np.array_equal(read_frames(tmp_path / "own.mp4", 9), read_frames(target.path, 9))
    assert read_comment(target.path)["generator"] == system.noise_seed(3)
