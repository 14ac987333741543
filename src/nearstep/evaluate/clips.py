"""Measures a folder of clips, whoever made them: videos named by their prompts, as ``nearstep generate`` names them.

``PROMPT-INDEX.mp4`` shows PROMPT; INDEX numbers the clips of a prompt. A long or odd prompt is shortened in the name
(stream/output.py:safe_name) and stands in the file's comment. Clips of the world's held-out captions are put in the
order of those, so that they pair with a model's results.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from nearstep import rng
from nearstep.cluster import Cluster, each
from nearstep.data.videos import SUFFIXES, read_facts, read_frames, videos_in
from nearstep.errors import NearstepError
from nearstep.evaluate.distances import CAPTIONS_SEED, Distances, Looks, looks_of
from nearstep.evaluate.results import (
    EvaluationSettings,
    PlanResults,
    Results,
    open_results,
    write_results,
)
from nearstep.evaluate.run import Seen, results_of, seen_of
from nearstep.evaluate.tables import table
from nearstep.files import check_writable
from nearstep.json_files import parsed_object
from nearstep.protocols import World
from nearstep.stream.output import prompt_digest, safe_name
from nearstep.words import unknown_words

_NAME = re.compile(r"(?P<prompt>.+)-\d+")
_SHORTENED = re.compile(r"~[0-9a-f]{8}$")
Value = TypeVar("Value")
UNNAMED_PLAN = "clips"
"""Stands in the place of a plan where the files do not name one, or not the same."""


@dataclass(frozen=True, kw_only=True)
class NamedClip:
    """A video file and what it shall show."""

    path: Path
    prompt: str
    plan: str | None
    """How it was made, where the file says so."""
    calls: int | None


def evaluate_clips(
    world: World,
    folder: Path,
    *,
    batch: int = 16,
    out: Path = Path("evaluation.json"),
    vgg: Path | None = None,
    cluster: Cluster | None = None,
) -> str:
    """Measure a folder of clips and return the table of its results.

    Args:
        world: judges the clips.
        folder: holds them, and nothing else that is a video.
        batch: clips judged at once; does not change the results.
        out: where the results go.
        vgg: file of VGG16's weights, for a second Fréchet distance (evaluate/vgg.py).
        cluster: judges batches beside each other; None is this process.

    Raises:
        NearstepError: naming the first clip that is not of the world; nothing is written then.
    """
    looks = looks_of(world, vgg)
    return str(table(measure_clips(world, folder, batch=batch, out=out, looks=looks, cluster=cluster)))


def measure_clips(
    world: World,
    folder: Path,
    *,
    batch: int,
    out: Path,
    looks: Looks | None = None,
    cluster: Cluster | None = None,
) -> Results:
    """Measure a folder of clips as evaluate/run.py does a plan, and write the results to ``out``."""
    clips = list_clips(world, folder)
    captions = world.prompts(CAPTIONS_SEED, range(len(clips)))
    place = {caption: number for number, caption in enumerate(captions)}
    clips.sort(key=lambda clip: place.get(clip.prompt, len(captions)))
    prompts = [clip.prompt for clip in clips]
    settings: EvaluationSettings = {"name": str(folder), "captions": len(clips), "world": world.name}
    if prompts == captions:
        settings["captions_seed"] = CAPTIONS_SEED
    else:
        settings["prompts"] = f"{rng.key(repr(prompts)):016x}"
    results = open_results(out, settings)
    check_writable(out)
    plan = _shared(clip.plan for clip in clips) or UNNAMED_PLAN
    results["plans"][plan] = _measure(world, clips, batch, looks, desc=folder.name, cluster=cluster)
    write_results(out, results)
    return results


def _measure(
    world: World, clips: Sequence[NamedClip], batch: int, looks: Looks | None, *, desc: str, cluster: Cluster | None
) -> PlanResults:
    distances = Distances(world, looks, count=len(clips), batch=batch)
    batches = [clips[first : first + batch] for first in range(0, len(clips), batch)]
    judged = each(_Judged(world=world, looks=distances.looks), batches, cluster)
    seen = [*tqdm(judged, desc=desc, unit="batch", total=len(batches))]
    return results_of(world, seen, distances, calls=_shared(clip.calls for clip in clips))


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Reads clips and judges them."""

    world: World
    looks: Looks

    def __call__(self, clips: Sequence[NamedClip]) -> Seen:
        video = torch.stack([_read(self.world, clip.path) for clip in clips])
        prompts = [clip.prompt for clip in clips]
        try:
            return seen_of(self.world, self.looks, video, prompts)
        except NearstepError:
            for row, clip in enumerate(clips):
                _judge_alone(self.world, video[row : row + 1], clip)
            raise


def _judge_alone(world: World, video: Tensor, clip: NamedClip) -> None:
    """Name the file where a clip cannot be judged."""
    try:
        world.judge(video, [clip.prompt])
    except NearstepError as error:
        raise NearstepError(f"{clip.path}: {error}") from None


def _shared(values: Iterable[Value | None]) -> Value | None:
    # The value that all have, if it is one.
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def list_clips(world: World, folder: Path) -> list[NamedClip]:
    """The clips of a folder, by name.

    Raises:
        NearstepError: if there are fewer than two, or one has another size or a prompt that the world does not know.
    """
    files = videos_in(folder)
    if len(files) < 2:
        raise NearstepError(
            f"{folder} holds {len(files)} clips and no model; two or more are measured, named PROMPT-INDEX.mp4 as "
            f"nearstep generate does (known are {', '.join(SUFFIXES)})"
        )
    words = set(world.vocabulary())
    return [_named(world, path, words) for path in files]


def _named(world: World, path: Path, words: set[str]) -> NamedClip:
    try:
        facts = read_facts(path)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from error
    if (facts.height, facts.width) != (world.size, world.size):
        raise NearstepError(
            f"{path} is {facts.width}x{facts.height} pixels; clips of {world.name} are {world.size}x{world.size}"
        )
    origin = _origin(facts.comment)
    prompt = _prompt(path, origin)
    if unknown := [word for word in re.findall(r"[^\W_]+", prompt.lower()) if word not in words]:
        raise NearstepError(f"{path}: {world.name} does not know the word {unknown_words(unknown[:1], words)}")
    steps, commits, plan = origin.get("steps"), origin.get("commits"), origin.get("plan")
    return NamedClip(
        path=path,
        prompt=prompt,
        plan=plan if isinstance(plan, str) else None,
        calls=steps + commits if isinstance(steps, int) and isinstance(commits, int) else None,
    )


def prompt_of(path: Path, comment: str) -> str:
    """What a clip shows: the prompt of the comment that nearstep leaves in a file, or else of its name, PROMPT-INDEX.

    Raises:
        NearstepError: if it does not say, or says two things.
    """
    return _prompt(path, _origin(comment))


def _origin(comment: str) -> Mapping[str, object]:
    # What nearstep generate says of a clip; any other program's comment says nothing.
    try:
        return parsed_object(comment)
    except ValueError:
        return {}


def _prompt(path: Path, origin: Mapping[str, object]) -> str:
    named = _NAME.fullmatch(path.stem)
    if named is None:
        raise NearstepError(
            f"{path} does not say what it shows; name it PROMPT-INDEX{path.suffix}, such as a red apple-0"
        )
    name, prompt = named["prompt"], origin.get("prompt")
    if not isinstance(prompt, str):
        if _SHORTENED.search(name):
            raise NearstepError(
                f"{path} has a shortened prompt in its name and none in its comment; name it by its prompt"
            )
        return name
    if safe_name(prompt, path.name.removeprefix(name)) != name and not name.endswith(f"~{prompt_digest(prompt)}"):
        raise NearstepError(f"{path} is named otherwise than its comment, {prompt!r}; which of them does it show?")
    return prompt


def _read(world: World, path: Path) -> Tensor:
    # A clip [T, 3, H, W] in [0, 1].
    try:
        frames = read_frames(path, most=world.frames + 1)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from error
    if len(frames) != world.frames:
        there = f"more than {world.frames}" if len(frames) > world.frames else str(len(frames))
        raise NearstepError(f"{path} has {there} frames; clips of {world.name} have {world.frames}")
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255
