"""``nearstep calibrate``, as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.models.folder import INDEX, ModelFolder


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.txt"
    file.write_text("a small red ball slides left on snow\nthe large blue football bounces\n")
    return str(file)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_thresholds_go_into_the_folder_and_nothing_else_changes(
    folder: Path, prompts: str, tmp_path: Path, capsys
) -> None:
    before = json.loads((folder / INDEX).read_text())
    assert main(["calibrate", str(folder), "--prompts-file", prompts, "--chunks", "2", "--closeness", ".5"]) == 0
    after = json.loads((folder / INDEX).read_text())
    agreement = after["nearstep"].pop("agreement")
    assert after == before and [len(row) for row in agreement] == [2, 2]
    assert [[*row] for row in ModelFolder.open(folder).settings.agreement] == agreement
    shown = capsys.readouterr().out
    assert "agreement enough" in shown and str(folder / INDEX) in shown
    take = tmp_path / "take.jsonl"
    prompt = "a small red ball slides left on snow"
    video = ["-o", str(tmp_path / "a.mp4"), "--chunks", "1", "--log", str(take)]
    assert main(["stream", prompt, "--plan", "adaptive", "--model", str(folder), *video]) == 0
    first = json.loads(take.read_text().splitlines()[1])
    assert len(first["times"]) in (1, 2, 3)


def test_a_model_that_is_no_folder_is_left_alone(prompts: str, capsys) -> None:
    assert main(["calibrate", "playground", "--chunks", "1", "--prompts-file", prompts, "--captions", "1"]) == 0
    assert "nothing is written" in capsys.readouterr().out


def test_a_folder_in_the_way_is_not_the_embedded_model(prompts: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "playground").mkdir()
    monkeypatch.chdir(tmp_path)
    index = ModelFolder.open("playground").path / INDEX
    before = index.read_bytes()
    assert main(["calibrate", "playground", "--chunks", "1", "--prompts-file", prompts, "--captions", "1"]) == 0
    assert "nothing is written" in capsys.readouterr().out and index.read_bytes() == before
    asked = ["--plans", "none", "--out", str(tmp_path / "found.json")]
    assert main(["evaluate", "playground", *asked]) == 2
    assert "none" in capsys.readouterr().err  # the plan, and not the folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--closeness", "1.5"], "a cosine between 0 and 1"),
        (["--captions", "0"], "--captions=0; give at least 1"),
        (["--prompts-file", "none.txt"], "none.txt"),
        (["--network", "teacher"], "is not causal"),
        ([], "the model does not know the words"),  # of the playground's captions
    ],
)
def test_misuse_is_one_clear_line(arguments: list[str], said: str, folder: Path, capsys) -> None:
    before = (folder / INDEX).read_text()
    assert main(["calibrate", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (folder / INDEX).read_text() == before
