"""Scores a folder of videos, one dimension at a time: what is there and whole is kept, so a killed run goes on.

``FOLDER/videos`` holds the videos and ``FOLDER/scores`` gets the scores, one file a dimension in the official shape;
``scorers.json`` beside them says who gave each.
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
from nearstep.evaluate.vbench.prompts import VIDEOS, PromptSet
from nearstep.evaluate.vbench.results import ENDING, SCORERS, Score, as_official, read_scores
from nearstep.evaluate.vbench.scorers import Job, Scorer, joined
from nearstep.files import check_writable, sweep, write_json

_SHOWN = 3  # missing files in an error
UNFILTERED = "of videos that no static filter has chosen (--static takes a folder of those that one has)"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where videos are, and where their scores go."""

    videos: Path
    scores: Path

    @staticmethod
    def of(folder: Path) -> Place:
        """The two folders of a sampled set.

        Raises:
            NearstepError: if there are no videos, or something else beside them that the official evaluator trips over.
        """
        place = Place(videos=folder / "videos", scores=folder / "scores")
        if not place.videos.is_dir():
            raise NearstepError(f"{folder} has no folder videos; nearstep vbench sample -o {folder} makes it")
        return place


def jobs(videos: Path, prompts: PromptSet, names: Sequence[str], *, allow_missing: bool = False) -> Iterator[Job]:
    """What is to be scored of a folder, checked: each dimension's videos are there.

    Of each prompt the first five videos count, as the official evaluator looks them up. A name that is no dimension of
    VBench is scored on the videos of all prompts.

    Raises:
        NearstepError: naming videos that are missing, or a file that is no mp4.
    """
    sweep(videos)  # what killed runs have left
    there = {path.name for path in videos.iterdir()}
    if strange := sorted(name for name in there if not name.lower().endswith(".mp4")):
        raise NearstepError(f"{videos / strange[0]} is no mp4; the official evaluator wants a folder of mp4s alone")
    for name in names:
        entries = [entry for entry in prompts.unique if name in entry.dimensions or name not in DIMENSIONS]
        wanted = [entry.file_name(index) for entry in entries for index in range(VIDEOS)]
        files = tuple(file for file in wanted if file in there)
        if not files:
            raise NearstepError(f"{videos} has no video of {name}; leave it out, or sample its {len(entries)} prompts")
        if len(files) < len(wanted) and not allow_missing:
            missing = [file for file in wanted if file not in there]
            raise NearstepError(
                f"{videos} lacks {len(missing)} of {len(wanted)} videos of {name}, such as "
                f"{', '.join(missing[:_SHOWN])}; sample them, or score what is there with --allow-missing"
            )
        named = tuple(entry.prompt for entry in entries)
        yield Job(name=name, videos=videos, files=files, prompts=named)


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
        if lost := {Path(video.path).name for video in score.videos} ^ set(job.files):
            tell(f"{job.name}: {scorer.by} has no value for {len(lost)} videos, such as {min(lost)}")
        _write(scores, job, scorer, score, (notes or {}).get(job.name, ""))
        tell(f"{job.name} {score.score:.4f} of {len(score.videos)} videos")


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
    return next((score for score in read_scores(file) if score.name == job.name), None)


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
    except ValueError as error:
        raise NearstepError(f"{scores / SCORERS} cannot be read ({error}); remove it and score again") from error
    return found if isinstance(found, dict) else {}


def note_on(name: str, *, filtered: bool) -> str:
    """What to know of a dimension's score."""
    return UNFILTERED if name == FLICKERING and not filtered else ""
