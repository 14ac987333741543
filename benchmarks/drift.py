"""How a long stream holds: window after window of it judged as a clip, for several ways to look back.

    python benchmarks/drift.py --out docs/results/drift.json --picture docs/long.png

Only captions whose things stay in the picture for ever: at rest, bouncing, orbiting, swinging. Each window of nine
latent frames (33 pixel frames, as long as the clips of training) is held against the caption: things, their sizes and
the place, which a stream must keep; its look, (sharpness + fidelity) / 2; and whether what is to move still does. A
window need not see a bounce turn, so the kind of motion is not asked for. The renderer's own frames, judged alike, are
the ceiling.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from nearstep import CausalVideoPipeline
from nearstep.errors import NearstepError
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.statistics import difference, pooled
from nearstep.files import replacing
from nearstep.playground import PLAYGROUND
from nearstep.playground.judge.judge import Verdict
from nearstep.playground.world import Scene, render, sample_scenes
from nearstep.plots import new_figure
from nearstep.shapes import TEMPORAL_STRIDE, pixel_frames
from nearstep.stream.output import contact_sheet

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "window 6": {"window": 6, "sink": 0},
    "window 8, relative sink": {"window": 8, "sink": 1, "relative_sink": True},
    "window 8, sink where it is": {"window": 8, "sink": 1, "relative_sink": False},
}
"""Name -> how far back a stream looks; the first is what the others are compared with."""
DEFAULT = next(iter(SETTINGS))
KEPT = ("thing", "category", "size", "place")
"""Of these a caption states what it states."""
CEILING = "renderer"
WINDOW = 9
"""Latent frames."""
FRAMES = PLAYGROUND.frames
SHEET_FRAMES = 8  # from one frame kept for a sheet to the next
SHEET_COLUMNS = 25
SHEET_ROWS = 10

Scores = dict[str, Tensor]
"""Name -> [captions, windows]; NaN where it does not apply."""


def scenes_that_stay(count: int) -> list[tuple[Scene, str]]:
    """The first held-out scenes whose things never leave the picture."""
    indices = range(32 * count)
    scenes = sample_scenes(PLAYGROUND.config, CAPTIONS_SEED, indices)
    pairs = zip(scenes, PLAYGROUND.prompts(CAPTIONS_SEED, indices), strict=True)
    stay = (pair for pair in pairs if all(actor.motion != "slide" for actor in pair[0].actors))
    return list(itertools.islice(stay, count))


def windows(video: Tensor) -> Tensor:
    """Consecutive windows [W, FRAMES, 3, H, W] of a stream [T, 3, H, W].

    A later window's first latent frame is longer by what the codec's first frame lacks; its newest frames are kept.
    """
    step = TEMPORAL_STRIDE * WINDOW
    ends = range(step - TEMPORAL_STRIDE + 1, len(video) + 1, step)
    return torch.stack([video[end - FRAMES : end] for end in ends])


def scored(verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """What is asked of each window."""
    return {
        "kept": [_kept(one.agreement) for one in verdicts],
        "count": [float(one.agreement["count"]) for one in verdicts],
        "look": [sum(one.course) / len(one.course) for one in verdicts],
        "moves": [_moves(one) for one in verdicts],
    }


def _kept(agreement: Mapping[str, float]) -> float:
    stated = [agreement[name] for name in KEPT if name in agreement]
    return sum(stated) / len(stated)


def _moves(one: Verdict) -> float:
    rests = all(subject.motion == "rest" for subject in one.stated.subjects)
    return float("nan") if rests else float(one.dynamic)


def collect(rows: Sequence[Mapping[str, list[float]]]) -> Scores:
    """One row a caption."""
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def judged(video: Tensor, text: str) -> dict[str, list[float]]:
    """The scores of a stream's windows."""
    parts = windows(video)
    return scored(PLAYGROUND.judge(parts, [text] * len(parts)))


def drawn(pairs: Sequence[tuple[Scene, str]], latents: int) -> Scores:
    """The renderer's own."""
    frames = pixel_frames(latents)
    return collect([judged(render(PLAYGROUND.config, [scene], frames=frames)[0], text) for scene, text in pairs])


def streamed(
    pipe: CausalVideoPipeline, pairs: Sequence[tuple[Scene, str]], plan: str, latents: int, wishes: Mapping[str, Any]
) -> tuple[Scores, list[Tensor]]:
    """Scores of a stream for each caption, and every so many frames of each."""
    rows, glimpses, chunks = [], [], latents // pipe.transformer.config["chunk_frames"]
    for sample, (_, text) in enumerate(pairs):
        with pipe.open(text, plan, seed=0, sample=sample, **wishes) as session:
            video = torch.cat([part.video[0] for part in itertools.islice(session, chunks)])
        rows.append(judged(video.float().clamp(0, 1), text))
        glimpses.append(video[::SHEET_FRAMES].clone())
    return collect(rows), glimpses


def loses_from(values: Tensor) -> int | None:
    """First window from which on the mean of [N, W] lies surely below that of the first window, to the end."""
    below = [difference(column[None], values[None, :, 0]).high < 0 for column in values.T]
    after = next((index for index in reversed(range(len(below))) if not below[index]), -1) + 1
    return after if after < len(below) else None


def summary(scores: Scores, against: Scores | None) -> dict[str, Any]:
    """Means of each window with what is sure about them."""
    means = {name: values.nanmean(dim=0).tolist() for name, values in scores.items()}
    found: dict[str, Any] = {"means": {name: [_rounded(value) for value in row] for name, row in means.items()}}
    for name in ("kept", "look"):
        intervals = [pooled(column[None]) for column in scores[name].T]
        lost = loses_from(scores[name])
        found[name] = {
            "interval": [[round(one.low, 4), round(one.high, 4)] for one in intervals],
            "lower_from_frame": None if lost is None else lost * WINDOW,
        }
        if against:  # the last third of the stream, where drift has had its time
            late = len(scores[name].T) * 2 // 3
            gap = difference(*(one[name][:, late:].mean(dim=1)[None] for one in (scores, against)))
            found[name]["late_against_default"] = [round(gap.value, 4), round(gap.low, 4), round(gap.high, 4)]
    return found


def _rounded(value: float) -> float | None:
    """None where nothing was measured, which JSON has no number for."""
    return None if math.isnan(value) else round(value, 4)


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """What is kept, the look, and whether anything moves, along the stream; frames are latent ones."""
    figure = new_figure(13.0, 3.6)
    panels = {"kept": "things, sizes, place kept", "look": "look", "moves": "clips that move, of those that should"}
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for setting, one in found["settings"].items():
            means = one["means"][name]
            frames = [WINDOW * index for index in range(len(means))]
            ceiling = setting == CEILING
            means = [math.nan if value is None else value for value in means]
            axes.plot(frames, means, label=setting, **({"color": "black", "linestyle": ":"} if ceiling else {}))
            if name in one and not ceiling:
                low, high = zip(*one[name]["interval"], strict=True)
                axes.fill_between(frames, low, high, alpha=0.12)
        axes.set(xlabel="first latent frame of the window", ylabel=label, ylim=(0, 1.03))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)


def show(path: Path, pairs: Sequence[tuple[Scene, str]], glimpses: Sequence[Tensor]) -> None:
    """Frames along the first streams."""
    texts = [text for _, text in pairs[:SHEET_ROWS]]
    with replacing(path) as part:
        contact_sheet(glimpses[:SHEET_ROWS], texts, SHEET_COLUMNS).save(part, format="PNG")


def main(
    model: str = "playground",
    *,
    network: str = "transformer",
    plan: str = "4,1x",
    frames: int = 153,
    captions: int = 32,
    settings: tuple[str, ...] = tuple(SETTINGS),
    threads: int = 1,
    out: Path = Path("drift.json"),
    picture: Path | None = None,
    sheets: Path | None = None,
) -> dict[str, Any]:
    """Measure, print, and write.

    Args:
        model: "playground", a folder, or a hub id; of the playground's world.
        network: sub-folder of the network.
        plan: of every stream.
        frames: latent frames of a stream, a multiple of nine.
        captions: one stream for each, on the same noise under every setting.
        settings: which ways to look back; a model that was trained with a window needs but the first.
        threads: of the CPU.
        out: where the numbers go.
        picture: a plot of them.
        sheets: a folder for contact sheets, one a setting.
    """
    if frames < 2 * WINDOW or frames % WINDOW:
        raise NearstepError(f"--frames {frames}; give a multiple of {WINDOW}, at least {2 * WINDOW}")
    if settings[:1] != (DEFAULT,) or not set(settings) <= set(SETTINGS):
        raise NearstepError(f"--settings {' '.join(settings)}; give {DEFAULT}, and then any of {', '.join(SETTINGS)}")
    torch.set_num_threads(threads)
    pipe, pairs = CausalVideoPipeline.from_pretrained(model, transformer=network), scenes_that_stay(captions)
    ceiling = drawn(pairs, frames)
    measured, results = {}, {}
    for name in settings:
        measured[name], glimpses = streamed(pipe, pairs, plan, frames, SETTINGS[name])
        results[name] = summary(measured[name], None if name == DEFAULT else measured[DEFAULT])
        print(f"{name}: {line(results[name])}", flush=True)
        if sheets:
            show(sheets / f"{name.replace(',', '').replace(' ', '-')}.png", pairs, glimpses)
    results[CEILING] = summary(ceiling, None)
    print(f"{CEILING}: {line(results[CEILING])}")
    asked = {"model": model, "network": network, "plan": plan, "frames": frames, "captions": captions}
    found = {**asked, "settings": results}
    with replacing(out) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    if picture:
        draw(picture, found)
    return found


def line(one: Mapping[str, Any]) -> str:
    """First, middle and last window."""
    told = []
    for name, row in one["means"].items():
        shown = ["-" if value is None else f"{value:.3f}" for value in (row[0], row[len(row) // 2], row[-1])]
        told.append(" ".join([name, *shown]))
    ends = ", ".join(f"{name} lower from frame {one[name]['lower_from_frame']}" for name in ("kept", "look"))
    return "; ".join([*told, ends])


if __name__ == "__main__":
    tyro.cli(main)
