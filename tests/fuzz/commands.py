"""Every option of every command with values that nobody means, and paths that are none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from tests.fuzz.cases import Case, command
from tests.fuzz.damage import SMALL, WORDS, odd_text
from tests.fuzz.kit import Kit
from tests.tiny import PROMPT

Line = Callable[[Kit, Path], list[object]]

WORK = (
    "--chunks",
    "--samples",
    "--repeats",
    "--captions",
    "--loop.steps",
    "--steps",
    "--loop.minutes",
    "--clips-per-video",
)
"""Options of which a large number is honest work, and not a mistake."""
MINUTES = ("--compile", "--help", "--no-compile", "--workers", "--list-captions", "--cells", "--runs", "--seeds")
"""What takes minutes, or processes of its own, when it is right."""


def _plan(kit: Kit, folder: Path) -> list[object]:
    return ["plan-memory", "playground.forcing", "--model", kit.model, "--network", "transformer", "--batch", 1]


def _study(kit: Kit, folder: Path) -> list[object]:
    other = kit.copy_of(kit.videos, folder)[0]
    return ["study", "make", f"one={kit.videos}", f"two={other}", "--attention", 0, "-o", "study/"]


LINES: dict[str, Line] = {
    "generate": lambda kit, _: [
        *("generate", PROMPT, "--model", kit.model, "--plan", 1, "--frames", 5, "--seed", 1, "-o", "x.png")
    ],
    "stream": lambda kit, _: [
        *("stream", PROMPT, "--model", kit.model, "--plan", 1, "--chunks", 1, "--seed", 1, "-o", "x.mp4")
    ],
    "compare": lambda kit, _: ["compare", PROMPT, "--model", kit.model, "--plans", 1, "--seed", 1, "-o", "c/"],
    "info": lambda kit, _: ["info", kit.model],
    "bench": lambda kit, _: ["bench", kit.model, "--plans", 1, "--repeats", 1, "--frames", 5, "--threads", 1],
    "calibrate": lambda kit, folder: [
        *("calibrate", kit.copy_of(kit.model, folder)[0], "--prompts-file", kit.videos / "0.txt"),
        *("--captions", 1, "--chunks", 1, "--batch", 1),
    ],
    "convert": lambda kit, _: ["convert", kit.model, "out"],
    "evaluate": lambda kit, _: ["evaluate", kit.model, "--captions", 2, "--plans", 1],
    "prepare": lambda kit, _: ["prepare", kit.videos, "lat", "--model", kit.model, "--workers", 0],
    "prepare --from-teacher": lambda kit, _: [
        *("prepare", kit.videos / "0.txt", "lat", "--model", kit.model, "--from-teacher", "--plan", 1, "--frames", 5)
    ],
    "sample": lambda kit, _: [
        *("sample", kit.videos / "0.txt", "--model", kit.model, "--plan", 1, "--frames", 5, "--samples", 1, "-o", "s/")
    ],
    "study make": _study,
    "vbench cut": lambda kit, _: ["vbench", "cut", kit.videos, "-o", "long/"],
    "train": lambda kit, folder: kit.training(folder / "run", steps=1),
    "plan-memory": _plan,
    "ablate": lambda kit, _: ["ablate", "--cells", "teacher", "--model", kit.model, "--captions", 2],
    "report": lambda kit, _: ["report", kit.run, "--out", "r.html"],
}
"""Command -> a line of it that works, quickly."""
OFTEN = {"bench": 1, "ablate": 1, "plan-memory": 2, "evaluate": 3, "train": 4}
"""How often a command is drawn, where it is slow; others 6 times."""


@cache
def options_of(name: str) -> tuple[str, ...]:
    """All options of a command, as its help has them."""
    line = {"train": ["train", "playground.forcing"], "plan-memory": ["plan-memory", "playground.forcing"]}
    words = name.partition(" --")[0].split()
    text = command(*line.get(name, words), "--help")
    found = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][\w.-]*", text))
    return tuple(option for option in found if option not in MINUTES)


def options(draw: Random, kit: Kit, folder: Path) -> Case:
    """A line that works, with an option or two that do not."""
    name = draw.choice([name for name in LINES for _ in range(OFTEN.get(name, 6))])
    line, odd = LINES[name](kit, folder), []
    for _ in range(draw.choice((1, 1, 1, 2))):
        option = draw.choice(options_of(name))
        values = [_value(draw, option) for _ in range(draw.choice((1, 1, 1, 1, 0, 2)))]
        odd += [option, *values]
    return Case(what=" ".join(map(str, [name, *odd]))[:200], act=lambda: command(*line, *odd), judge=nothing_odd_left)


def _value(draw: Random, option: str) -> str:
    if option in WORK:
        return draw.choice((*SMALL[:5], "-1", "nan", "inf", "1.5", "x", "", "-1000000007", "9" * 40))
    return odd_text(draw)


def nothing_odd_left(_: object) -> str | None:
    """What is wrong with the files of the folder: a part that was not taken away."""
    left = [path for path in Path().rglob("*") if path.name.endswith(".part")]
    return f"{left[0]} was left" if left else None


PLACES: dict[str, Line] = {
    "generate --model": lambda *_: ["generate", PROMPT, "-o", "x.png", "--model"],
    "generate -o": lambda kit, _: ["generate", PROMPT, "--model", kit.model, "--plan", 1, "--frames", 5, "-o"],
    "generate --prompts-file": lambda kit, _: ["generate", "--model", kit.model, "-o", "c/", "--prompts-file"],
    "generate --student": lambda kit, _: ["generate", PROMPT, "--model", kit.model, "-o", "x.png", "--student"],
    "generate --lora": lambda kit, _: ["generate", PROMPT, "--model", kit.model, "-o", "x.png", "--lora"],
    "generate --tiny-decoder": lambda kit, _: [*LINES["generate"](kit, Path()), "--tiny-decoder"],
    "generate --text-cache": lambda kit, _: [*LINES["generate"](kit, Path()), "--text-cache"],
    "generate --sheet": lambda kit, _: [*LINES["generate"](kit, Path()), "--sheet"],
    "stream --image": lambda kit, _: [*LINES["stream"](kit, Path()), "--image"],
    "stream --video": lambda kit, _: [*LINES["stream"](kit, Path()), "--video"],
    "stream --log": lambda kit, _: [*LINES["stream"](kit, Path()), "--log"],
    "stream --replay": lambda kit, _: ["stream", "--model", kit.model, "-o", "x.mp4", "--replay"],
    "stream -o": lambda kit, _: ["stream", PROMPT, "--model", kit.model, "--chunks", 1, "-o"],
    "info": lambda *_: ["info"],
    "convert SRC": lambda *_: ["convert", "--to", "official", "out"],
    "convert DST": lambda kit, _: ["convert", kit.model],
    "convert --base": lambda kit, _: ["convert", kit.model, "out", "--base"],
    "convert --results": lambda kit, _: ["convert", kit.model, "out", "--results"],
    "prepare SRC": lambda kit, _: ["prepare", "--model", kit.model, "--workers", 0, "lat"],
    "prepare DST": lambda kit, _: ["prepare", kit.videos, "--model", kit.model, "--workers", 0],
    "evaluate": lambda *_: ["evaluate", "--captions", 2],
    "evaluate --out": lambda kit, _: ["evaluate", kit.videos, "--out"],
    "sample": lambda kit, _: ["sample", "--model", kit.model, "--plan", 1, "--samples", 1, "-o", "s/"],
    "sample -o": lambda kit, _: [
        *("sample", kit.videos / "0.txt", "--model", kit.model, "--plan", 1, "--frames", 5, "--samples", 1, "-o")
    ],
    "study make": lambda kit, _: ["study", "make", "-o", "study/", kit.videos],
    "study make -o": lambda kit, folder: _study(kit, folder)[:-1],
    "study judge": lambda *_: ["study", "judge"],
    "study report": lambda *_: ["study", "report"],
    "study serve": lambda *_: ["study", "serve"],
    "vbench cut": lambda *_: ["vbench", "cut", "-o", "long/"],
    "vbench cut -o": lambda kit, _: ["vbench", "cut", kit.videos, "-o"],
    "vbench score": lambda *_: ["vbench", "score"],
    "vbench table": lambda *_: ["vbench", "table"],
    "table": lambda *_: ["table"],
    "report": lambda *_: ["report"],
    "report --reference": lambda kit, _: ["report", kit.run, "--out", "r.html", "--reference"],
    "report --out": lambda kit, _: ["report", kit.run, "--out"],
    "train --model": lambda *_: ["train", "playground.forcing", "--loop.folder", "run", "--model"],
    "train --latents.folder": lambda kit, folder: [*kit.training(folder / "run", steps=1), "--latents.folder"],
    "train --loop.folder": lambda kit, folder: [*kit.training(folder / "run", steps=1), "--loop.folder"],
    "train --lora-start": lambda kit, folder: [
        *kit.training(folder / "run", steps=1),
        "--lora-rank",
        1,
        "--lora-start",
    ],
    "bench --json": lambda kit, _: ["bench", kit.model, "--plans", "x", "--json"],
}
"""Lines that end before a path."""


def paths(draw: Random, kit: Kit, folder: Path) -> Case:
    """A path that is none, is of something else, or cannot be opened."""
    things: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(folder / "pipe"),
        "loop": lambda: (folder / "loop").symlink_to("loop"),
        "dangling": lambda: (folder / "dangling").symlink_to("nothing"),
        "folder": (folder / "folder").mkdir,
        "folder.png": (folder / "folder.png").mkdir,
        "folder.mp4": (folder / "folder.mp4").mkdir,
        "empty.txt": (folder / "empty.txt").touch,
        "noise.mp4": lambda: (folder / "noise.mp4").write_bytes(draw.randbytes(300)),
        "noise.safetensors": lambda: (folder / "noise.safetensors").write_bytes(draw.randbytes(300)),
        "noise.pt": lambda: (folder / "noise.pt").write_bytes(draw.randbytes(300)),
        "socket": lambda: _socket(folder),
    }
    name, thing = draw.choice([*PLACES]), draw.choice([*things, *things, ""])
    if thing:
        things[thing]()
        place = draw.choice((thing, thing, f"{thing}/", f"{thing}/x", f"./{thing}/../x.mp4"))
    else:
        place = draw.choice(
            (*WORDS, "owner/name", "a/b/c", f"{'x' * 200}.mp4", "\udc80.png", "x\n.png", "no/where/at/all")
        )
    line = PLACES[name](kit, folder)
    return Case(what=f"{name} {place!r}"[:200], act=lambda: command(*line, place), judge=nothing_odd_left)


def _socket(folder: Path) -> None:
    import socket

    here = Path.cwd()
    os.chdir(folder)  # a socket's path has 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("socket")
    finally:
        os.chdir(here)
