"""VBench's sums: closed forms, and what is missing, stale, outside or without intervals is said."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from vbench_files import write_scores

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.aggregate import draw, paired
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, GROUPS, normalised
from nearstep.evaluate.vbench.results import read_system
from nearstep.evaluate.vbench.tables import vbench_table


def halfway(name: str) -> float:
    each = DIMENSIONS[name]
    return (each.low + each.high) / 2


def test_scores_halfway_of_every_range_are_50_points(tmp_path: Path) -> None:
    write_scores(tmp_path, halfway)
    heads = draw(read_system(tmp_path).scores).heads()
    for estimate in heads.values():
        assert estimate.value == pytest.approx(0.5) and estimate.interval is not None
        assert estimate.interval.low == pytest.approx(0.5) == estimate.interval.high  # all prompts are alike


def test_the_interval_of_a_dimension_is_that_of_a_mean_over_prompts(tmp_path: Path) -> None:
    # Prompts score 0 and 1 in turn: the mean over N of them has deviation 1 / (2 sqrt N), not over the 5 N videos.
    write_scores(tmp_path, halfway, prompts=64, value=lambda _, prompt, __: prompt % 2)
    interval = draw(read_system(tmp_path).scores).dimension("color").interval
    assert interval is not None and interval.value == 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / (2 * math.sqrt(64)), rel=0.1)


def test_frames_weigh_where_the_official_score_is_a_mean_over_frames(tmp_path: Path) -> None:
    rows = [
        {"video_path": f"a {i}-0.mp4", "video_results": v, "frame_count": n} for i, v, n in ((0, 0.0, 4), (1, 1.0, 12))
    ]
    (tmp_path / "a_eval_results.json").write_text(json.dumps({"scene": [0.75, rows]}))
    score = read_system(tmp_path).scores["scene"]
    both = {"scene": frozenset({"a 0", "a 1"})}
    assert draw({"scene": score}, prompts=both).values["scene"] == 0.75  # from the videos alone
    assert "videos' mean" not in vbench_table([read_system(tmp_path)], allow_missing=True)


def test_dimensions_of_a_group_are_resampled_together(tmp_path: Path) -> None:
    # In a group of three, one dimension mirrors another: their sum is certain, whatever is drawn.
    def value(name: str, prompt: int, _: int) -> float:
        up = (prompt % 5) / 4
        return {"aesthetic_quality": up, "imaging_quality": 100 * (1 - up)}.get(name, halfway(name))

    write_scores(tmp_path, halfway, prompts=20, value=value, names=GROUPS["overall_consistency"])
    drawn = draw(read_system(tmp_path).scores)
    both = drawn.draws["aesthetic_quality"] + drawn.draws["imaging_quality"]
    assert both.std() < 1e-9 < drawn.draws["aesthetic_quality"].std()


def test_a_missing_dimension_is_an_error_or_said(tmp_path: Path) -> None:
    write_scores(tmp_path, halfway, names=[name for name in DIMENSIONS if name not in ("color", "scene")])
    with pytest.raises(NearstepError, match="has 14 of VBench's 16 dimensions and lacks color, scene"):
        vbench_table([read_system(tmp_path)])
    text = vbench_table([read_system(tmp_path)], allow_missing=True)
    assert "| 14/16 |" in text and "no VBench total" in text
    assert text.splitlines()[2].split("|")[3].strip().startswith("50.00")  # not as if they were 0
    write_scores(tmp_path / "one", halfway, names=["color"])
    assert "| - | - | - | 50.00" in vbench_table([read_system(tmp_path / "one")], allow_missing=True)


def test_what_is_outside_of_its_range_is_shown(tmp_path: Path) -> None:
    write_scores(tmp_path, lambda name: 0.5 if name == "temporal_flickering" else halfway(name))
    text = vbench_table([read_system(tmp_path)])
    assert normalised("temporal_flickering", 0.5) == pytest.approx(-0.34880, abs=1e-5)
    assert "-34.88" in text and "(outside 0-100)" in text and "temporal_flickering 0.5000 is outside" in text


def test_of_repeated_scores_the_newest_counts_and_the_others_are_named(tmp_path: Path) -> None:
    write_scores(tmp_path / "first", lambda _: 0.25)
    write_scores(tmp_path / "again", halfway)
    for folder, time in (("first", 2000), ("again", 1000)):
        for file in (tmp_path / folder).glob("*.json"):
            os.utime(file, (time, time))
    system = read_system(tmp_path)
    assert all(score.file.parent.name == "first" for score in system.scores.values())  # by time, whatever the name
    assert sum("is older and not counted" in note for note in system.notes) == 16
    write_scores(tmp_path / "alone", halfway)
    assert not read_system(tmp_path / "alone").notes


def test_scores_older_than_their_videos_are_named(tmp_path: Path) -> None:
    video = tmp_path / "a ball-0.mp4"
    video.touch()
    file = tmp_path / "a_eval_results.json"
    file.write_text(json.dumps({"color": [0.5, [{"video_path": str(video), "video_results": 0.5}]]}))
    os.utime(file, (1000, 1000))
    assert "stale: 1 of the videos it is about are newer" in read_system(tmp_path).notes[0]


def test_differences_are_of_the_prompts_that_both_have(tmp_path: Path) -> None:
    def value(name: str, prompt: int, index: int) -> float:
        return halfway(name) + 0.01 * math.sin(7 * prompt + index)

    write_scores(tmp_path / "a", halfway, prompts=12, value=lambda *key: value(*key) + 0.01)
    write_scores(tmp_path / "b", halfway, prompts=9, value=value)
    first, second = read_system(tmp_path / "a"), read_system(tmp_path / "b")
    found, prompts = paired(first, second)
    assert set(prompts.values()) == {9}
    for name in DIMENSIONS:  # what the prompts share is gone, so the interval is a point
        step = 0.01 / DIMENSIONS[name].scale / (DIMENSIONS[name].high - DIMENSIONS[name].low)
        assert found[name].value == pytest.approx(step) == pytest.approx(found[name].low)
        assert found[name].high == pytest.approx(step)
    text = vbench_table([first, second])
    assert "| too few prompts |" in text and "| yes |" not in text
    write_scores(tmp_path / "c", halfway, prompts=12, value=value)
    assert "| yes |" in vbench_table([first, read_system(tmp_path / "c")])
    back, _ = paired(second, first)
    assert back["total"].value == pytest.approx(-found["total"].value)


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(tmp_path / "ours", halfway)
    write_scores(tmp_path / "theirs", lambda name: halfway(name) * 0.99)
    arguments = ["vbench", "table", f"a model={tmp_path / 'ours'}", str(tmp_path / "theirs"), "--published"]
    assert main([*arguments, "-o", str(tmp_path / "table.md")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == out
    assert "| a model | - | 50.00 [50.00, 50.00] |" in out and "a model - theirs" in out
    assert "| Causal-rCM, frame by frame | 1, first chunk 4 | 84.63 |" in out and "| ASD | 4 | 84.38 |" in out
    assert main(["vbench", "table", str(tmp_path / "nothing")]) == main(["vbench", "table"]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no dimensions"),
        ("{", "is not JSON"),
        ('{"color": [NaN, []]}', "no finite number"),
        pytest.param("[" * 99_999, "is not JSON", id="nested without end"),
        ('{"color": 0.5}', "not a score and its videos"),
        ('{"color": [0.5, [{}]]}', "without video_path"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a_eval_results.json").write_text(text)
    with pytest.raises(NearstepError, match=said):
        read_system(tmp_path)


def test_a_score_alone_has_no_interval(tmp_path: Path) -> None:
    write_scores(tmp_path, halfway)
    (tmp_path / "color_eval_results.json").write_text(json.dumps({"color": [0.5]}))
    text = vbench_table([read_system(tmp_path)])
    assert "color comes without values of videos" in text
    assert "| 50.00 | 50.00 [50.00, 50.00] | 50.00 | 16/16 |" in text
