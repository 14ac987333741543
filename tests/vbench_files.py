"""A small VBench for tests: a prompt file of the official shape, with our own words in it."""

from __future__ import annotations

import json
from pathlib import Path

from nearstep.evaluate.vbench.dimensions import GROUPS

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
