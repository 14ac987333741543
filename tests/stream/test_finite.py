"""NaN, infinity and absurd numbers are one line where they first show, and nothing is written."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearstep.cli.main import main
from nearstep.data.videos import ClipSize
from nearstep.errors import NearstepError
from nearstep.flow.plan import make_plan, parse
from nearstep.stream.output import write_video
from nearstep.stream.pipeline import CausalVideoPipeline

PROMPT = "a small red ball slides left"


@pytest.fixture
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def spoil(module: torch.nn.Module, name: str, value: float) -> None:
    with torch.no_grad():
        module.get_parameter(name).flatten()[0] = value


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize(
    ("part", "name", "said"),
    [
        ("transformer", "blocks.1.attn1.to_out.0.bias", "latents of chunk 0"),
        ("transformer", "proj_out.weight", "latents of chunk 0"),
        ("text_encoder", "encoder.final_layer_norm.weight", "text encoder's features"),
        ("vae", "decoder.conv_in.bias", "pixels"),
    ],
)
def test_weights_that_are_not_finite_make_no_clip(pipe, part: str, name: str, said: str, value: float) -> None:
    spoil(pipe.components[part], name, value)
    for output in ("np", "latent") if part != "vae" else ("np",):
        with pytest.raises(NearstepError, match=said):
            pipe(PROMPT, "1", seed=1, output_type=output)
    with pytest.raises(NearstepError, match=said):
        list(pipe.stream(PROMPT, "1", seed=1))
    with pytest.raises(NearstepError, match="finite"), pipe.open(PROMPT, "1", seed=1) as session:
        next(session)


def test_commands_write_nothing_of_such_weights(pipe, model_folder: Path, capsys) -> None:
    spoil(pipe.transformer, "blocks.0.ffn.net.2.bias", nan)
    pipe.save_pretrained("broken")
    calls = [
        ["generate", PROMPT, "--plan", "1", "-o", "out/a.mp4"],
        ["stream", PROMPT, "--plan", "1", "--chunks", "2", "-o", "out/b.mp4"],
        ["compare", PROMPT, "--plans", "1", "-o", "out"],
        ["bench", "broken", "--plans", "1", "--repeats", "1", "--json", "out/c.json"],
    ]
    for command, *rest in calls:
        model = () if command == "bench" else ("--model", "broken")
        assert main([command, *rest, *model]) == 2
        assert "not finite" in capsys.readouterr().err
    prompts = Path("prompts.txt")
    prompts.write_text(PROMPT)
    with pytest.raises(NearstepError, match=r"broken/transformer: blocks.0.ffn.net.2.bias holds NaN"):
        CausalVideoPipeline.from_pretrained("broken")
    index = Path("broken/model_index.json").read_bytes()
    assert main(["calibrate", "broken", "--chunks", "1", "--prompts-file", "prompts.txt"]) == 2
    assert "not finite" in capsys.readouterr().err and Path("broken/model_index.json").read_bytes() == index
    assert not [path for path in Path("out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("weight", [nan, inf, -1.0, 1e30])
def test_guidance_is_a_number_that_a_clip_can_be_made_with(pipe, weight: float, model_folder: Path, capsys) -> None:
    with pytest.raises(NearstepError, match="from 1, which is none, to 1000"):
        pipe(PROMPT, guidance_scale=weight)
    given = f"--guidance={weight}"
    for call in (["generate", PROMPT, "-o", "a.mp4"], ["bench"], ["evaluate"], ["prepare", "p.txt", "l"]):
        assert main([*call, given]) == 2
        assert "from 1, which is none, to 1000" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_features_that_were_damaged_on_disk_are_made_again(pipe, model_folder: Path) -> None:
    cached = CausalVideoPipeline.from_pretrained(model_folder, text_cache="cache")
    whole = pipe(PROMPT, "1", seed=1, output_type="pt").frames
    assert torch.equal(cached(PROMPT, "1", seed=1, output_type="pt").frames, whole)
    (entry,) = Path("cache").rglob("*.safetensors")
    features = load_file(entry)["features"]
    spoiled = features.clone()
    spoiled[0, 0] = nan
    save_file({"features": spoiled}, entry)
    with pytest.warns(UserWarning, match="NaN or infinity"):
        assert torch.equal(cached(PROMPT, "1", seed=1, output_type="pt").frames, whole)
    flipped = bytearray(entry.read_bytes())
    flipped[-2] ^= 1
    entry.write_bytes(flipped)
    with pytest.warns(UserWarning, match="not those that were written"):
        assert torch.equal(cached(PROMPT, "1", seed=1, output_type="pt").frames, whole)
    assert torch.equal(load_file(entry)["features"], features)


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp", "png"])
def test_a_video_that_is_not_finite_is_not_written(value: float, suffix: str) -> None:
    clip = torch.rand(2, 3, 16, 16)
    clip[1, 0, 3, 3] = value
    with pytest.raises(NearstepError, match="not finite"):
        write_video(f"a.{suffix}", clip, fps=12)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("text", ["9999999999", "1001", "1" * 5000, "4," + "9" * 30 + "x", "1,1x," * 3000, "fps:1001"])
def test_absurd_plans_are_refused_by_their_text_alone(text: str) -> None:
    with pytest.raises(NearstepError) as error:
        parse(text)
    assert len(str(error.value)) < 400
    assert parse("1000") == ((1000,), True) and parse("0004") == ((4,), True)


@pytest.mark.parametrize("value", [dict(chunk_frames=0), dict(shift=0.0), dict(shift=nan), dict(grid=0)])
def test_a_plan_has_a_grid_a_shift_and_frames(value: dict) -> None:
    with pytest.raises(NearstepError):
        make_plan("4", **{"frames": 6, "chunk_frames": 2, "shift": 5.0, **value})


def test_absurd_sizes_are_refused_before_memory_is_touched(pipe, capsys) -> None:
    for asked in (dict(height=16_384, width=16_384, num_frames=401), dict(height=12_800, width=16_384, num_frames=801)):
        with pytest.raises(NearstepError, match="GiB"):
            pipe(PROMPT, **asked)
    with pytest.raises(NearstepError, match="positions for"):
        pipe(PROMPT, height=1_600_000)
    for asked in (dict(window=10**9), dict(sink=10**9)):
        with pytest.raises(NearstepError, match="positions for"):
            pipe.open(PROMPT, **asked)
    with pytest.raises(NearstepError, match="undo_depth=-1"):
        pipe.open(PROMPT, undo_depth=-1)
    assert main(["generate", PROMPT, "--samples", "1000000000", "-o", "s/"]) == 2
    assert "100,000 clips at most" in capsys.readouterr().err
    for fps in (0.0, nan, inf):
        with pytest.raises(NearstepError, match="fps="):
            ClipSize(frames=5, height=16, width=16, fps=fps)
