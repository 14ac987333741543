"""``nearstep table``: four formats of one table, pages that are made again, and our own page among them."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import pytest
from vbench_files import write_scores

from nearstep.cli.main import main
from nearstep.cli.table import refreshed
from nearstep.evaluate.table import Table
from nearstep.files import write_json
from nearstep.sampling.filming import Record
from nearstep.sampling.folder import note_record, took

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
ODD = Table(["a name", "5 % \\ & _"], [["x|y", "1.00 ± 0.10"], ['say "a, b"', "<b>"]])


def test_our_results_are_what_is_on_disk() -> None:
    page = ROOT / "docs" / "results.md"
    assert refreshed(page) == page.read_text(encoding="utf-8"), "nearstep table --page docs/results.md"


def test_every_format_holds_every_cell() -> None:
    cells = ODD.lines
    assert [*csv.reader(io.StringIO(ODD.csv()))] == cells
    rows = re.findall(r"<tr>(.*)</tr>", ODD.html())
    assert [[html.unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows] == cells
    head, rule, *rows = str(ODD).splitlines()
    assert rule == "| --- | --- |"
    shown = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in (head, *rows)]
    assert [[cell.replace(r"\|", "|") for cell in line] for line in shown] == cells
    latex = ODD.latex().splitlines()
    assert latex[0] == r"\begin{tabular}{ll}" and latex[-1] == r"\end{tabular}"
    assert latex[2] == r"a name & 5 \% \textbackslash{} \& \_ \\" and latex[4] == r"x|y & 1.00 $\pm$ 0.10 \\"


def test_evaluations_side_by_side(tmp_path: Path, capsys) -> None:
    files = [f"ours={RESULTS}/ablation/asd-0.json", f"theirs={RESULTS}/ablation/self_forcing-0.json"]
    assert main(["table", *files, "--format", "csv", "-o", str(tmp_path / "t.csv")]) == 0
    rows = [*csv.reader((tmp_path / "t.csv").open())]
    assert [row[:3] for row in rows[1:3]] == [["ours", "4", "44"], ["ours", "4,2x", "28"]]
    capsys.readouterr()
    assert main(["table", *files, "--part", "sure"]) == 0
    assert "| 1 | +" in capsys.readouterr().out
    for asked, said in {
        ("--part", "systems"): "is of an ablation",
        ("a=nowhere",): "there is no nowhere",
        (str(RESULTS / "ablation"),): "different kinds",
        (files[0],): "two results are called ours",
    }.items():
        assert main(["table", *files, *asked]) == 2
        assert said in capsys.readouterr().err
    assert main(["table", *files[:1], "--part", "sure"]) == 2 and "of two results" in capsys.readouterr().err


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    """A folder with three clips' costs, the first of which warmed up, and scores of all dimensions."""
    folder = tmp_path / "ours"
    write_scores(folder / "scores", lambda name: 0.5, value=lambda name, prompt, index: 0.4 + 0.05 * prompt)
    write_json(folder / "sample.json", {"plan": "4,1x", "label": "standard, all 944"})
    for index, seconds in enumerate((9.0, 2.0, 2.2)):
        size = {"frames": 81, "height": 480, "width": 832, "fps": 16.0}
        record = Record(name=f"{index}.mp4", sample=index, seconds=seconds, calls=12, digest="0", **size)
        note_record(folder / "clips.jsonl", record)
    return folder


def test_sampled_folders_show_what_a_clip_costs_and_reaches(sampled: Path, capsys) -> None:
    assert main(["table", str(sampled), "--format", "csv"]) == 0
    head, row = csv.reader(io.StringIO(capsys.readouterr().out))
    found = dict(zip(head, row, strict=True))
    assert (found["system"], found["plan"], found["calls"], found["seconds"]) == ("ours", "4,1x", "12", "2.2")
    assert float(found["frames a second, prompt to pixels"]) == pytest.approx(81 / 2.2, rel=0.01)
    assert (found["dimensions"], found["prompts"]) == ("16/16", "standard, all 944")
    assert re.fullmatch(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]", found["total"])
    next((sampled / "scores").glob("color*")).unlink()
    assert main(["table", str(sampled), "--format", "csv"]) == 0
    assert ",-,-,-,15/16," in capsys.readouterr().out  # no sums of fewer dimensions


def test_a_line_that_was_cut_off_is_not_a_clip(sampled: Path) -> None:
    log = sampled / "clips.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-5])
    assert took(sampled).clips == 2
    again = Record(
        name="2.mp4", sample=2, seconds=2.2, calls=12, digest="0", frames=81, height=480, width=832, fps=16.0
    )
    note_record(log, again)
    assert log.read_bytes() == whole
    log.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 says nothing about a clip"):
        took(sampled)


def test_a_page_keeps_all_but_its_tables(tmp_path: Path, sampled: Path, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n<!-- nearstep table ours -->\ntext\n\n<!-- nearstep table ours -->\n\n| old |\n| - |\n\nend\n"
    )
    assert main(["table", "--page", str(page)]) == 0
    once = page.read_text()
    assert once.startswith("# Page\n\n<!-- nearstep table ours -->\n\n| system |") and once.endswith("|\n\nend\n")
    assert "\ntext\n" in once and "old" not in once and once.count("| system |") == 2
    assert main(["table", "--page", str(page)]) == 0 and page.read_text() == once
    for mark, said in {
        "": "names no table",
        '"ours': "No closing quotation",
        "--help": "asks for help",
        "ours -o elsewhere.md": "leave -o, --page and --format out",
        "ours --format csv": "leave -o, --page and --format out",
    }.items():
        page.write_text(f"<!-- nearstep table {mark} -->\n" if mark else "nothing\n")
        before = page.read_text()
        assert main(["table", "--page", str(page)]) == 2 and said in capsys.readouterr().err
        assert page.read_text() == before
    assert not (tmp_path / "elsewhere.md").exists()
