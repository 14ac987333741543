"""Scores on disk: the official package's ``*_eval_results.json``, with each video's values, and which are stale."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS

ENDING = "_eval_results.json"
RECORD = "sample.json"
"""Beside a folder of videos: what they are."""
SCORERS = "scorers.json"
"""Beside scores: who gave them."""
_NUMBERED = re.compile(r"-\d+$")
_COUNTS = ("frame_count", "cnt_per_video")
"""Where the official package says how many frames (or pairs of them) a video's value is a mean of."""


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """What one video has in a dimension."""

    path: str
    value: float
    """On the scale of the dimension's score."""
    weight: float = 1.0
    """Frames that count in it, where the score is a mean over frames."""

    @property
    def prompt(self) -> str:
        """What the video is named by."""
        return _NUMBERED.sub("", Path(self.path).stem)


@dataclass(frozen=True, kw_only=True)
class Score:
    """A dimension's score and the file it stands in."""

    name: str
    score: float
    videos: tuple[VideoScore, ...]
    """Empty where the file does not say."""
    file: Path


@dataclass(frozen=True, kw_only=True)
class System:
    """All scores of one folder."""

    name: str
    scores: Mapping[str, Score]
    """Dimension -> its score; those that are not VBench's come last."""
    notes: tuple[str, ...] = ()
    """What a reader of the scores must know."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What made the videos, where it is known."""

    @property
    def missing(self) -> list[str]:
        """Dimensions of VBench without a score."""
        return [name for name in DIMENSIONS if name not in self.scores]

    @property
    def label(self) -> str:
        """Which prompts the videos are of."""
        return str(self.record.get("label", "not said"))


def read_system(folder: Path, name: str = "") -> System:
    """All scores under a folder.

    Of several files with one dimension the newest counts, and the others are named in the notes; so is a file that is
    older than videos it is about.

    Raises:
        NearstepError: if there are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise NearstepError(f"there is no folder {folder}; name one with files that end in {ENDING}")
    files = sorted(folder.rglob(f"*{ENDING}"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    scores: dict[str, Score] = {}
    notes: list[str] = []
    for file in files:
        for score in read_scores(file):
            if (old := scores.get(score.name)) and old.score != score.score:
                notes.append(
                    f"{score.name} is {score.score:.6g} in {file}; "
                    f"{old.score:.6g} in {old.file} is older and not counted"
                )
            scores[score.name] = score
    if not scores:
        raise NearstepError(f"{folder} holds no scores; nearstep vbench score writes them, in files {'*' + ENDING}")
    notes += [note for score in scores.values() for note in _stale(score)]
    notes += _said(folder, scores)
    ordered = {each: scores[each] for each in (*DIMENSIONS, *scores) if each in scores}
    return System(name=name or folder.name, scores=ordered, notes=tuple(notes), record=read_record(folder))


def _stale(score: Score) -> list[str]:
    made = score.file.stat().st_mtime_ns
    paths = [path for video in score.videos if (path := Path(video.path)).is_file()]
    newer = sum(path.stat().st_mtime_ns > made for path in paths)
    return [f"{score.file} is stale: {newer} of the videos it is about are newer"] if newer else []


def _said(folder: Path, scores: Mapping[str, Score]) -> list[str]:
    notes: list[str] = []
    for file in sorted(folder.rglob(SCORERS)):
        found = _json(file)
        for name, entry in found.items() if isinstance(found, dict) else ():
            note = entry.get("note") if isinstance(entry, dict) else None
            if note and name in scores and scores[name].file.parent == file.parent:
                notes.append(f"{name} is {note}")
    return notes


def read_record(folder: Path) -> dict[str, Any]:
    """What is said of the videos, in the folder or above it; nothing where nobody said it."""
    for place in (folder / RECORD, folder.parent / RECORD):
        if place.is_file():
            found = _json(place)
            if not isinstance(found, dict):
                raise NearstepError(f"{place} does not say what the videos are; remove it or sample again")
            return found
    return {}


def read_scores(file: Path) -> list[Score]:
    """The scores in one file of the official package.

    Raises:
        NearstepError: if it is no such file, or holds a value that is not finite.
    """
    found = _json(file)
    if not isinstance(found, dict):
        raise NearstepError(f"{file} holds no dimensions; it should be what vbench's evaluate writes")
    return [_score(str(name).replace(" ", "_"), entry, file) for name, entry in found.items()]


def _json(file: Path) -> object:
    try:
        return json.loads(read_text(file))
    except ValueError as error:
        if isinstance(error, NearstepError):
            raise
        raise NearstepError(f"{file} is not JSON: {error}; remove it or score again") from error


def _score(name: str, entry: object, file: Path) -> Score:
    where = f"{file}, {name}"
    if not isinstance(entry, list) or not entry:
        raise NearstepError(f"{where}: not a score and its videos, [score, [...]]; remove it or score again")
    rows = entry[1] if len(entry) > 1 else []
    if not isinstance(rows, list):
        raise NearstepError(f"{where}: the videos are no list; remove it or score again")
    scale = DIMENSIONS[name].scale if name in DIMENSIONS else 1.0
    videos = tuple(_video(row, scale, where) for row in rows)
    return Score(name=name, score=_number(entry[0], where), videos=videos, file=file)


def _video(row: object, scale: float, where: str) -> VideoScore:
    if not isinstance(row, dict) or not isinstance(row.get("video_path"), str):
        raise NearstepError(f"{where}: a video without video_path; remove the file or score again")
    frames = row.get("frame_results")
    weight = next((row[name] for name in _COUNTS if name in row), len(frames) if isinstance(frames, list) else 1)
    value = _number(row.get("video_results"), f"{where}, {row['video_path']}") / scale
    return VideoScore(path=row["video_path"], value=value, weight=_number(weight, where))


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise NearstepError(f"{where}: {value!r} is no finite number; score again")
    return float(value)


def as_official(score: Score) -> dict[str, Any]:
    """A score in the shape of the official package's files."""
    scale = DIMENSIONS[score.name].scale if score.name in DIMENSIONS else 1.0
    rows: list[dict[str, Any]] = []
    for video in score.videos:
        counted = {} if video.weight == 1 else {_COUNTS[0]: video.weight}
        rows.append({"video_path": video.path, "video_results": video.value * scale, **counted})
    return {score.name: [score.score, rows]}
