"""Values of VBench-Long's clips: those of videos, of a dimension and of a table, in closed form and as officially."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vbench_long import CONFIGS, STILL, official_functions, write_both

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.flickering import flickering
from nearstep.evaluate.vbench.long import video_of
from nearstep.evaluate.vbench.results import Score, VideoScore, gathered, read_system, stated
from nearstep.evaluate.vbench.slow_fast import Rule, read_rule
from nearstep.evaluate.vbench.tables import vbench_table


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of videos, and one of their clips."""
    return write_both(tmp_path_factory.mktemp("long"))


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """The official functions."""
    return official_functions()


def clip_score(values: dict[str, list[float]], *, name: str = "color", folder: str = "v/split_clip/{}/") -> Score:
    videos = [
        VideoScore(path=f"{folder.format(video)}{video}_{place:03d}.mp4", value=value)
        for video, each in values.items()
        for place, value in enumerate(each)
    ]
    return Score(name=name, score=0.0, videos=tuple(videos), file=Path("color_eval_results.json"))


def test_values_of_clips_make_those_of_videos() -> None:
    values = {"a-0": [0.0, 1.0, 0.5], "a-1": [1.0], "b-0": [0.25, 0.75]}
    score = gathered(clip_score(values))
    assert [(each.path, each.prompt, each.value, each.weight) for each in score.videos] == [
        ("v/a-0.mp4", "a", 0.5, 3),
        ("v/a-1.mp4", "a", 1.0, 1),
        ("v/b-0.mp4", "b", 0.5, 2),
    ]
    assert stated(clip_score(values)).score == pytest.approx(3.5 / 6)  # every clip counts once
    filtered = clip_score(values, folder="v/filtered_videos/filtered_clips/")
    assert stated(filtered).score == pytest.approx(2 / 3)  # every video counts once
    assert video_of("v/split_clip/a-1/a-1_full.mp4") == video_of("x/a-1-Scene-12_003.mp4") == "a-1"
    assert video_of("v/a-1_002.mp4/a-1.mp4") == "a-1" and video_of("v/a-1.mp4") is video_of("v/a_1-0.mp4") is None


def test_clips_and_whole_videos_do_not_add_up(tmp_path: Path) -> None:
    rows = [{"video_path": f"a-0_{place:03d}.mp4", "video_results": 0.5} for place in range(2)]
    whole = [{"video_path": "a-0.mp4", "video_results": 0.5}]
    for folder, name, videos in (("long", "color", rows), ("long", "scene", rows), ("short", "color", whole)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}_eval_results.json").write_text(json.dumps({name: [0.5, videos]}))
    with pytest.raises(NearstepError, match=r"of clips \(VBench-Long\) and .* of whole videos"):
        read_system(tmp_path)
    text = vbench_table([read_system(tmp_path / each) for each in ("long", "short")], allow_missing=True)
    assert "ours; prompts: not said; VBench-Long |" in text and "ours; prompts: not said |" in text
    assert "No differences: long is scored by clips (VBench-Long) and short by whole videos" in text
    (tmp_path / "long" / "color_eval_results.json").write_text(json.dumps({"color": [0.5, [*rows, *whole]]}))
    with pytest.raises(NearstepError, match="a-0.mp4 is no clip, and others are"):
        read_system(tmp_path / "long")


PROGRAM = """
import json, os, sys
names = [os.path.basename(line.strip()) for line in open(sys.argv[1])]
json.dump({name: (int(name[-5]) if name[-5].isdigit() else 7) / 10 for name in names}, open(sys.argv[2], "w"))
"""
"""A clip's value is a tenth of the last digit of its number (of its video's number, for a video)."""


def write_tables(folder: Path, knots: dict[float, float]) -> Path:
    """The official files of the mix, in their shape."""
    folder.mkdir()
    weights = [
        f"{word}_{short}: {value}"
        for short in ("sb", "bg")
        for word, value in (("w_inclip", 0.5), ("w_clip2clip", 0.5))
    ]
    (folder / "slow_fast_params.yaml").write_text("\n\n".join(weights) + "\ninclip_mean_sb: 0.9")
    for word in ("subject", "background"):
        (folder / f"{word}_mapping_table.yaml").write_text("".join(f"{key}: {value}\n" for key, value in knots.items()))
    return folder


def test_from_clips_to_a_table(both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = both
    assert main(["vbench", "score", str(out)]) == 0  # it knows its prompts
    assert "eval_long.py" in capsys.readouterr().err
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path / 'program.py'} {{list}} {{output}}"
    scoring = ["vbench", "score", str(out), "--command", command, "--name"]
    assert main([*scoring, "dynamic_degree"]) == 0
    tables = write_tables(tmp_path / "configs", {0.0: 0.0, 0.1: 0.6, 0.5: 1.0})
    assert main([*scoring, "subject_consistency", "--between", command, "--tables", str(tables)]) == 0
    system = read_system(out)
    flicker = system.scores["temporal_flickering"]
    folders = [*(out / "videos" / "split_clip").glob(f"{STILL}-*")]
    values = {each.path: [flickering(clip) for clip in sorted(each.iterdir())] for each in map(_Named, folders)}
    assert {video.path: video.value for video in flicker.videos} == pytest.approx(
        {path: sum(each) / len(each) for path, each in values.items()}
    )
    flat = [value for each in values.values() for value in each]
    assert flicker.score == pytest.approx(sum(flat) / len(flat)) and {video.prompt for video in flicker.videos} == {
        STILL
    }
    # 3, 2, 1 (full), 2 and 3 clips: 0 + .1 + .2, 0 + .1, .7, 0 + .1, 0 + .1 + .2 over 11 clips.
    assert system.scores["dynamic_degree"].score == pytest.approx(1.5 / 11)
    # Between clips video 1 has .1 -> .6, 3 has .3 -> .8, 4 has .4 -> .9; video 0 has 0, which counts as not there.
    mixed = (0.3 + (0.1 + 2 * 0.6) / 2 + 0.7 + (0.1 + 2 * 0.8) / 2 + (0.3 + 3 * 0.9) / 2) / 11
    assert system.scores["subject_consistency"].score == pytest.approx(mixed)
    capsys.readouterr()
    assert main(["vbench", "table", str(out), "--allow-missing"]) == 0
    text = capsys.readouterr().out
    assert "standard, all 3; VBench-Long |" in text and "3/16" in text and "states" not in text
    assert main([*scoring, "subject_consistency"]) == 0
    assert any("within clips alone" in note for note in read_system(out).notes)


def test_clips_that_the_static_filter_has_chosen(both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = both
    chosen = out / "filtered_videos" / "filtered_clips"
    chosen.mkdir(parents=True)
    values: list[float] = []
    for index, numbers in ((0, ("000", "001")), (3, ("001",))):
        clips = [out / "videos" / "split_clip" / f"{STILL}-{index}" / f"{STILL}-{index}_{each}.mp4" for each in numbers]
        values.append(sum(map(flickering, clips)) / len(clips))
        for clip in clips:
            shutil.copy(clip, chosen)
    assert main(["vbench", "score", str(out), "--static", str(chosen)]) == 0
    assert "of 2 videos" in capsys.readouterr().err
    assert read_system(out).scores["temporal_flickering"].score == pytest.approx(sum(values) / 2)
    assert not any("static filter" in note for note in read_system(out).notes)


class _Named:
    """A folder of clips, and the path of their video."""

    def __init__(self, folder: Path) -> None:
        self.iterdir, self.path = folder.iterdir, str(folder.parents[1] / f"{folder.name}.mp4")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--between", "x {output}"], "--between and --tables go together"),
        (["--command", "x {output}", "--name", "color", "--between", "x {output}", "--tables", "."], "go together"),
        (["--python", "python"], "holds clips; run vbench2_beta_long/eval_long.py"),
        (
            ["--command", "x {output}", "--name", "subject_consistency", "--between", "x {output}", "--tables", "none"],
            "there is no none/subject_mapping_table.yaml",
        ),
    ],
)
def test_scoring_of_clips_says_what_goes_together(
    both: tuple[Path, Path], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vbench", "score", str(both[1]), *more]) == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "said"), [("0.1 0.2", "no name with a number"), ("0.1: nan", "no finite number"), ("", "has no rows")]
)
def test_a_damaged_table_is_named(tmp_path: Path, table: str, said: str) -> None:
    folder = write_tables(tmp_path / "configs", {0.0: 0.0})
    (folder / "background_mapping_table.yaml").write_text(table)
    with pytest.raises(NearstepError, match=said):
        read_rule(folder, "background_consistency")


def test_sums_are_those_of_the_official_code(official: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    for filtered in (False, True):
        folder = "v/filtered_videos/filtered_clips/" if filtered else "v/split_clip/{}/"
        for _ in range(100):
            values = {f"{p}-{i}": draw.random(draw.integers(1, 6)).tolist() for p in ("a", "b b.") for i in range(5)}
            ours = clip_score(values, folder=folder)
            rows = [{"video_path": each.path, "video_results": each.value} for each in ours.videos]
            theirs, _, videos = official["reorganize_clips_results"](rows)
            assert stated(ours).score == pytest.approx(theirs, abs=1e-12)
            assert len(videos) == (len(values) if filtered else len(rows))


def test_the_mix_is_that_of_the_official_code(official: dict[str, Any]) -> None:
    if not (configs := os.environ.get(CONFIGS)):
        pytest.skip(f"{CONFIGS} names no copy of vbench2_beta_long/configs, which the package does not hold")
    import yaml

    official["yaml"], folder = yaml, Path(configs)
    draw = np.random.default_rng(0)
    for name, word, short in (("subject_consistency", "subject", "sb"), ("background_consistency", "background", "bg")):
        rule = read_rule(folder, name)
        options = {"slow_fast_eval_config": folder / "slow_fast_params.yaml", "dev_flag": True}
        options[f"{short}_mapping_file_path"] = folder / f"{word}_mapping_table.yaml"
        within = {f"{place}-0.mp4": float(value) for place, value in enumerate(draw.random(400))}
        between = {video: float(draw.choice([0.0, 1.0, 0.37, draw.random()])) for video in [*within][:300]}
        rows = [
            [{"video_path": path, "video_results": value} for path, value in each.items()] for each in (within, between)
        ]
        total, found = official["fuse_inclip_clip2clip"](0.5, 0.5, *rows, name, **options)
        ours = [rule(value, between.get(video)) for video, value in within.items()]
        assert ours == pytest.approx([row["video_results"] for row in found], abs=1e-12)
        assert sum(ours) / len(ours) == pytest.approx(total)


def test_a_mix_in_closed_form() -> None:
    rule = Rule(knots=(0.0, 0.5, 1.0), mapped=(0.0, 0.8, 0.9), within=0.5, between=0.5)
    assert rule(0.4, 0.75) == pytest.approx((0.4 + 0.85) / 2) and rule(0.4, 0.5) == pytest.approx(0.6)
    assert rule(0.4, None) == rule(0.4, 0.0) == 0.4 and rule(0.4, 7.0) == pytest.approx(0.65)
