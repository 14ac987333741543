"""Commands that are killed at random moments, and given again: they end as if nothing had happened.

One process imports everything and forks for each command, so that kills fall into the work and not into imports.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nearstep.stream.recording import Recording
from nearstep.train.health import read_metrics

RED, BLUE = "a small red ball slides left on snow", "the large blue football bounces"
PROMPTS = [RED, BLUE, "a red ball", "the snow", "a small blue football"]
KILLS = 30

NURSERY = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import nearstep.cli.convert, nearstep.cli.generate, nearstep.cli.prepare, nearstep.cli.stream, nearstep.cli.train
import nearstep.models.convert, nearstep.models.card, nearstep.stream.pipeline, nearstep.recipes.wan
import av, tqdm, nearstep.train.loop, diffusers.models.model_loading_utils
from nearstep.cli.main import main
for line in sys.stdin:
    asked = json.loads(line)
    began, child = time.monotonic(), os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(asked["folder"])
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["nearstep", *asked["arguments"]]
        sys.exit(main())
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
        if not ended and asked["after"] is not None and time.monotonic() - began > asked["after"]:
            os.kill(child, asked["signal"])
            asked["after"] = None
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)
"""


class Nursery:
    """Runs commands, and kills them."""

    def __init__(self) -> None:
        source = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=source
        )

    def run(
        self, folder: Path, arguments: list[str], number: int = signal.SIGKILL, after: float | None = None
    ) -> tuple[int, float]:
        """Exit code, as shells count, and seconds of a command; it gets the signal after so many."""
        assert self.process.stdin and self.process.stdout
        asked = {"folder": str(folder), "arguments": arguments, "signal": int(number), "after": after}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return (code if code >= 0 else 128 - code), seconds

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# --- what is made, and whether it is the same -------------------------------------------------------------------------


def frames(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same, byte by byte."""
    names = [sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()) for top in (one, other)]
    return names[0] == names[1] and not filecmp.cmpfiles(one, other, names[0], shallow=False)[1]


def same_training(one: Path, other: Path) -> bool:
    weights, others = (sorted((top / "run/model").rglob("*.safetensors")) for top in (one, other))
    assert [path.relative_to(one) for path in weights] == [path.relative_to(other) for path in others]
    for mine, theirs in zip(map(load_file, weights), map(load_file, others), strict=True):
        assert mine.keys() == theirs.keys()
        if not all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items()):
            return False
    steps = [[row["step"] for row in read_metrics(top / "run/metrics.jsonl")] for top in (one, other)]
    previews = [sorted(path.name for path in (top / "run").glob("**/*.png")) for top in (one, other)]
    return steps[0] == steps[1] and previews[0] == previews[1]


def same_stream(one: Path, other: Path) -> bool:
    takes = [Recording.load(top / "take.jsonl") for top in (one, other)]
    return takes[0] == takes[1] and np.array_equal(frames(one / "a.mp4"), frames(other / "a.mp4"))


@dataclass(frozen=True)
class Kind:
    """A command, and what holds of it."""

    arguments: list[str]
    same: Callable[[Path, Path], bool]
    again: tuple[str, ...] = ()
    """What the command needs to be given again where it was cut off."""
    interrupted: tuple[int, ...] = (130,)
    """Exit codes after Ctrl-C."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def kinds(nursery: Nursery, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("kinds")
    model, prompts, latents = ["--model", str(model_folder)], folder / "prompts.txt", folder / "latents"
    prompts.write_text("\n".join(PROMPTS))
    teacher = ["--plan", "4", "--guidance", "3", "--seed", "5", "--shard", "1", *model]
    prepare = ["prepare", "--from-teacher", str(prompts)]
    assert nursery.run(folder, [*prepare, str(latents), *teacher])[0] == 0, (folder / "said.txt").read_text()
    loop = ["--loop.steps", "12", "--loop.save-every", "2", "--loop.log-every", "1", "--loop.preview-every", "4"]
    train = ["--loop.folder", "run", "--batch", "2", "--chunk-frames", "2", "--latents.folder", str(latents)]
    train += ["--text-cache", "text"]
    return {
        "train": Kind(["train", "wan.forcing", *model, *train, *loop], same_training),
        "prepare": Kind(
            [*prepare, "latents", *teacher], lambda one, other: same_files(one / "latents", other / "latents")
        ),
        "convert": Kind(
            ["convert", str(model_folder), "new", "--dtype", "bfloat16"],
            lambda one, other: same_files(one / "new", other / "new"),
        ),
        "stream": Kind(
            ["stream", RED, "-o", "a.mp4", "--log", "take.jsonl", "--chunks", "40", "--at", "9", BLUE, "--seed", "3",
             "--plan", "2,1x", *model],
            same_stream, again=("--overwrite",), interrupted=(0, 130),
        ),
        "generate": Kind(
            ["generate", *PROMPTS, "-o", "clips/", "--format", "webp", "--seed", "3", "--samples", "3", *model],
            lambda one, other: same_files(one / "clips", other / "clips"),
        ),
    }  # fmt: skip


def codes(kind: Kind, number: int) -> tuple[int, ...]:
    """Exit codes of a command that got a signal, as the documents say."""
    return {signal.SIGKILL: (137,), signal.SIGTERM: (143,), signal.SIGINT: kind.interrupted}[signal.Signals(number)]


def killed_and_again(nursery: Nursery, name: str, kind: Kind, folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill a command so often, in a new folder each time, and give it again."""
    draw, counts = random.Random(f"{seed} {name}"), Counter[str]()
    whole, place = folder / f"{name}-whole", folder / f"{name}-cut"
    whole.mkdir()
    code, seconds = nursery.run(whole, kind.arguments)
    assert code == 0, (whole / "said.txt").read_text()
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    while sum(counts[number.name] for number in signals) < kills:
        number = signals[sum(counts[each.name] for each in signals) % len(signals)]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        after = draw.uniform(0.02, 1.0) * seconds
        code, took = nursery.run(place, kind.arguments, number, after)
        sys.stdout.write(f"{name} {number.name} {after:.1f}/{seconds:.1f} s: {code}\n")
        about = f"{name}, {number.name} after {after:.2f} of {seconds:.2f} s: code {code}\n"
        about += (place / "said.txt").read_text()
        if took < after or (code == 0 and 0 not in codes(kind, number)):  # it was done, or as good as
            counts["done first"], seconds = counts["done first"] + 1, min(seconds, took)
            assert code == 0 and kind.same(whole, place), about
            continue
        assert code in codes(kind, number), about
        assert "Traceback" not in about, about
        counts[number.name] += 1
        counts["left parts"] += bool(list(place.rglob(".*.part")))
        if not (place / "new").exists():  # a folder that convert has made is whole, and it makes none anew
            code, _ = nursery.run(place, [*kind.arguments, *kind.again])
            assert code == 0, about + (place / "said.txt").read_text()
        assert kind.same(whole, place), about
        assert not list(place.rglob(".*.part")), about
    return counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_is_killed_at_a_random_moment_ends_as_if_it_had_not_been(
    nursery: Nursery, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    told: dict[str, Any] = {}
    for name, kind in kinds.items():
        told[name] = killed_and_again(nursery, name, kind, tmp_path, KILLS // len(kinds), seed=1)
        sys.stdout.write(f"{name}: {dict(told[name])}\n")
    assert sum(counts[each] for counts in told.values() for each in ("SIGKILL", "SIGTERM", "SIGINT")) == KILLS
