"""What is wrong with a command line is one line that names the option and what it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nearstep.cli.arguments import parsed
from nearstep.cli.main import main
from nearstep.cli.stream import Stream
from nearstep.errors import NearstepError

LONG = "/" + "a" * 200
WRONG = (
    ("generate --plam 4 x", "there is no option --plam: did you mean --plan? (nearstep generate --help)"),
    ("generate x --no-overwrite", "there is no option --no-overwrite: did you mean --overwrite?"),
    ("generate -x", "there is no option -x (nearstep generate --help)"),
    ("info a b", "'b' is one argument too many (nearstep info --help)"),
    ("generate x --seed abc", "--seed 'abc': give a whole number"),
    (f"generate x --frames {LONG}", f"--frames '{LONG}': give a whole number"),
    ("generate x --guidance much", "--guidance 'much': give a number"),
    ("generate x --format avi", "--format 'avi': one of gif, mp4, png, webp"),
    ("generate x --height", "--height needs 1 value"),
    ("stream x --at 1", "--at needs 2 values"),
    ("stream x", "give --output"),
    ("convert", "give SRC and DST"),
    ("calibrate --model", "--model needs 1 value"),
    ("train playground.codec --loop.steps x", "--loop.steps 'x': give a whole number"),
    ("train playground.codec --kl x", "--kl 'x': give a number"),
    ("train playground.codec --loop.foldr x", "there is no option --loop.foldr: did you mean --loop.folder?"),
    ("train playground.codec --kl -1", "kl=-1.0; give a number at least 0"),
    ("train playground.codec --size.dim-mult a", "--size.dim-mult 'a': give [INT [INT ...]]"),
    ("report", "give RUN"),
    ("serve --port", "--port needs 1 value"),
    ("generate x --lora", "--lora needs 1 value (nearstep generate --help)"),
    ("stream x -o a.mp4 --lora --seed 3", "--lora needs 1 value"),
    ("train playground.codec --size.temperal-downsample --kl 0", "--size.temperal-downsample needs 1 value"),
    ("train playground.codec --size.dim-mult --kl 0", "size: dim_mult is empty; give the factor"),
)


@pytest.mark.parametrize(("line", "said"), WRONG, ids=[line[:40] for line, _ in WRONG])
def test_a_wrong_option_is_one_line(line: str, said: str, capsys) -> None:
    assert main(line.split()) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"nearstep: {said}")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_line_is_the_same_in_every_encoding(encoding: str) -> None:
    """The parser draws its box in other signs where it has no others."""
    line = [sys.executable, "-m", "nearstep.cli.main", "generate", "x", "--format", "a" * 90]
    ended = subprocess.run(line, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert ended.returncode == 2
    said = ended.stderr.decode()
    assert said == f"nearstep: --format '{'a' * 90}': one of gif, mp4, png, webp (nearstep generate --help)\n"


def test_help_is_the_parsers(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report", "--help"])
    assert not end.value.code
    assert "Folder of the run" in capsys.readouterr().out


def test_a_home_is_found_behind_an_equals_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = parsed(Stream, "nearstep stream", ["x", "-o=~/a.mp4", "--log=~/b.jsonl", "--tiny-decoder=~/c"])
    assert (asked.output, asked.log) == (tmp_path / "a.mp4", tmp_path / "b.jsonl")
    assert asked.loading.tiny_decoder == tmp_path / "c"
    with pytest.raises(NearstepError, match="nobody-at-all"):
        parsed(Stream, "nearstep stream", ["x", "-o=~nobody-at-all/a.mp4"])
