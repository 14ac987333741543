"""Systems of tiny clips, studies of them, raters with planted preferences, and a voting page that is served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from served import Site

from nearstep.server.guard import LOCAL, Door
from nearstep.server.listen import listening, server_of
from nearstep.server.voting import voting_app
from nearstep.stream.output import ENCODERS
from nearstep.study.make import make_study
from nearstep.study.plan import ATTENTION, OTHER, VOTES, Extent, Key, Trial, read_key
from nearstep.study.public import Public
from nearstep.study.systems import open_systems
from nearstep.study.votes import Vote, VoteFile

SIDE, FPS, FRAMES = 16, 8, 4
SEED = 7_654_321_987
EXTENT = ("prompts", "repeat", "attention")
Chooses = Callable[[np.random.Generator, Trial], str]
"""What a rater presses."""


def prompt(number: int) -> str:
    return f"a thing number {number}"


def write_clips(folder: Path, stems: Sequence[str], seed: int = 0, **form: int) -> Path:
    """Clips that differ from those of other seeds, with a comment as ours have, which names the maker."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    side = form.get("side", SIDE)
    for stem in stems:
        clip = draw.integers(0, 255, (form.get("frames", FRAMES), side, side, 3)).astype(np.uint8)
        said = json.dumps({"prompt": stem.rpartition("-")[0], "plan": f"plan-of-{folder.name}", "model": folder.name})
        ENCODERS[".mp4"](folder / f"{stem}.mp4", clip, form.get("fps", FPS), said)
    return folder


def new_study(folder: Path, names: Sequence[str] = ("ours", "theirs"), count: int = 20, **options: object) -> Path:
    stems = [f"{prompt(number)}-0" for number in range(count)]
    folders = [str(write_clips(folder / name, stems, seed)) for seed, name in enumerate(names)]
    extent = Extent(**{name: options.pop(name) for name in EXTENT if name in options})
    make_study(open_systems(folders), folder / "study", seed=SEED, extent=extent, **options)
    return folder / "study"


def prefers(strengths: dict[str, float], ties: float = 0.0) -> Chooses:
    """A rater who prefers by Bradley and Terry's odds, and sees what is broken."""

    def chooses(draw: np.random.Generator, trial: Trial) -> str:
        if trial.kind == ATTENTION:
            return OTHER[trial.broken]
        if draw.random() < ties:
            return "tie"
        left = 1 / (1 + np.exp(strengths[trial.right] - strengths[trial.left]))
        return "left" if draw.random() < left else "right"

    return chooses


def vote(study: Path, raters: Sequence[str], chooses: Chooses, seed: int = 0, most: int | None = None) -> Key:
    """Let raters vote as they would on the page: in their own order, through the file."""
    key, public, votes = read_key(study), Public.open(study), VoteFile(study / VOTES)
    for number, rater in enumerate(raters):
        draw = np.random.default_rng((seed, number))
        for shown in public.order(rater)[:most]:
            choice = chooses(draw, key.trials[shown.id])
            votes.add(Vote(trial=shown.id, rater=rater, choice=choice, seconds=1.0))
    return key


@contextmanager
def booth(study: Path, token: str | None = None) -> Iterator[Site]:
    """The voting page, served."""
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        door = Door(hosts=LOCAL, token=token, port=port)
        server = server_of(voting_app(Public.open(study), VoteFile(study / VOTES), door), connections=64)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Site(port, None, token)
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()
