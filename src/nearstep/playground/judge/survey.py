"""What clips show as a set, and no clip shows by itself: their variety, and how many of them move.

Captions that name a category leave open which of its things is shown. Variety holds what clips show there against
real clips, in which each is as likely, apart for each choice of answers:

    recall = sum over things of min(p_shown, p_real).

Few clips miss some things by chance, so recall is divided by what as many real clips would have on average. A model
that always shows the same fruit out of six has about a sixth. A thing of another category is no answer:
agreement counts that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor

from nearstep import rng
from nearstep.playground.judge.judge import Verdict

_DRAWS = 1000


def survey(verdicts: Sequence[Verdict], names: Sequence[str]) -> dict[str, float]:
    """Figures in [0, 1] of a set of clips.

    Args:
        verdicts: of the clips, at least one.
        names: the world's things.

    Returns:
        ``dynamic``, the share of clips in which anything moves, as VBench's dynamic degree, and ``variety``, the recall
        over what captions leave open; absent where no clip shows any of that.
    """
    found = {"dynamic": sum(verdict.dynamic for verdict in verdicts) / len(verdicts)}
    shown: dict[tuple[str, ...], Counter[str]] = {}
    for answers, thing in _shown(verdicts, names):
        shown.setdefault(answers, Counter())[thing] += 1
    if shown:
        recalled = sum(_covered(_shares(counts, answers)) * counts.total() for answers, counts in shown.items())
        expected = sum(_expected(len(answers), counts.total()) * counts.total() for answers, counts in shown.items())
        found["variety"] = min(1.0, float(recalled / expected))
    return found


def _shown(verdicts: Iterable[Verdict], names: Sequence[str]) -> Iterable[tuple[tuple[str, ...], str]]:
    """(right answers, the one that a clip shows) for each thing of which a caption has several."""
    for verdict in verdicts:
        for subject, index in zip(verdict.stated.subjects, verdict.comparison.subjects, strict=True):
            answers = tuple(name for name in names if name in subject.things)
            if len(answers) > 1 and index is not None and (thing := verdict.found.things[index].thing) in answers:
                yield answers, thing


def _shares(counts: Counter[str], answers: Sequence[str]) -> Tensor:
    return torch.tensor([counts[name] / counts.total() for name in answers], dtype=torch.float64)


def _covered(shares: Tensor) -> Tensor:
    # Shares [..., K] -> recall against K things that are equally likely.
    return shares.clamp(max=1 / shares.shape[-1]).sum(dim=-1)


@cache
def _expected(names: int, size: int) -> float:
    """Mean recall of ``size`` real clips."""
    draws = torch.randint(names, (_DRAWS, size), generator=rng.generator("variety", names, size))
    counted = torch.nn.functional.one_hot(draws, names).sum(dim=1)
    return float(_covered(counted.double() / size).mean())
