"""Whether a stream obeys when its prompt changes: what the new caption changes is shown, what both share is kept.

    python benchmarks/obedience.py MODEL --plan 4,1x --out docs/results/obedience.json

Stories of the playground: a scene, and the same with one attribute changed or all of it. The first caption holds
for three chunks, then the second; two clips as long as those of training, from the change on and from one chunk later,
are judged by the second caption. *Applied*: every statement in which the captions differ is shown. *Kept*: so is every
statement that they share. The renderer's own stories, judged alike, are the ceiling.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from nearstep import CausalVideoPipeline
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.statistics import pooled
from nearstep.files import replacing
from nearstep.playground import PLAYGROUND, Playground
from nearstep.playground.judge.judge import Verdict
from nearstep.playground.parsing import Stated, parse
from nearstep.shapes import pixel_frames
from nearstep.stream.output import contact_sheet

BEFORE = 3
"""Chunks under the first caption."""
DELAYS = (0, 1)
"""Chunks from the change to the windows that are judged."""
CEILING = "renderer"
SHEET_STORIES = 8

Statement = tuple[str, int, str]
"""Attribute, whose it is, value."""


def statements(stated: Stated) -> list[Statement]:
    """What a caption states, attribute by attribute in the order of the judge's marks."""
    found = [(name, number, value) for number, one in enumerate(stated.subjects) for name, value in one.stated.items()]
    found.append(("count", 0, str(len(stated.subjects))))
    found += [(name, 0, value) for name in ("place", "relation") if (value := getattr(stated, name))]
    return found


def marked(verdict: Verdict) -> dict[Statement, bool]:
    """Statement -> whether it is shown."""
    marks = {name: iter(values) for name, values in verdict.comparison.marks.items()}
    return {one: bool(next(marks[one[0]])) for one in statements(verdict.stated)}


def obeyed(before: str, verdict: Verdict) -> tuple[bool, bool]:
    """Whether what changed from the caption ``before`` is applied, and whether what did not is kept."""
    shared, shown = set(statements(parse(before))), marked(verdict)
    applied = all(right for one, right in shown.items() if one not in shared)
    return applied, all(right for one, right in shown.items() if one in shared)


def stories(world: Playground, count: int, start: int) -> tuple[list[int], list[tuple[str, str]]]:
    """The first held-out stories whose captions differ in what they state, and those captions."""
    numbers: list[int] = []
    captions: list[tuple[str, str]] = []
    first = 0
    while len(numbers) < count:
        rows = range(first, first + count)
        for row, (before, after) in zip(rows, world.story_prompts(CAPTIONS_SEED, rows, (start,)), strict=True):
            if set(statements(parse(before))) != set(statements(parse(after))):
                numbers.append(row)
                captions.append((before, after))
        first += count
    return numbers[:count], captions[:count]


def summary(videos: Sequence[Tensor], captions: Sequence[tuple[str, str]], starts: Sequence[int]) -> dict[str, Any]:
    """Delay -> shares of the stories that apply and keep, with their intervals."""
    found: dict[str, Any] = {}
    for delay, start in zip(DELAYS, starts, strict=False):
        clips = torch.stack([video[start : start + PLAYGROUND.frames] for video in videos])
        verdicts = PLAYGROUND.judge(clips, [after for _, after in captions])
        pairs = [obeyed(before, verdict) for (before, _), verdict in zip(captions, verdicts, strict=True)]
        for name, values in zip(("applied", "kept"), zip(*pairs, strict=True), strict=True):
            share = pooled(torch.tensor([values], dtype=torch.float64))
            found[f"{name} after {delay}"] = [round(value, 4) for value in (share.value, share.low, share.high)]
    return found


def main(
    model: Annotated[str, tyro.conf.Positional],
    *,
    plan: tuple[str, ...] = ("4,1x",),
    transformer: str = "transformer",
    captions: int = 64,
    recommit: bool | None = None,
    out: Path = Path("obedience.json"),
    picture: Path | None = None,
) -> None:
    """Measure, write and print.

    Args:
        model: a model folder of the playground's world.
        plan: the streams' plans.
        transformer: which network of the model.
        captions: held-out stories.
        recommit: whether a new prompt commits the frames in sight anew; by default as the model says.
        out: where the figures go.
        picture: a contact sheet of the first stories under the first plan.
    """
    pipe = CausalVideoPipeline.from_pretrained(model, transformer=transformer)
    chunk = pipe.transformer.config["chunk_frames"]
    starts = [pixel_frames(chunk * (BEFORE + delay)) for delay in DELAYS]
    numbers, pairs = stories(PLAYGROUND, captions, starts[0])
    frames = starts[-1] + PLAYGROUND.frames
    drawn = PLAYGROUND.stories(CAPTIONS_SEED, numbers, (starts[0],), frames=frames)
    found = {CEILING: summary([*drawn], pairs, starts)}
    for number, text in enumerate(plan):
        videos = []
        for sample, (before, after) in enumerate(pairs):
            with pipe.open(before, text, seed=0, sample=sample, recommit=recommit) as session:
                parts = [part.video[0] for part in itertools.islice(session, BEFORE)]
                session.change(prompt=after)
                while sum(map(len, parts)) < frames:
                    parts.append(next(session).video[0])
            videos.append(torch.cat(parts)[:frames].float().clamp(0, 1))
        found[text] = summary(videos, pairs, starts)
        if picture and not number:
            shown, said = videos[:SHEET_STORIES], [" -> ".join(pair) for pair in pairs[:SHEET_STORIES]]
            with replacing(picture) as path:
                contact_sheet([video[::8] for video in shown], said, len(shown[0][::8])).save(path, format="PNG")
    with replacing(out) as path:
        path.write_text(json.dumps({"model": model, "captions": captions, "figures": found}, indent=1))
    for name, figures in found.items():
        print(name)
        for key, (value, low, high) in figures.items():
            print(f"  {key}: {100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    tyro.cli(main)
