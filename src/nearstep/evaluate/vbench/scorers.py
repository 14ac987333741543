"""Who gives a video its value: ourselves, the official package in its own environment, or any command.

A scorer is asked for one dimension at a time. It gets the videos and answers with a value for each, on the scale of the
dimension's score, and with the score itself.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, FLICKERING
from nearstep.evaluate.vbench.flickering import flickering
from nearstep.evaluate.vbench.results import ENDING, Score, VideoScore, read_scores
from nearstep.programs import run_program, words_of

INSTALL = (
    "it needs an environment of its own, since it wants numpy < 2: 'python -m venv vbench-env', 'vbench-env/bin/pip "
    'install vbench==0.1.5 "numpy<2"\', and detectron2 from its repository for object_class, multiple_objects, color '
    "and spatial_relationship; then --python vbench-env/bin/python"
)
_PLACES = ("list", "videos", "output")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One dimension of some videos."""

    name: str
    videos: Path
    """The folder that holds them."""
    files: tuple[str, ...]
    """Their names, as seen from there."""
    prompts: tuple[str, ...]
    """What they are named by."""


@runtime_checkable
class Scorer(Protocol):
    """Gives videos values."""

    @property
    def by(self) -> str:
        """Who that is, for the record."""
        ...

    def check(self) -> None:
        """Find out, before any work, whether it can be used."""
        ...

    def parts(self, job: Job) -> list[Job]:
        """The job cut into jobs that may be done apart, in order; what they score is put together by :func:`joined`."""
        ...

    def score(self, job: Job) -> Score:
        """The score of a dimension, and its videos' values."""
        ...


@dataclass(frozen=True, kw_only=True)
class Native:
    """Temporal flickering, by ourselves."""

    by: str = "nearstep, as the official function"

    def check(self) -> None:
        """Nothing can be missing."""

    def parts(self, job: Job) -> list[Job]:
        """Each video by itself."""
        return [replace(job, files=(file,)) for file in job.files]

    def score(self, job: Job) -> Score:
        """Look at every video."""
        if job.name != FLICKERING:
            raise NearstepError(f"{job.name} needs VBench's networks, and {FLICKERING} alone does not; {INSTALL}")
        paths = [job.videos / name for name in job.files]
        return _mean(job, [VideoScore(path=str(path), value=flickering(path)) for path in paths])


def joined(job: Job, parts: Sequence[Score]) -> Score:
    """The score of a job from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    return _mean(job, [video for part in parts for video in part.videos])


def _mean(job: Job, videos: Sequence[VideoScore]) -> Score:
    score = sum(video.value for video in videos) / len(videos)
    return Score(name=job.name, score=score, videos=tuple(videos), file=Path(f"{job.name}{ENDING}"))


_DRIVER = """
import json, os, sys
import torch, vbench
with open(sys.argv[1], encoding="utf-8") as file:
    job = json.load(file)
with open(os.path.join(os.path.dirname(vbench.__file__), "VBench_full_info.json"), encoding="utf-8") as file:
    known = json.load(file)
info = os.path.join(job["output"], "prompts.json")
with open(info, "w", encoding="utf-8") as file:
    json.dump([row for row in known if row["prompt_en"] in set(job["prompts"])], file)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
vbench.VBench(device, info, job["output"]).evaluate(
    videos_path=job["videos"],
    name=job["name"],
    dimension_list=[job["name"]],
    imaging_quality_preprocessing_mode="longer",
)
"""


@dataclass(frozen=True, kw_only=True)
class Official:
    """The package vbench, run by a Python that has it."""

    python: str
    by: str = "the official package vbench"

    def check(self) -> None:
        """Import it there.

        Raises:
            NearstepError: with what to install.
        """
        run_program([self.python, "-c", "import torch, vbench"], f"{self.python} cannot import vbench", INSTALL)

    def parts(self, job: Job) -> list[Job]:
        """A dimension's networks are loaded once."""
        return [job]

    def score(self, job: Job) -> Score:
        """Have it look up and score the videos as it does for everybody."""
        if job.name not in DIMENSIONS:
            raise NearstepError(f"the official package has no dimension {job.name!r}; it has {', '.join(DIMENSIONS)}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            told = {"name": job.name, "videos": str(job.videos.resolve()), "prompts": job.prompts, "output": name}
            (folder / "job.json").write_text(json.dumps(told), encoding="utf-8")
            run_program([self.python, "-c", _DRIVER, str(folder / "job.json")], f"vbench failed at {job.name}", INSTALL)
            written = folder / f"{job.name}{ENDING}"
            if not written.is_file():
                raise NearstepError(f"vbench ended without scores of {job.name}; run it by itself to see why")
            found = {score.name: score for score in read_scores(written)}
        if job.name not in found:
            raise NearstepError(f"vbench wrote scores of {', '.join(found) or 'nothing'}, not of {job.name}")
        return found[job.name]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Any program: {list} names a file with a video a line, {videos} their folder, {output} the JSON it shall write.

    That is an object of videos (their paths or names) and their values, or a file as the official package writes it.
    """

    template: str
    by: str = ""

    def __post_init__(self) -> None:
        if not self.by:
            object.__setattr__(self, "by", self.template)

    def check(self) -> None:
        """Read the template.

        Raises:
            NearstepError: if it has no place for what it shall write, or another place that nothing fills.
        """
        words_of(self.template, dict.fromkeys(_PLACES, ""), _PLACES)
        if "{output}" not in self.template:
            raise NearstepError(f"--command {self.template!r} does not say where to write; put {{output}} into it")

    def parts(self, job: Job) -> list[Job]:
        """The program gets all videos."""
        return [job]

    def score(self, job: Job) -> Score:
        """Run it, and read what it wrote."""
        with tempfile.TemporaryDirectory() as name:
            listing, output = Path(name) / "videos.txt", Path(name) / f"{job.name}{ENDING}"
            paths = [str(job.videos.resolve() / file) for file in job.files]
            listing.write_text("\n".join(paths) + "\n", encoding="utf-8")
            places = {"list": str(listing), "videos": str(job.videos.resolve()), "output": str(output)}
            words = words_of(self.template, places, _PLACES)
            run_program(words, f"the command of {job.name} failed", "run it by itself to see why")
            if not output.is_file():
                raise NearstepError(f"the command of {job.name} ended without writing {{output}}; see {words[0]}")
            return _answer(job, output)


def _answer(job: Job, output: Path) -> Score:
    try:
        found = json.loads(read_text(output))
    except (ValueError, RecursionError) as error:
        raise NearstepError(f"the command of {job.name} wrote no JSON: {error}") from error
    if isinstance(found, dict) and isinstance(found.get(job.name), list):
        return next(score for score in read_scores(output) if score.name == job.name)
    if not isinstance(found, dict):
        raise NearstepError(f"the command of {job.name} wrote a {type(found).__name__}; an object of videos and values")
    values = {Path(str(path)).name: value for path, value in found.items()}
    videos: list[VideoScore] = []
    for name in job.files:
        value = values.get(Path(name).name)
        if not isinstance(value, int | float) or not -float("inf") < value < float("inf"):
            raise NearstepError(
                f"the command of {job.name} wrote {value!r} for {name}; each video needs a finite number"
            )
        videos.append(VideoScore(path=str(job.videos / name), value=float(value)))
    return _mean(job, videos)
