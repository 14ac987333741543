"""A world's judge as one more rater: it sees what raters see, and votes through the same file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from nearstep.data.videos import read_frames
from nearstep.errors import NearstepError
from nearstep.protocols import World
from nearstep.ranges import check_number
from nearstep.study.plan import VOTES
from nearstep.study.public import Public, ShownTrial
from nearstep.study.votes import JUDGE, Vote, VoteFile
from nearstep.words import unknown_words


def judge_study(study: Path, world: World, *, margin: float = 0.0, told: Callable[[int], None] = lambda _: None) -> int:
    """Vote on all trials that the judge has not voted on, and return how many there were.

    Args:
        study: the folder.
        world: judges; the clips are to be its own, with prompts that it understands.
        margin: totals that differ by no more are a tie.
        told: hears after each vote how many there are.

    Raises:
        NearstepError: if the clips are none of the world's; votes that were given before stay.
    """
    check_number("margin", margin, least=0, most=1)
    public, votes = Public.open(study), VoteFile(study / VOTES)
    waiting = public.left_of(JUDGE, votes.of(JUDGE), len(public.trials))
    words = set(world.vocabulary())
    for trial in waiting:
        _check_prompt(world, trial, words)
    for done, trial in enumerate(waiting, 1):
        left, right = _totals(public, world, trial)
        choice = "tie" if abs(left - right) <= margin else "left" if left > right else "right"
        votes.add(Vote(trial=trial.id, rater=JUDGE, choice=choice, seconds=0.0))
        told(done)
    return len(waiting)


def _check_prompt(world: World, trial: ShownTrial, words: set[str]) -> None:
    if trial.prompt is None:
        raise NearstepError("the judge needs to know what clips are to show; name them PROMPT-INDEX.mp4 and make again")
    if unknown := [word for word in re.findall(r"[a-z0-9]+", trial.prompt.lower()) if word not in words]:
        raise NearstepError(f"{world.name} does not know the word {unknown_words(unknown[:1], words)}")


def _totals(public: Public, world: World, trial: ShownTrial) -> list[float]:
    """How good each clip is."""
    clips = [read_frames(public.clip(name), world.frames + 1) for name in (trial.left, trial.right)]
    video = torch.stack([torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255 for clip in clips])
    return [verdict.total for verdict in world.judge(video, [trial.prompt or ""] * 2)]
