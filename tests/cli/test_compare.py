"""``nearstep compare`` on the tiny model, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.stream.output import side_by_side

PROMPT = "a small red ball slides left"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_clip_per_plan_beside_each_other_and_a_sheet(model_folder: Path, capsys) -> None:
    assert main(["compare", PROMPT, "--plans", "2", "1", "--seed", "7", "-o", "out", "--model", str(model_folder)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"out/{PROMPT}.mp4", "out/sheet.png"]
    assert "seed 7" in err and "8 at 2" in err and "5 at 1" in err  # 3 chunks: 6 + 2 and 3 + 2
    with av.open(f"out/{PROMPT}.mp4") as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 21
    assert frames[0].width == 2 * 192
    sheet = Image.open("out/sheet.png")
    assert sheet.height > 2 * 96


def test_what_is_there_is_kept_or_refused(model_folder: Path, capsys) -> None:
    asked = ["compare", PROMPT, "--plans", "1", "-o", "out", "--model", str(model_folder)]
    assert main([*asked, "--seed", "7"]) == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert main([*asked, "--seed", "7"]) == main(asked) == 0
    assert capsys.readouterr().err.count("skipped, made by this request already") == 2
    assert main([*asked, "--seed", "8"]) == 2
    assert "(seed 7 there, 8 asked for); --overwrite" in capsys.readouterr().err
    assert main([*asked, "--seed", "7", "--plans", "2"]) == 2
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    Path("out/sheet.png").unlink()
    assert main(asked) == 2
    assert "sheet.png is missing beside others" in capsys.readouterr().err
    assert main([*asked, "--seed", "7"]) == 0
    assert Path("out/sheet.png").is_file()
    assert main([*asked, "--seed", "8", "--overwrite"]) == 0


def test_options_are_those_of_generate(model_folder: Path, capsys) -> None:
    adapter = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 32),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(32, 2),
    }
    save_file(adapter, "l.safetensors")
    model, lora = ["--model", str(model_folder), "--seed", "7", "--frames", "5"], ["--lora", "l.safetensors:0.5"]
    assert main(["compare", PROMPT, "--plans", "1", "-o", "plain", *model]) == 0
    assert main(["compare", PROMPT, "--plans", "1", "-o", "out", *model, *lora]) == 0
    assert main(["compare", PROMPT, "--plans", "1", "-o", "out", *model]) == 2
    assert "loras" in capsys.readouterr().err
    assert Path(f"out/{PROMPT}.mp4").read_bytes() != Path(f"plain/{PROMPT}.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT, PROMPT], "given twice"),
        ([PROMPT, "--plans", "1", "1"], "plan '1' is given twice"),
        ([PROMPT, "--plans", "4,fast"], "4,fast"),
        (["a flying horse"], "flying"),
        ([" "], "a prompt is empty"),
        ([PROMPT, "--plans", ""], "plan '' does not parse"),
        ([PROMPT, "-o", "x/y.mp4"], "whose name has no suffix"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments, message: str, model_folder: Path, capsys) -> None:
    assert main(["compare", "-o", "out", *arguments, "--model", str(model_folder)]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_side_by_side_keeps_every_pixel() -> None:
    clips = list(torch.rand(2, 3, 3, 8, 8))
    video = side_by_side(clips, ["a", "b"], width=16)
    assert video.shape[-1] == 2 * 16
    for column, clip in enumerate(clips):
        shown = video[..., -16::2, 16 * column : 16 * (column + 1) : 2]
        assert torch.equal(shown, clip)
    with pytest.raises(NearstepError, match="1 labels for 2"):
        side_by_side(clips, ["a"])
