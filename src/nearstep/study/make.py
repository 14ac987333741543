"""Writes a study: every clip encoded anew, without a word about where it came from, all files of one length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from tqdm import tqdm

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.files import replacing_folder
from nearstep.json_files import TEXT
from nearstep.stream.output import ENCODERS
from nearstep.study.plan import (
    CLIPS,
    KEY,
    OTHER,
    PUBLIC,
    TRIALS,
    Extent,
    Key,
    Trial,
    hashed,
    planned,
)
from nearstep.study.systems import System, common_form, left_out, read_shown, shared_stems, stem_prompt

QUESTION = "Which video is better: which looks more real, moves more as it should, and shows more of the text?"
LONGEST_QUESTION = 500
MOSAIC = 8
"""Pieces across a broken copy."""
_FREE = 8
"""Bytes of the head of an mp4 box that players skip."""


class Made(TypedDict):
    """What was made."""

    prompts: int
    pairs: int
    repeats: int
    attention: int
    left_out: dict[str, int]
    """System -> clips that are in no pair."""


def make_study(
    systems: Sequence[System],
    out: Path,
    *,
    seed: int,
    extent: Extent | None = None,
    question: str = QUESTION,
    fit: bool = False,
) -> Made:
    """Write a study's folder, whole or not at all.

    Args:
        systems: what is compared.
        out: the folder; new, or empty.
        seed: names sides, order and files; whoever knows it can tell the systems apart, so it is in the key alone.
        extent: how much is asked.
        question: what raters are asked.
        fit: cut clips of one name that differ in size, rate or length to what they share.

    Raises:
        NearstepError: for clips that make no pairs; nothing is written then.
    """
    if not TEXT.holds(question) or not 1 <= len(question.strip()) <= LONGEST_QUESTION:
        raise NearstepError(f"the question is a text of 1 to {LONGEST_QUESTION} signs")
    shared = shared_stems(systems)
    trials = planned([system.name for system in systems], shared, extent or Extent(), seed)
    stems = sorted({trial.stem for trial in trials})
    with replacing_folder(out) as part:
        prompts = {stem: stem_prompt(systems, stem) for stem in stems}
        key = Key(
            seed=seed,
            systems=tuple(system.name for system in systems),
            prompts=prompts,
            trials={trial.id: trial for trial in trials},
        )
        (part / PUBLIC / CLIPS).mkdir(parents=True)
        _write_clips(key, systems, part / PUBLIC / CLIPS, fit=fit)
        _write(part / PUBLIC / TRIALS, {"question": question.strip(), "trials": [shown(key, each) for each in trials]})
        _write(part / KEY, key.write_form())
    kinds = [trial.kind for trial in trials]
    return Made(
        prompts=len(stems),
        pairs=kinds.count("pair"),
        repeats=kinds.count("repeat"),
        attention=kinds.count("attention"),
        left_out=left_out(systems, shared),
    )


def shown(key: Key, trial: Trial) -> dict[str, object]:
    """A trial as the server knows it; ``group`` keeps clips of one prompt apart in time."""
    return {
        "id": trial.id,
        "left": key.clip_name(trial.id, "left"),
        "right": key.clip_name(trial.id, "right"),
        "group": hashed("group", key.seed, trial.stem),
        "prompt": key.prompts[trial.stem],
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_clips(key: Key, systems: Sequence[System], folder: Path, *, fit: bool) -> None:
    """All clips under the names of their trials; each is encoded once."""
    by_name = {system.name: system for system in systems}
    by_stem: dict[str, list[Trial]] = {}
    for trial in key.trials.values():
        by_stem.setdefault(trial.stem, []).append(trial)
    for stem, trials in tqdm(by_stem.items(), desc="study", unit="prompt"):
        form = common_form(systems, stem, fit=fit)
        made: dict[tuple[str, bool], Path] = {}
        for trial in trials:
            for side in OTHER:
                what, path = (trial.system(side), trial.broken == side), folder / f"{key.clip_name(trial.id, side)}.mp4"
                if what in made:
                    shutil.copyfile(made[what], path)
                    continue
                clip = read_shown(by_name[what[0]].clips[stem], form, fit=fit)
                ENCODERS[".mp4"](path, broken(clip, key.seed) if what[1] else clip, form.fps, "")
                made[what] = path
    _pad(folder)


def broken(clip: np.ndarray, seed: int) -> np.ndarray:
    """A copy that nobody who looks prefers: in coarse squares, which change places, its frames out of order.

    Args:
        clip: uint8 [T, H, W, 3].
        seed: names the disorder.
    """
    order = np.random.Generator(np.random.PCG64(rng.key("study broken", seed)))
    _, height, width, _ = clip.shape
    rows, columns = (np.linspace(0, side - 1, min(side, MOSAIC)).round().astype(int) for side in (height, width))
    small = clip[order.permutation(len(clip))][:, rows][:, :, columns]
    down, across = len(rows), len(columns)
    small = small.reshape(len(clip), down * across, 3)[:, order.permutation(down * across)]
    small = small.reshape(len(clip), down, across, 3)
    return small[:, np.arange(height) * down // height][:, :, np.arange(width) * across // width]


def _pad(folder: Path) -> None:
    """Make all files as long as the longest, by a box that players skip: lengths tell blurred clips from sharp ones."""
    files = [*folder.iterdir()]
    longest = max(path.stat().st_size for path in files) + _FREE
    for path in files:
        missing = longest - path.stat().st_size
        with path.open("ab") as file:
            file.write(missing.to_bytes(4, "big") + b"free" + bytes(missing - _FREE))
