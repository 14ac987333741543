"""VBench's prompts: read from its file, worded by a list, chosen by dimension or by a draw."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from vbench_files import LONG, TWICE, entries, write_info

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, GROUPS, HEADS, normalised, sums
from nearstep.evaluate.vbench.prompts import mini, of_dimensions, read_prompts
from nearstep.stream.output import safe_name


def test_the_weights_add_up_and_ranges_go_from_0_to_1() -> None:
    assert (len(DIMENSIONS), len(GROUPS)) == (16, 11)
    assert sum(each.part == "quality" for each in DIMENSIONS.values()) == 7
    lows = {name: normalised(name, each.low) for name, each in DIMENSIONS.items()}
    highs = {name: normalised(name, each.high) for name, each in DIMENSIONS.items()}
    assert set(lows.values()) == {0.0} and set(highs.values()) == {1.0}
    assert [sums(lows)[head] for head in HEADS] == [0, 0, 0] and [sums(highs)[head] for head in HEADS] == [1, 1, 1]
    for name, each in DIMENSIONS.items():  # how far one dimension alone moves the total
        share = each.weight * (0.8 / 6.5 if each.part == "quality" else 0.2 / 9)
        assert sums({**lows, name: 1.0})["total"] == pytest.approx(share)


def test_a_json_a_wheel_and_a_folder_hold_the_same_prompts(tmp_path: Path) -> None:
    info = write_info(tmp_path)
    with zipfile.ZipFile(tmp_path / "vbench.whl", "w") as wheel:
        wheel.write(info, "vbench/VBench_full_info.json")
    found = [read_prompts(path) for path in (info, tmp_path, tmp_path / "vbench.whl")]
    assert found[0] == found[1] == found[2] and found[0].label == "standard, all 35"
    assert len(found[0].entries) == 35 and len(found[0].unique) == 34
    assert found[0].videos == 31 * 5 + 3 * 25
    both = next(entry for entry in found[0].unique if entry.prompt == TWICE)
    assert set(both.dimensions) == {name for names in list(GROUPS.values())[-2:] for name in names}


def test_names_are_the_prompts_whatever_they_end_in(tmp_path: Path) -> None:
    found = read_prompts(write_info(tmp_path))
    assert len(LONG.encode()) > 160
    for entry in found.unique:
        assert entry.file_name(24) == f"{entry.prompt}-24.mp4" == safe_name(entry.prompt, "-24.mp4") + "-24.mp4"


def test_rewritten_lines_are_shown_and_standard_prompts_name(tmp_path: Path) -> None:
    info, longer = write_info(tmp_path), tmp_path / "longer.txt"
    longer.write_text("\n".join(f"long words {place}" for place in range(35)))
    found = read_prompts(info, longer)
    assert found.label == "longer.txt, all 35"
    assert [entry.text for entry in found.entries] == [f"long words {place}" for place in range(35)]
    assert found.unique[0].file_name(0) == f"{LONG}-0.mp4"
    twice = next(entry for entry in found.unique if entry.prompt == TWICE)
    assert twice.text == "long words 34" and twice.place == 33  # made twice under one name, the later one stays
    longer.write_text("one line")
    with pytest.raises(NearstepError, match="has 1 lines for 35 entries"):
        read_prompts(info, longer)
    longer.write_text("\n".join(["words", "", *["words"] * 33]))
    with pytest.raises(NearstepError, match="line 2 is empty"):
        read_prompts(info, longer)


def test_a_subset_by_dimension_brings_its_group(tmp_path: Path) -> None:
    found = read_prompts(write_info(tmp_path))
    scene = of_dimensions(found, ["background consistency"])
    assert {entry.dimensions for entry in scene.entries} == {GROUPS["scene"]}
    assert scene.subset == "3 entries of background_consistency"
    with pytest.raises(NearstepError, match="no dimension 'colour'"):
        of_dimensions(found, ["colour"])


def test_a_mini_set_has_every_group_in_its_share_and_grows(tmp_path: Path) -> None:
    found = read_prompts(write_info(tmp_path, entries(20)))
    some, more = mini(found, 44), mini(found, 88)
    assert some.subset == "mini: 44 of 221 prompts, seed 0" and some.label.startswith("standard, mini")
    assert {entry.prompt for entry in some.entries} < {entry.prompt for entry in more.entries}
    for names in GROUPS.values():
        assert 3 <= sum(names[0] in entry.dimensions for entry in some.entries) <= 5
    assert mini(found, 44, seed=1).entries != some.entries == mini(found, 44).entries
    assert mini(found, 221).entries == found.entries
    with pytest.raises(NearstepError, match="--mini 10: at least 11"):
        mini(found, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [("nothing", "is not JSON"), ("[]", "holds no list"), ('[{"prompt_en": "a"}]', "entry 0 has no prompt_en")],
)
def test_another_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "info.json").write_text(text)
    with pytest.raises(NearstepError, match=said):
        read_prompts(tmp_path / "info.json")
    with pytest.raises(NearstepError, match="pip download"):
        read_prompts(tmp_path / "elsewhere.json")


def test_the_command_counts_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = str(write_info(tmp_path))
    assert main(["vbench", "prompts", "--info", info]) == 0
    out = capsys.readouterr().out
    assert "35 entries" in out and "temporal_flickering" in out and out.split()[-2:] == ["34", "230"]
    assert main(["vbench", "prompts", "--info", info, "--names", "--dimensions", "color"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["a color ball 0-0.mp4", "a color ball 0-1.mp4"]
    assert main(["vbench", "prompts", "--info", info, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 34
    assert main(["vbench", "prompt"]) == 2
    assert "did you mean prompts?" in capsys.readouterr().err


def test_the_official_file_has_what_its_authors_say() -> None:
    if find_spec("vbench") is None:
        pytest.skip("the package vbench is not installed beside nearstep, so its own file is not at hand")
    found = read_prompts()
    assert (len(found.entries), len(found.unique)) == (946, 944)
    assert {entry.dimensions for entry in found.entries} == set(GROUPS.values())
