"""VBench-Long's mix for subject and background consistency: within clips, and between their first frames.

A value between clips is taken to the scale of those within by a table, which is interpolated linearly, and the two are
added with weights. Table and weights are files of the official repository (vbench2_beta_long/configs), read from a
copy. A video with one clip has no value between clips and keeps the one within.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.long import video_of
from nearstep.evaluate.vbench.results import Score
from nearstep.evaluate.vbench.score import Place
from nearstep.evaluate.vbench.scorers import Command, Job, Scorer

_FILES = {"subject_consistency": ("subject", "sb"), "background_consistency": ("background", "bg")}
MIXED = tuple(_FILES)
"""The dimensions that are mixed."""
LONG_OFFICIAL = (
    "run vbench2_beta_long/eval_long.py of VBench's repository on the folder above, and give nearstep vbench table the "
    "folder with its results"
)
INSIDE_ALONE = "within clips alone, as the official script without --dev_flag; --between adds what is between them"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the two values of a dimension become one."""

    knots: tuple[float, ...]
    """Values between clips, ascending."""
    mapped: tuple[float, ...]
    """What each is on the scale of those within."""
    within: float
    """Weight of a value within a clip."""
    between: float
    """Weight of a mapped value between clips."""

    def __call__(self, within: float, between: float | None) -> float:
        """The mixed value of a clip; what is mapped to 0 counts as not there, as officially."""
        mapped = 0.0 if between is None else float(np.interp(between, self.knots, self.mapped))
        return within * self.within + mapped * self.between if mapped else within


def read_rule(folder: Path, name: str) -> Rule:
    """A dimension's rule from the official files.

    Raises:
        NearstepError: if they are not there, or hold something else.
    """
    word, short = _FILES[name]
    table, weights = folder / f"{word}_mapping_table.yaml", folder / "slow_fast_params.yaml"
    rows, said = sorted((_number(key, table), value) for key, value in _read(table).items()), _read(weights)
    missing = [key for key in (f"w_inclip_{short}", f"w_clip2clip_{short}") if key not in said]
    if missing or not rows:
        raise NearstepError(f"{weights if missing else table} has no {', '.join(missing) or 'rows'}; fetch it again")
    knots, mapped = zip(*rows, strict=True)
    return Rule(knots=knots, mapped=mapped, within=said[f"w_inclip_{short}"], between=said[f"w_clip2clip_{short}"])


def _read(path: Path) -> dict[str, float]:
    """A file of names and numbers, one a line."""
    if not path.is_file():
        raise NearstepError(f"there is no {path}; --tables takes vbench2_beta_long/configs of VBench's repository")
    found: dict[str, float] = {}
    for line in filter(str.strip, read_text(path).splitlines()):
        key, colon, value = line.partition(":")
        if not colon:
            raise NearstepError(f"{path}: {line[:60]!r} is no name with a number; fetch the file again")
        found[key.strip()] = _number(value, path)
    return found


def _number(text: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NearstepError(f"{path}: {text.strip()[:60]!r} is no finite number; fetch the file again")
    return value


@dataclass(frozen=True, kw_only=True)
class SlowFast:
    """Clips by one scorer, videos of their first frames by a command, and the mix of both."""

    within: Scorer
    between: Command
    rule: Rule
    firsts: Path
    """The folder of videos of first frames."""

    @property
    def by(self) -> str:
        """Both."""
        return f"{self.within.by}; between clips {self.between.by}"

    def check(self) -> None:
        """Both, and whether there are first frames.

        Raises:
            NearstepError: as theirs.
        """
        if not self.firsts.is_dir():
            raise NearstepError(f"there is no {self.firsts}; nearstep vbench cut makes it for --between")
        self.within.check()
        self.between.check()

    def parts(self, job: Job) -> list[Job]:
        """The programs get all clips."""
        return [job]

    def score(self, job: Job) -> Score:
        """Score both, and mix."""
        inside = self.within.score(job)
        names = dict.fromkeys(f"{video_of(file)}.mp4" for file in job.files)
        files = tuple(name for name in names if (self.firsts / name).is_file())
        between = self._between(replace(job, videos=self.firsts, files=files)) if files else {}
        videos = [
            replace(clip, value=self.rule(clip.value, between.get(f"{video_of(clip.path)}.mp4")))
            for clip in inside.videos
        ]
        return replace(inside, videos=tuple(videos), score=sum(each.value for each in videos) / len(videos))

    def _between(self, job: Job) -> Mapping[str, float]:
        return {Path(video.path).name: video.value for video in self.between.score(job).videos}


def check_mix(name: str | None, given: Sequence[object], place: Place) -> None:
    """Refuse half of what a mix needs, a mix of another dimension, or of whole videos.

    Raises:
        NearstepError: naming what goes together.
    """
    if any(given) and not (all(given) and name in MIXED and place.long):
        raise NearstepError(
            f"--between and --tables go together, with --command, --name {' or '.join(MIXED)}, and clips of nearstep "
            "vbench cut"
        )
