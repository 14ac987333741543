"""``nearstep vbench`` killed with SIGKILL while it samples and while it scores: it goes on, to the same table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vbench_files import write_info

from nearstep.cli.main import main
from nearstep.sampling.folder import read_records
from nearstep.stream.output import read_comment

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt_en": f"a toilet {place}", "dimension": ["temporal_flickering"]} for place in range(6)]
SCORER = """
import json, os, signal, sys, time
listing, output, marker = sys.argv[1:]
if not os.path.exists(marker):
    open(marker, "w").close()
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
names = [os.path.basename(line.strip()) for line in open(listing)]
json.dump({name: len(name) + int(name[-5]) for name in names}, open(output, "w"))
"""
"""Gives a value to each video; the first time it kills the command that runs it."""


def started(*arguments: str) -> subprocess.Popen:
    source = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nearstep.cli.main", *arguments]
    return subprocess.Popen(command, env=source, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_at(count: int, videos: Path, *arguments: str) -> None:
    """Run a command until there are so many videos, and kill it."""
    process = started(*arguments)
    while process.poll() is None and len([*videos.glob("[!.]*.mp4")]) < count:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_while_sampling_and_scoring_it_goes_on_to_the_same_table(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_info(tmp_path, ROWS)
    Path("words.txt").write_text("a small red ball\n" * 5 + "a large blue football\n")
    Path("scorer.py").write_text(SCORER)
    asked = ["vbench", "sample", "--info", ".", "--rewritten", "words.txt", "--model", str(model_folder)]
    asked += ["--plan", "4", "--flickering", "5", "--device", "cpu", "-o"]
    command = f"{sys.executable} scorer.py {{list}} {{output}} marker"
    scoring = [["vbench", "score"], ["vbench", "score", "--command", command, "--name", "reward"]]
    for count in (3, 11):
        killed_at(count, Path("set/videos"), *asked, "set")
    assert main([*asked, "set"]) == 0
    cut = {path.name: read_comment(path) for path in Path("set/videos").iterdir()}
    digests = {name: record.digest for name, record in read_records(Path("set")).items()}
    process = started(*scoring[1], "set")
    assert process.wait() == -signal.SIGKILL and not [*Path("set/scores").glob("reward*")]
    tables: list[str] = []
    for _ in range(2):  # the second time nothing was killed
        for score in scoring:
            assert main([*score, "set"]) == 0
        capsys.readouterr()
        assert main(["vbench", "table", "set", "--allow-missing"]) == 0
        tables.append(capsys.readouterr().out)
        Path("set").rename("cut" if len(tables) == 1 else "whole")
        if len(tables) == 1:
            assert main([*asked, "set"]) == 0
    whole = {path.name: read_comment(path) for path in Path("whole/videos").iterdir()}
    assert whole == cut and len(whole) == 30
    again = {name: record.digest for name, record in read_records(Path("whole")).items()}
    assert digests.items() <= again.items() and len(again) - len(digests) <= 2  # a line may be lost with its process
    first, second = (re.split(r"(-?\d+\.\d+)", table) for table in tables)
    assert first[::2] == second[::2]  # all but the numbers, which an encoder may move a little
    assert [*map(float, first[1::2])] == pytest.approx([*map(float, second[1::2])], abs=0.1)
    assert "reward" in tables[0] and "1/16" in tables[0]
