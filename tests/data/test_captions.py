"""Captions as other programs write them are found, whatever they call file, column and encoding; the rest is named."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from nearstep.data.captions import Named
from nearstep.data.prompts import read_prompts
from nearstep.data.videos import list_videos
from nearstep.errors import NearstepError

TEXT = "a red ball, sliding"
ROWS = (("a.mp4", TEXT), ("sub/b.mp4", "ein Bär"))


def found(folder: Path) -> dict[str, str]:
    return {video.name: video.caption for video in list_videos(folder)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name, _ in ROWS:
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


def separated(separator: str, *head: str) -> Callable[[Path], str]:
    def write(_: Path) -> str:
        quoted = [[name, f'"{text}"'] for name, text in ROWS]
        return "\n".join(separator.join(row) for row in (head, *quoted)) + "\n"

    return write


def renamed(change: Callable[[str], str]) -> Callable[[Path], str]:
    return lambda _: "file_name\tcaption\n" + "".join(f"{change(name)}\t{text}\n" for name, text in ROWS)


TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "commas": ("metadata.csv", separated(",", "file_name", "caption")),
    "spaces behind them": ("metadata.csv", separated(", ", "file_name", "caption")),
    "semicolons": ("metadata.csv", separated(";", "file_name", "caption")),
    "tabs": ("metadata.csv", separated("\t", "file_name", "caption")),
    "a .tsv": ("metadata.tsv", separated("\t", "file_name", "caption")),
    "capitals": ("captions.csv", separated(",", "File_Name", " Caption ")),
    "video_path, text": ("metadata.csv", separated(",", "video_path", "text")),
    "from the root": ("metadata.tsv", lambda folder: renamed(lambda name: str(folder / name))(folder)),
    "with the folder": ("metadata.tsv", renamed(lambda name: f"videos/{name}")),
    "without suffix": ("metadata.tsv", renamed(lambda name: name.removesuffix(".mp4"))),
    "suffix in capitals": ("metadata.tsv", renamed(lambda name: name.replace("mp4", "MP4"))),
    "backslashes": ("metadata.tsv", renamed(lambda name: name.replace("/", "\\"))),
    "JSON list": ("metadata.json", lambda _: json.dumps([{"video": n, "prompt": t} for n, t in ROWS])),
    "JSON list inside": (
        "captions.json",
        lambda _: json.dumps({"n": 2, "data": [{"file": n, "text": t} for n, t in ROWS]}),
    ),
    "caption in a list": ("videos2caption.json", lambda _: json.dumps([{"path": n, "cap": [t]} for n, t in ROWS])),
}


@pytest.mark.parametrize(("name", "write"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_tables_of_other_programs_are_read(folder: Path, name: str, write: Callable[[Path], str], encoding: str):
    (folder / name).write_text(write(folder), encoding=encoding)
    assert found(folder) == dict(ROWS)


def test_accents_composed_or_not_name_one_file(folder: Path):
    (folder / unicodedata.normalize("NFC", "ä.mp4")).touch()
    (folder / "metadata.csv").write_text(f"file_name,caption\n{unicodedata.normalize('NFD', 'ä.mp4')},x\n")
    assert found(folder)[unicodedata.normalize("NFC", "ä.mp4")] == "x"


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.cap", "a.mp4.txt", "a.mp4.caption"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_beside_videos_are_found(folder: Path, name: str, encoding: str):
    (folder / name).write_text(f"{TEXT}\r\n", encoding=encoding)
    assert found(folder) == {"a.mp4": TEXT, "sub/b.mp4": ""}


@pytest.mark.parametrize("written", [b"the ball\x92s red", "é".encode("latin-1"), "红球".encode("gbk"), b"a\0b"])
def test_a_text_in_another_encoding_costs_its_video_alone(folder: Path, written: bytes):
    (folder / "a.txt").write_bytes(written)
    (folder / "sub" / "b.txt").write_text(TEXT)
    first, second = list_videos(folder)
    assert "a.txt is not a text file" in first.fault and not first.caption
    assert second.caption == TEXT and not second.fault


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.mp4", "a.mp4"),
        ("./a.mp4", "a.mp4"),
        ("x/y/a.mp4", "a.mp4"),
        ("b.mp4", "b.mp4"),  # which of the two is not said
        ("1/b", "1/b.mp4"),
        ("c.webm", "c.webm"),
        ("../a.mp4", None),
        ("/a.mp4", None),
        ("a\0.mp4", None),
        ("", None),
    ],
)
def test_a_name_means_one_file_or_itself_and_never_one_outside(name: str, meant: str | None):
    assert Named(Path("videos"), ["a.mp4", "1/b.mp4", "2/b.mp4"]).find(name) == meant


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", json.dumps(["one", "two"])),
        ("p.json", json.dumps({"prompts": [{"prompt": "one"}, {"Prompt": "two"}]})),
        ("p.tsv", "id\tprompt\n1\tone\n2\ttwo\n"),
        ("p.csv", "id;prompt\n1;one\n2;two\n"),
    ],
)
def test_prompts_stand_in_the_same_tables(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content, encoding="utf-16")
    assert read_prompts([tmp_path / name]).texts == ("one", "two")


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '{"a": 1}', "[1]", '[{"x": 1}]', "[NaN]"])
def test_json_that_is_no_table_is_refused(tmp_path: Path, content: str):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(NearstepError, match=r"p\.json"):
        read_prompts([tmp_path / "p.json"])
