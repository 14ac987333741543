"""Prompts and chunks of streams, for the tests of sessions."""

from __future__ import annotations

import itertools

import torch

from nearstep.stream.results import ChunkVideo
from nearstep.stream.session import Session

RED = "a large red apple slides left slowly on snow"
BLUE = "a small green frog drifts up quickly on a meadow"


def take(session: Session, count: int) -> list[ChunkVideo]:
    return list(itertools.islice(session, count))


def video(frames: list[ChunkVideo]) -> torch.Tensor:
    return torch.cat([part.video for part in frames], dim=1)


def equal(one: list[ChunkVideo], other: list[ChunkVideo]) -> bool:
    return len(one) == len(other) and torch.equal(video(one), video(other))
