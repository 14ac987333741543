"""Scores on disk: the official package's ``*_eval_results.json``, with each video's values, and which are stale."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS
from nearstep.evaluate.vbench.long import FILTERED, PROTOCOL, SPLIT, video_of

ENDING = "_eval_results.json"
RECORD = "sample.json"
"""Beside a folder of videos: what they are."""
SCORERS = "scorers.json"
"""Beside scores: who gave them."""
CLIPS_COUNT = "VBench-Long: a video's value is the mean of its clips', a dimension's score the mean over clips"
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
    protocol: str = ""
    """Another than VBench's own: VBench-Long's, of videos whose clips were scored."""


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
        """Which prompts the videos are of, and how they were scored where that is not VBench's own way."""
        prompts = str(self.record.get("label", "not said"))
        return f"{prompts}; {self.protocol}" if self.protocol else prompts

    @property
    def protocol(self) -> str:
        """That of the scores, which is one."""
        return next((score.protocol for score in self.scores.values()), "")


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
        for score in map(gathered, read_scores(file)):
            if (old := scores.get(score.name)) and old.score != score.score:
                notes.append(
                    f"{score.name} is {score.score:.6g} in {file}; "
                    f"{old.score:.6g} in {old.file} is older and not counted"
                )
            scores[score.name] = score
    if not scores:
        raise NearstepError(f"{folder} holds no scores; nearstep vbench score writes them, in files {'*' + ENDING}")
    _check_one_protocol(scores)
    notes += [note for score in scores.values() for note in _stale(score)]
    notes += _said(folder, scores)
    if any(score.protocol for score in scores.values()):
        notes.append(CLIPS_COUNT)
    ordered = {each: scores[each] for each in (*DIMENSIONS, *scores) if each in scores}
    return System(name=name or folder.name, scores=ordered, notes=tuple(notes), record=read_record(folder))


def _check_one_protocol(scores: Mapping[str, Score]) -> None:
    first = next(iter(scores.values()))
    for score in scores.values():
        if score.protocol != first.protocol:
            long, short = (score, first) if score.protocol else (first, score)
            raise NearstepError(
                f"{long.file} is of clips ({long.protocol}) and {short.file} of whole videos; keep the two in folders "
                "of their own, since they do not add up"
            )


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
    except (ValueError, RecursionError) as error:
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
    weight = 1 if video_of(row["video_path"]) else weight  # a dimension of VBench-Long is a mean over clips
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


def gathered(score: Score) -> Score:
    """A score of clips as one of videos, whose values are the means of their clips'; any other as it is.

    A dimension's official score is the mean over all clips, so a video weighs as many as it has; of what the static
    filter has chosen it is the mean over videos.

    Raises:
        NearstepError: if some of what was scored are clips and some are not.
    """
    names = [video_of(video.path) for video in score.videos]
    if not any(names):
        return score
    clips: dict[str, list[VideoScore]] = {}
    for name, video in zip(names, score.videos, strict=True):
        if name is None:
            raise NearstepError(f"{score.file}, {score.name}: {video.path} is no clip, and others are; score again")
        clips.setdefault(name, []).append(video)
    return replace(score, videos=tuple(_whole(name, each) for name, each in clips.items()), protocol=PROTOCOL)


def _whole(name: str, clips: Sequence[VideoScore]) -> VideoScore:
    folder = Path(clips[0].path.partition(f"/{SPLIT}/")[0])
    weight = 1.0 if FILTERED in Path(clips[0].path).parts else float(len(clips))
    value = sum(clip.value for clip in clips) / len(clips)
    return VideoScore(path=str(folder / f"{name}.mp4"), value=value, weight=weight)


def stated(score: Score) -> Score:
    """A score of clips with the number that their videos make; any other as it is."""
    whole = gathered(score)
    if not whole.protocol:
        return score
    weights = sum(video.weight for video in whole.videos)
    return replace(score, score=sum(video.value * video.weight for video in whole.videos) / weights)
