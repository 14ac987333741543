"""Where commands run: the fastest device that is here, and one line for any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.models.folder import ModelFolder
from nearstep.nets.devices import find_device
from nearstep.stream.pipeline import CausalVideoPipeline

PROMPT = "a small red ball slides left"
NOT_HERE = ["warp", "", "CPU", "meta", "cpu:1", "cuda:99", "cuda:-1", " cuda", "cuda:", "xpu"]
if not torch.cuda.is_available():
    NOT_HERE.append("cuda")
COMMANDS = {
    "generate": (PROMPT, "-o", "a.mp4"),
    "stream": (PROMPT, "--chunks", "1", "-o", "b.mp4"),
    "compare": (PROMPT, "--plans", "1", "-o", "c/"),
    "bench": (),
    "calibrate": ("playground",),
    "prepare": (".", "latents"),
    "evaluate": ("playground", "--captions", "1"),
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_here_is_one_line_before_a_model_is_opened(command: str, capsys, monkeypatch) -> None:
    opened = []
    monkeypatch.setattr(ModelFolder, "open", lambda *given: opened.append(given))
    for name in NOT_HERE:
        assert main([command, *COMMANDS[command], f"--device={name}"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"nearstep: device {name!r} is not here: use auto") and err.count("\n") == 1
    assert opened == [] and list(Path().iterdir()) == []


@pytest.mark.parametrize("option", ["device", "text_device"])
@pytest.mark.parametrize("name", NOT_HERE)
def test_a_pipeline_says_so_too(option: str, name: str, model_folder: Path) -> None:
    with pytest.raises(NearstepError, match="is not here: use auto"):
        CausalVideoPipeline.from_pretrained(model_folder, **{option: name})


def test_auto_is_the_fastest_that_is_here(model_folder: Path) -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert find_device("auto").type == find_device(torch.device(best)).type == best
    pipe = CausalVideoPipeline.from_pretrained(model_folder, device="auto")
    assert pipe.network_device.type == best
    assert find_device("cpu:0").type == "cpu"
