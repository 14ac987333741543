"""A small VBench for tests: a prompt file of the official shape, with our own words in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from nearstep.evaluate.vbench.dimensions import DIMENSIONS, GROUPS

LONG = "a ball that " + "slides and " * 17 + "stops."
TWICE = "a red ball, oil painting"


def entries(each: int = 3) -> list[dict]:
    """``each`` prompts a group, in the order of the groups; the last two groups share one more."""
    found = [
        {"prompt_en": f"a {group.replace('_', ' ')} ball {number}", "dimension": list(names)}
        for group, names in GROUPS.items()
        for number in range(each)
    ]
    found[0]["prompt_en"], found[1]["prompt_en"] = LONG, "The ball stops."
    return [*found, *({"prompt_en": TWICE, "dimension": list(names)} for names in list(GROUPS.values())[-2:])]


def write_info(folder: Path, rows: list[dict] | None = None) -> Path:
    """The file as the official package holds it."""
    path = folder / "VBench_full_info.json"
    path.write_text(json.dumps(entries() if rows is None else rows))
    return path


Value = Callable[[str, int, int], float]


def write_scores(
    folder: Path,
    score: Callable[[str], float],
    *,
    prompts: int = 4,
    value: Value | None = None,
    names: Iterable[str] = DIMENSIONS,
) -> None:
    """A file for each dimension as the official package writes it: a score, and what 5 videos a prompt have.

    Args:
        folder: made if need be.
        score: dimension -> its score, where the videos' own values do not make it.
        prompts: of each group.
        value: (dimension, prompt, index) -> what a video's row says; by default the score of its dimension.
        names: the dimensions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        scale, group = DIMENSIONS[name].scale, DIMENSIONS[name].group
        rows = [
            {
                "video_path": f"videos/a {group} ball {prompt}-{index}.mp4",
                "video_results": value(name, prompt, index) if value else score(name) * scale,
            }
            for prompt in range(prompts)
            for index in range(5)
        ]
        mean = sum(row["video_results"] for row in rows) / len(rows) / scale
        (folder / f"{name}_eval_results.json").write_text(json.dumps({name: [mean, rows]}))
