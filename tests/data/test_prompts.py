"""Prompt files: three formats, one reader, one order."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearstep.data.prompts import Prompts, read_prompts
from nearstep.errors import NearstepError

FILES = {
    "plain.txt": "\ufeffa red ball\n\n  #cat, on snow \r\nein Bär\n",
    "strings.jsonl": '"a red ball"\n"#cat, on snow"\n\n"ein Bär"\n',
    "objects.jsonl": '{"text": "a red ball", "id": 1}\n{"text": "#cat, on snow"}\n{"text": "ein Bär"}',
    "table.csv": 'id,prompt\n1,a red ball\n2,"#cat, on snow"\n3,\n4,ein Bär\n',
    "plain": "a red ball\n#cat, on snow\nein Bär",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_says_the_same(name: str, tmp_path: Path):
    file = tmp_path / name
    file.write_text(FILES[name], encoding="utf-8")
    assert read_prompts([file]).texts == ("a red ball", "#cat, on snow", "ein Bär")


def test_several_files_are_joined_and_repeats_are_named(tmp_path: Path):
    one, two = tmp_path / "one.txt", tmp_path / "two.csv"
    one.write_text("a\nb\na\n")
    two.write_text("words,caption\nx,c\ny,b\n")
    found = read_prompts([one, two])
    assert (found.texts, found.repeated) == (("a", "b", "c"), ("a", "b"))
    assert read_prompts([two], column="words").texts == ("x", "y")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"good\nb\xe4d\n", r"not a text file in UTF-8 \(line 2\)"),
        ("a.pdf", b"x", "ends in .txt, .jsonl, .csv, .tsv, .json, not .pdf"),
        ("a.jsonl", b'"good"\n{"caption": ', "line 2 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 holds a list"),
        ("a.jsonl", b'{"name": "x"}', "line 1: no column caption or text or prompt or cap; it has name"),
        ("a.jsonl", b'{"caption": 3}', "caption is 3, not a text"),
        ("a.csv", b"id,words\n1,x\n", "line 2: no column caption"),
        ("a.csv", b"id,caption\n1,a ball, red\n", "line 2 has more cells"),
        ("a.csv", b'id,caption\n1,"a ball\n', "is not CSV"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_line(name: str, content: bytes, said: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NearstepError, match=said):
        read_prompts([tmp_path / name])


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(NearstepError, match=r"cannot read .*none.txt"):
        read_prompts([tmp_path / "none.txt"])


def test_the_order_is_a_function_of_how_many_were_seen():
    prompts = Prompts(texts=tuple(map(str, range(7))))
    whole = prompts.batch(0, 21, seed=3)
    assert [prompts.batch(first, 3, seed=3) for first in (0, 9, 18)] == [whole[0:3], whole[9:12], whole[18:21]]
    epochs = [whole[:7], whole[7:14], whole[14:]]
    assert all(sorted(epoch) == list(prompts.texts) for epoch in epochs)
    assert epochs[0] != epochs[1] and whole != prompts.batch(0, 21, seed=4)
