"""``nearstep compare`` on the tiny model, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([PROMPT, PROMPT], "given twice"),
        ([PROMPT, "--plans", "1", "1"], "plan '1' is given twice"),
        ([PROMPT, "--plans", "4,fast"], "4,fast"),
        (["a flying horse"], "flying"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(arguments, message: str, model_folder: Path, capsys) -> None:
    assert main(["compare", *arguments, "-o", "out", "--model", str(model_folder)]) == 2
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
