"""The playground's judge is one more rater: from clips to a report, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.nn.functional as F
from torch import Tensor

from nearstep.cli.main import main
from nearstep.playground import PLAYGROUND
from nearstep.stream.output import write_video
from nearstep.study.plan import ATTENTION
from nearstep.study.report import report_of

COUNT = 6


def blur(video: Tensor) -> Tensor:
    """Half the size by area and back: what a weak codec does."""
    half = F.avg_pool2d(video.flatten(0, 1), 2)
    return F.interpolate(half, scale_factor=2, mode="bilinear").unflatten(0, video.shape[:2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """True clips, and the same ones blurred."""
    where, indices = tmp_path_factory.mktemp("worlds"), range(COUNT)
    video, prompts = PLAYGROUND.clips(5, indices), PLAYGROUND.prompts(5, indices)
    for name, clips in (("true", video), ("dull", blur(blur(video)))):
        (where / name).mkdir()
        for clip, prompt in zip(clips, prompts, strict=True):
            write_video(where / name / f"{prompt}-0.mp4", clip, fps=PLAYGROUND.fps)
    return where


def test_the_judge_votes_as_raters_do_and_sees_what_is_true(folders: Path, tmp_path: Path, capsys) -> None:
    study = tmp_path / "study"
    made = ["study", "make", str(folders / "true"), str(folders / "dull"), "--repeat", "0.5", "-o", str(study)]
    assert main([*made, "--seed", "4"]) == 0
    assert main(["study", "judge", str(study)]) == 0
    assert f"{COUNT + 3 + 8} votes by judge" in capsys.readouterr().err
    report = report_of(study)
    (rater,), (found,) = report.raters, report.comparisons
    assert rater.name == "judge" and rater.failed == 0 and rater.attention == 8
    assert rater.consistent == rater.repeats == 3
    assert found.wins == COUNT and found.losses == found.ties == 0
    assert main(["study", "judge", str(study)]) == 0  # it goes on where it was, which is the end
    assert "0 votes by judge" in capsys.readouterr().err


def test_what_the_judge_cannot_tell_apart_is_a_tie(folders: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    two = [str(folders / "true"), f"again={folders / 'dull'}"]
    assert main(["study", "make", *two, "--attention", "0", "--repeat", "0", "-o", str(study)]) == 0
    assert main(["study", "judge", str(study), "--margin", "1"]) == 0
    (found,) = report_of(study).comparisons
    assert found.ties == COUNT and found.clustered.value == 0.5 and found.sign_p == 1


def test_clips_of_no_world_are_refused_before_any_vote(tmp_path: Path, folders: Path, capsys) -> None:
    from studies import new_study

    study = new_study(tmp_path, count=3, attention=0)
    assert main(["study", "judge", str(study)]) == 2
    assert "does not know the word" in capsys.readouterr().err and not (study / "votes.jsonl").exists()
    assert main(["study", "judge", str(study), "--world", "plaground"]) == 2
    assert "did you mean playground" in capsys.readouterr().err
    assert main(["study", "judge", str(study), "--margin", "-1"]) == 2


def test_attention_trials_of_the_world_are_among_them(folders: Path, tmp_path: Path) -> None:
    from nearstep.study.plan import read_key

    study = tmp_path / "study"
    assert main(["study", "make", str(folders / "true"), str(folders / "dull"), "-o", str(study)]) == 0
    assert sum(trial.kind == ATTENTION for trial in read_key(study).trials.values()) == 8
