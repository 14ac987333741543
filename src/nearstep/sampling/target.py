"""What is asked of a system: a prompt, the name of its noise, a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Target:
    """One clip to make."""

    prompt: str
    index: int
    """Names its noise, with the seed."""
    path: Path


def by_prompt(targets: Sequence[Target]) -> list[list[Target]]:
    """Neighbours that share a prompt, together: what is made of its text is made once."""
    return [list(group) for _, group in groupby(targets, key=lambda target: target.prompt)]
