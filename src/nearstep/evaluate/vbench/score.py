"""Scores a folder of videos, one dimension at a time: what is there and whole is kept, so a killed run goes on.

``FOLDER/videos`` holds the videos, or also the clips of VBench-Long (long.py), and ``FOLDER/scores`` gets the scores,
one file a dimension in the official shape; ``scorers.json`` beside them says who gave each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearstep.cluster import Cluster, each
from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, FLICKERING
from nearstep.evaluate.vbench.long import FIRSTS, SPLIT, files_of
from nearstep.evaluate.vbench.prompts import VIDEOS, Entry, PromptSet
from nearstep.evaluate.vbench.results import ENDING, SCORERS, Score, as_official, gathered, read_scores, stated
from nearstep.evaluate.vbench.scorers import Job, Scorer, joined
from nearstep.files import check_writable, sweep, write_json

_SHOWN = 3  # missing files in an error
UNFILTERED = "of videos that no static filter has chosen (--static takes a folder of those that one has)"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where videos are, and where their scores go."""

    videos: Path
    """What is scored: a folder of videos, or of folders of clips."""
    scores: Path

    @staticmethod
    def of(folder: Path) -> Place:
        """The two folders of a sampled set.

        Raises:
            NearstepError: if there are no videos, or something else beside them that the official evaluator trips over.
        """
        videos = folder / "videos"
        if not videos.is_dir():
            raise NearstepError(f"{folder} has no folder videos; nearstep vbench sample -o {folder} makes it")
        return Place(videos=videos / SPLIT if (videos / SPLIT).is_dir() else videos, scores=folder / "scores")

    @property
    def whole(self) -> Path:
        """Where the videos themselves are."""
        return self.videos.parent if self.long else self.videos

    @property
    def long(self) -> bool:
        """Whether it is clips that are scored, those of VBench-Long."""
        return self.videos.name == SPLIT

    @property
    def firsts(self) -> Path:
        """Where the clips' first frames are."""
        return self.scores.with_name(FIRSTS)


def jobs(
    videos: Path, prompts: PromptSet, names: Sequence[str], *, long: bool = False, allow_missing: bool = False
) -> Iterator[Job]:
    """What is to be scored of a folder, checked: each dimension's videos, or their clips (``long``), are there.

    Of each prompt the first five videos count, as the official evaluator looks them up. A name that is no dimension of
    VBench is scored on the videos of all prompts.

    Raises:
        NearstepError: naming videos that are missing, or a file that is no mp4.
    """
    if not videos.is_dir():
        raise NearstepError(f"there is no folder {videos}; name one with videos, or with their clips")
    sweep(videos)  # what killed runs have left
    there = files_of(videos) if long else _whole(videos)
    for name in names:
        entries = [entry for entry in prompts.unique if name in entry.dimensions or name not in DIMENSIONS]
        wanted = [entry.file_name(index, "") for entry in entries for index in range(VIDEOS)]
        files = tuple(file for video in wanted for file in there.get(video, ()))
        if not files:
            raise NearstepError(f"{videos} has no video of {name}; leave it out, or sample its {len(entries)} prompts")
        missing = [f"{video}.mp4" for video in wanted if video not in there]
        if missing and not allow_missing:
            raise NearstepError(
                f"{videos} lacks {len(missing)} of {len(wanted)} videos of {name}, such as "
                f"{', '.join(missing[:_SHOWN])}; sample them, or score what is there with --allow-missing"
            )
        named = tuple(entry.prompt for entry in entries)
        yield Job(name=name, videos=videos, files=files, prompts=named)


def videos_of(videos: Path, prompts: PromptSet, tell: Callable[[str], None]) -> dict[str, Entry]:
    """The files of these prompts' videos that are in a folder, however many each has.

    Args:
        videos: the folder.
        prompts: their prompts.
        tell: takes a line about files of no such prompt.

    Raises:
        NearstepError: if there are none.
    """
    known = {entry.prompt: entry for entry in prompts.unique}
    found: dict[str, Entry] = {}
    others: list[str] = []
    for path in sorted(videos.glob("[!.]*.mp4")):
        prompt, _, index = path.stem.rpartition("-")
        if prompt in known and index.isdecimal():
            found[path.name] = known[prompt]
        else:
            others.append(path.name)
    if not found:
        raise NearstepError(f"{videos} has no video of the {len(known)} prompts, named PROMPT-INDEX.mp4; see --info")
    if others:
        tell(f"{len(others)} of {len(others) + len(found)} videos are of none of the prompts, such as {others[0]}")
    return found


def _whole(videos: Path) -> dict[str, tuple[str, ...]]:
    # Name without suffix -> the file.
    names = sorted(path.name for path in videos.iterdir())
    if strange := [name for name in names if not name.lower().endswith(".mp4")]:
        raise NearstepError(f"{videos / strange[0]} is no mp4; the official evaluator wants a folder of mp4s alone")
    return {name.removesuffix(".mp4"): (name,) for name in names}


def score_all(
    scores: Path,
    work: Sequence[tuple[Job, Scorer]],
    *,
    tell: Callable[[str], None],
    notes: dict[str, str] | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Score what is not scored yet.

    Args:
        scores: the folder for the files.
        work: each dimension and who scores it.
        tell: takes a line about each.
        notes: dimension -> what a reader of its score must know.
        cluster: scores parts of jobs beside each other; None is this process.

    Raises:
        NearstepError: if a scorer cannot be used, before any work, or fails; earlier dimensions are then written.
    """
    for job, _ in work:
        check_writable(scores / f"{job.name}{ENDING}")
    kept = {job.name: _kept(scores, job, scorer) for job, scorer in work}
    for scorer in dict.fromkeys(scorer for job, scorer in work if kept[job.name] is None):
        scorer.check()
    todo = [(job, scorer, scorer.parts(job)) for job, scorer in work if kept[job.name] is None]
    for known in filter(None, kept.values()):
        tell(f"{known.name} {known.score:.4f} of {len(known.videos)} videos, scored already")
    found = each(_part, [(scorer, part) for _, scorer, parts in todo for part in parts], cluster)
    for job, scorer, parts in todo:
        score = joined(job, [next(found) for _ in parts])
        if lost := {Path(video.path).name for video in score.videos} ^ {Path(file).name for file in job.files}:
            tell(f"{job.name}: {scorer.by} has no value for {len(lost)} videos, such as {min(lost)}")
        score = stated(score)
        _write(scores, job, scorer, score, (notes or {}).get(job.name, ""))
        tell(f"{job.name} {score.score:.4f} of {len(gathered(score).videos)} videos")


def _part(item: tuple[Scorer, Job]) -> Score:
    scorer, job = item
    return scorer.score(job)


def _kept(scores: Path, job: Job, scorer: Scorer) -> Score | None:
    # A score that is there, of these videos as they are now, by the same scorer.
    file = scores / f"{job.name}{ENDING}"
    said = read_scorers(scores).get(job.name, {})
    if not file.is_file() or said.get("by") != scorer.by or said.get("files") != list(job.files):
        return None
    made = file.stat().st_mtime_ns
    if any((job.videos / name).stat().st_mtime_ns > made for name in job.files):
        return None
    return next((gathered(score) for score in read_scores(file) if score.name == job.name), None)


def _write(scores: Path, job: Job, scorer: Scorer, score: Score, note: str) -> None:
    # The record goes first: a file without its score is scored again.
    said = {"by": scorer.by, "files": list(job.files), "note": note}
    (scores / f"{job.name}{ENDING}").unlink(missing_ok=True)
    write_json(scores / SCORERS, {**read_scorers(scores), job.name: said})
    write_json(scores / f"{job.name}{ENDING}", as_official(score))


def read_scorers(scores: Path) -> dict[str, dict[str, object]]:
    """Dimension -> who scored it, which files, and what to know."""
    try:
        found = json.loads(read_text(scores / SCORERS)) if (scores / SCORERS).is_file() else {}
    except (ValueError, RecursionError) as error:
        raise NearstepError(f"{scores / SCORERS} cannot be read ({error}); remove it and score again") from error
    return found if isinstance(found, dict) else {}


def note_on(name: str, *, filtered: bool) -> str:
    """What to know of a dimension's score."""
    return UNFILTERED if name == FLICKERING and not filtered else ""
