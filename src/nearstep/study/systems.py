"""The folders of clips that a study compares: which clips they share, and whether these are alike in all but content.

A clip's stem (its file name without the suffix) says its prompt and seed, so clips of one stem are compared. What would
give a system away before anything is looked at (another size, rate or length) is refused, or made alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearstep.data.videos import ClipSize, read_clips, read_facts, read_frames, read_rate, videos_in
from nearstep.errors import NearstepError
from nearstep.evaluate.clips import prompt_of
from nearstep.files import path_of

MOST_FRAMES = 3600
"""Of a clip."""
MOST_SYSTEMS = 20


@dataclass(frozen=True, kw_only=True)
class System:
    """A folder of clips and what it is called in the report."""

    name: str
    folder: Path
    clips: Mapping[str, Path]
    """Stem -> file."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a clip is apart from what it shows."""

    frames: int
    height: int
    width: int
    fps: float

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height} at {self.fps:g} fps"

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.frames / self.fps


def open_systems(folders: Sequence[str]) -> list[System]:
    """The systems of a study, each given as FOLDER or NAME=FOLDER.

    Raises:
        NearstepError: if there are fewer than two, or two are the same.
    """
    if not 2 <= len(folders) <= MOST_SYSTEMS:
        raise NearstepError(f"{len(folders)} folders; a study compares the clips of 2 to {MOST_SYSTEMS}")
    systems = [_system(given) for given in folders]
    for number, system in enumerate(systems):
        for other in systems[:number]:
            if system.folder.resolve() == other.folder.resolve():
                raise NearstepError(f"{system.folder} is given twice; a system is not compared with itself")
            if system.name == other.name:
                raise NearstepError(f"two folders are called {system.name}; tell them apart: NAME=FOLDER")
    return systems


def _system(given: str) -> System:
    name, _, where = given.rpartition("=")
    folder = path_of(where)
    if not folder.is_dir():
        raise NearstepError(f"{folder} is {'a file' if folder.exists() else 'not there'}; give a folder of clips")
    name = (name if "=" in given else folder.resolve().name).strip()
    if not name or len(name) > 60 or not name.isprintable():
        raise NearstepError(f"{given[:80]!r}: a system's name has 1 to 60 printable signs; give NAME=FOLDER")
    files = videos_in(folder)
    if not files and (folder / "videos").is_dir():  # as nearstep sample lays folders out
        files = videos_in(folder / "videos")
    if not files:
        raise NearstepError(f"{folder} holds no clips")
    clips: dict[str, Path] = {}
    for path in files:
        if path.stem in clips:
            raise NearstepError(f"{clips[path.stem]} and {path.name} have one name; which of them is to be shown?")
        clips[path.stem] = path
    return System(name=name, folder=folder, clips=clips)


def shared_stems(systems: Sequence[System]) -> list[str]:
    """Stems that all have, sorted.

    Raises:
        NearstepError: if there is none.
    """
    found = sorted(set.intersection(*(set(system.clips) for system in systems)))
    if not found:
        shown = ", ".join(f"{system.folder} has {min(system.clips)[:60]!r}" for system in systems[:3])
        raise NearstepError(f"no clip has the same name in all {len(systems)} folders ({shown}); name them alike")
    return found


def left_out(systems: Sequence[System], shared: Sequence[str]) -> dict[str, int]:
    """System -> how many of its clips no pair shows, because another system lacks them."""
    counts = {system.name: len(system.clips) - len(shared) for system in systems}
    return {name: count for name, count in counts.items() if count}


def stem_prompt(systems: Sequence[System], stem: str) -> str | None:
    """What the clips of a stem are to show, where a file's comment or name says so.

    Raises:
        NearstepError: if two systems' files say different things.
    """
    found: dict[str, Path] = {}
    for system in systems:
        path = system.clips[stem]
        try:
            found.setdefault(prompt_of(path, read_facts(path).comment), path)
        except NearstepError:
            continue
    if len(found) > 1:
        one, two, *_ = found.values()
        raise NearstepError(f"{one} and {two} say that they show different prompts; they are no pair")
    return next(iter(found), None)


def form_of(path: Path) -> Form:
    """A clip's form; all of it is decoded, so a damaged one is found here.

    Raises:
        NearstepError: naming the file.
    """
    try:
        clip, fps = read_frames(path, MOST_FRAMES + 1), read_rate(path)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from error
    if len(clip) > MOST_FRAMES:
        raise NearstepError(f"{path} has more than {MOST_FRAMES} frames; show shorter clips")
    return Form(frames=len(clip), height=clip.shape[1], width=clip.shape[2], fps=fps)


def common_form(systems: Sequence[System], stem: str, *, fit: bool) -> Form:
    """The form that a stem's clips are shown in: their own, or with ``fit`` the least of each of its numbers.

    Raises:
        NearstepError: if they differ and are not to be fitted.
    """
    forms = [form_of(system.clips[stem]) for system in systems]
    if len(set(forms)) == 1:
        return forms[0]
    if not fit:
        other = next(number for number, form in enumerate(forms) if form != forms[0])
        raise NearstepError(
            f"{systems[0].clips[stem]} has {forms[0]} and {systems[other].clips[stem]} {forms[other]}, which tells "
            "them apart unseen; --fit cuts both to what they share"
        )
    fps = min(form.fps for form in forms)
    frames = max(1, int(min(form.seconds for form in forms) * fps + 1e-6))
    return Form(
        frames=frames, height=min(form.height for form in forms), width=min(form.width for form in forms), fps=fps
    )


def read_shown(path: Path, form: Form, *, fit: bool) -> np.ndarray:
    """A clip's frames in the form that it is shown in, uint8 [T, H, W, 3], with even sides."""
    height, width = form.height // 2 * 2, form.width // 2 * 2
    if not height or not width:
        raise NearstepError(f"{path} has {form}; a clip is at least 2x2")
    if not fit or form_of(path) == form:
        return read_frames(path, form.frames)[:, :height, :width]
    size = ClipSize(frames=form.frames, height=height, width=width, fps=form.fps)
    try:
        return read_clips(path, size)[0]
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from error
