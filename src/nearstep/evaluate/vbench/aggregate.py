"""How sure a VBench score is: prompts are resampled, together for all dimensions that are scored on their videos.

The videos of a prompt stay together, and a group's dimensions see the same resample, so what they share is in the
interval of the total. Groups are resampled apart: their numbers of prompts are part of the protocol. What is resampled
are the values of the videos; where they do not add up to the score that a file states, the interval is moved to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import RESAMPLES, Interval, counts, tails
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, HEADS, Head, normalised, sums
from nearstep.evaluate.vbench.results import Score, System

APART = 1e-4
"""A stated score and the mean of its videos that differ by more are named."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, and its interval where values of videos are known."""

    value: float
    interval: Interval | None = None

    @property
    def outside(self) -> bool:
        """Whether a normalised score is below 0 or above 1."""
        return not 0 <= self.value <= 1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Values of a system, and the same in every resample."""

    values: dict[str, float]
    """Dimension -> its score, not normalised."""
    draws: dict[str, Tensor]
    """Dimension -> [R]; those without values of videos are not there."""

    def dimension(self, name: str) -> Estimate:
        """A dimension's normalised score; that of another scorer as it is."""
        value, draws = self.values[name], self.draws.get(name)
        if name in DIMENSIONS:
            value, draws = normalised(name, value), None if draws is None else normalised(name, draws)
        return _estimate(value, draws)

    def heads(self) -> dict[Head, Estimate]:
        """Quality, semantic and total of the dimensions that are there."""
        values, draws = self.sums()
        return {head: _estimate(values[head], draws.get(head)) for head in HEADS if head in values}

    def sums(self) -> tuple[dict[Head, float], dict[Head, Tensor]]:
        """Values and resamples of the sums; one that lacks a dimension's resamples has none."""
        names = [name for name in self.values if name in DIMENSIONS]
        values = sums({name: normalised(name, self.values[name]) for name in names})
        known = {name: normalised(name, self.draws[name]) for name in names if name in self.draws}
        lacking = {DIMENSIONS[name].part for name in names if name not in known}
        draws: dict[Head, Tensor] = {}
        for head, each in sums(known).items():
            if not lacking or head not in {*lacking, "total"}:
                draws[head] = each
        return values, draws


def _estimate(value: float, draws: Tensor | None) -> Estimate:
    if draws is None:
        return Estimate(value=value)
    low, high = tails(draws[:, None])
    return Estimate(value=value, interval=Interval(value, float(low), float(high)))


def draw(scores: Mapping[str, Score], *, prompts: Mapping[str, frozenset[str]] | None = None, seed: int = 0) -> Drawn:
    """Resample all dimensions of a system.

    Args:
        scores: dimension -> its score.
        prompts: dimension -> the prompts to keep; by default all, with the scores that the files state.
        seed: names the resamples; equal prompts are resampled alike.
    """
    values, draws = {name: score.score for name, score in scores.items()}, {}
    for group, names in _groups(scores).items():
        rows = {name: _totals(scores[name], None if prompts is None else prompts[name]) for name in names}
        rows = {name: row for name, row in rows.items() if row}
        order = sorted({prompt for row in rows.values() for prompt in row})
        if not order:
            continue
        weights = counts(len(order), seed=rng.key("vbench", group, seed), resamples=RESAMPLES)
        for name, row in rows.items():
            pairs = torch.tensor([row.get(prompt, (0.0, 0.0)) for prompt in order], dtype=torch.float64)
            mean = float(pairs[:, 0].sum() / pairs[:, 1].sum())
            if prompts is not None:
                values[name] = mean
            above, below = (weights @ pairs).unbind(dim=1)
            # A resample may miss every prompt that has a value; it then says nothing against the score.
            drawn = torch.where(below > 0, above / below.clamp(min=1e-12), mean)
            draws[name] = drawn + (values[name] - mean)
    return Drawn(values=values, draws=draws)


def _groups(scores: Mapping[str, Score]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in scores:
        found.setdefault(DIMENSIONS[name].group if name in DIMENSIONS else name, []).append(name)
    return found


def _totals(score: Score, kept: frozenset[str] | None) -> dict[str, tuple[float, float]]:
    # Prompt -> weighted sum of its videos' values, and the weights' sum.
    found: dict[str, tuple[float, float]] = {}
    for video in score.videos:
        if video.weight > 0 and (kept is None or video.prompt in kept):
            above, below = found.get(video.prompt, (0.0, 0.0))
            found[video.prompt] = (above + video.value * video.weight, below + video.weight)
    return found


def apart(score: Score) -> str | None:
    """A line where the mean over videos is not the score that is stated."""
    below = sum(video.weight for video in score.videos)
    if not below:
        return None
    mean = sum(video.value * video.weight for video in score.videos) / below
    if abs(mean - score.score) <= APART:
        return None
    return f"{score.name}: {score.file.name} states {score.score:.4f}, its videos' mean is {mean:.4f}"


def paired(first: System, second: System, *, seed: int = 0) -> tuple[dict[str, Interval], dict[str, int]]:
    """Differences ``first - second`` on the prompts that both have, normalised, and how many prompts those are.

    Raises:
        NearstepError: if the two share no dimension with values of videos, or no prompt; or are of two protocols.
    """
    if first.protocol != second.protocol:
        long, short = (first, second) if first.protocol else (second, first)
        raise NearstepError(
            f"{long.name} is scored by clips ({long.protocol}) and {short.name} by whole videos; score both one way"
        )
    shared: dict[str, frozenset[str]] = {}
    for name in (name for name in first.scores if name in second.scores):
        both = frozenset(_totals(first.scores[name], None)) & frozenset(_totals(second.scores[name], None))
        if both:
            shared[name] = both
    if not shared:
        raise NearstepError(f"{first.name} and {second.name} share no video's prompt; score both on the same prompts")
    ours, theirs = (
        draw({name: system.scores[name] for name in shared}, prompts=shared, seed=seed) for system in (first, second)
    )
    found: dict[str, Interval] = {}
    (first_values, first_draws), (second_values, second_draws) = ours.sums(), theirs.sums()
    for head in HEADS:
        if head in first_draws and head in second_draws:
            pair = [first_values[head], second_values[head]]
            found[head] = _difference(pair, [first_draws[head], second_draws[head]])
    for name in shared:
        scale = normalised(name, 1.0) - normalised(name, 0.0) if name in DIMENSIONS else 1.0
        pair = [each.values[name] * scale for each in (ours, theirs)]
        found[name] = _difference(pair, [each.draws[name] * scale for each in (ours, theirs)])
    return found, {name: len(prompts) for name, prompts in shared.items()}


def _difference(values: Sequence[float], draws: Sequence[Tensor]) -> Interval:
    low, high = tails((draws[0] - draws[1])[:, None])
    return Interval(values[0] - values[1], float(low), float(high))
