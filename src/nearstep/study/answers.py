"""Votes held against the key: who was preferred, and what each rater can be believed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nearstep.errors import NearstepError, hint
from nearstep.study.plan import ATTENTION, PAIR, REPEAT, Key, Trial
from nearstep.study.rates import even_odds
from nearstep.study.votes import Recorded, Vote

MOST_FAILED = 0.2
"""Part of the attention trials that may fail; one may in any case."""
ONE_SIDED = 0.01
"""A rater is called one-sided where even odds give so uneven sides less often than this, divided by the raters."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A vote on two systems."""

    rater: str
    stem: str
    first: int
    """Number of a system."""
    second: int
    """Number of a later one."""
    value: float
    """1 where the first was preferred, 0 where the second was, 1/2 for a tie."""


@dataclass(frozen=True, kw_only=True)
class Rater:
    """What a rater's votes say of the rater."""

    name: str
    votes: int
    ties: int
    left: int
    """Votes for the left, among pairs and repeats; sides are drawn, so half of those that are no ties."""
    right: int
    side_p: float
    """Exact p of so uneven sides."""
    one_sided: bool
    attention: int
    """Attention trials voted on."""
    failed: int
    """Of which the broken copy was preferred, or held to be as good."""
    repeats: int
    """Repeats voted on, the pair itself, too."""
    consistent: int
    """Of which the same system was preferred, or both a tie."""

    @property
    def inattentive(self) -> bool:
        """The rule by which a rater's votes are left out."""
        return self.failed > max(1, MOST_FAILED * self.attention)


RULE = (
    f"a rater is left out who failed more than one attention trial and more than {MOST_FAILED:.0%} of those voted on "
    "(a broken copy preferred, or held to be as good)"
)


def raters_of(key: Key, recorded: Recorded) -> list[Rater]:
    """All raters, by name.

    Raises:
        NearstepError: for a vote on a trial that the study does not have.
    """
    by_rater: dict[str, list[Vote]] = {}
    for vote in recorded.votes:
        if vote.trial not in key.trials:
            raise NearstepError(
                f"{vote.rater} voted on {vote.trial[:40]!r}, which is no trial of this study; are these its own votes?"
            )
        by_rater.setdefault(vote.rater, []).append(vote)
    return [_rater(key, name, votes, len(by_rater)) for name, votes in sorted(by_rater.items())]


def _rater(key: Key, name: str, votes: Sequence[Vote], raters: int) -> Rater:
    choices = {vote.trial: vote.choice for vote in votes}
    kinds = {kind: [trial for trial in choices if key.trials[trial].kind == kind] for kind in (PAIR, REPEAT, ATTENTION)}
    sides = [choices[trial] for kind in (PAIR, REPEAT) for trial in kinds[kind]]
    left, right = sides.count("left"), sides.count("right")
    both = [(trial, first) for trial in kinds[REPEAT] if (first := key.trials[trial].repeats) in choices]
    side_p = even_odds(left, left + right)
    return Rater(
        name=name,
        votes=len(votes),
        ties=sides.count("tie"),
        left=left,
        right=right,
        side_p=side_p,
        one_sided=side_p < ONE_SIDED / raters,
        attention=len(kinds[ATTENTION]),
        failed=sum(choices[trial] in (key.trials[trial].broken, "tie") for trial in kinds[ATTENTION]),
        repeats=len(both),
        consistent=sum(_chosen(key, trial, choices) == _chosen(key, first, choices) for trial, first in both if first),
    )


def _chosen(key: Key, trial: str, choices: Mapping[str, str]) -> str | None:
    """The system that was preferred; None for a tie."""
    return preferred(key.trials[trial], choices[trial])


def preferred(trial: Trial, choice: str) -> str | None:
    """The system that a choice prefers; None for a tie."""
    return {"left": trial.left, "right": trial.right}.get(choice)


def excluded(raters: Sequence[Rater], without: Collection[str]) -> dict[str, str]:
    """Name -> why a rater's votes do not count.

    Args:
        raters: all of them.
        without: names that whoever reports leaves out.

    Raises:
        NearstepError: if one of the names is nobody's.
    """
    names = [rater.name for rater in raters]
    for name in without:
        if name not in names:
            raise NearstepError(f"there is no rater {name[:60]!r}: {hint(name, names, 'raters are')}")
    found = {rater.name: f"failed {rater.failed} of {rater.attention} attention trials" for rater in raters}
    failed = {rater.name: found[rater.name] for rater in raters if rater.inattentive}
    return {**failed, **dict.fromkeys(without, "left out by whoever made this report")}


def answers_of(key: Key, recorded: Recorded, out: Collection[str]) -> list[Answer]:
    """What counts: votes on pairs, each pair once, of all raters but those left out."""
    number = {name: place for place, name in enumerate(key.systems)}
    answers = []
    for vote in recorded.votes:
        trial = key.trials[vote.trial]
        if trial.kind != PAIR or vote.rater in out:
            continue
        first, second = sorted((number[trial.left], number[trial.right]))
        chosen = preferred(trial, vote.choice)
        value = 0.5 if chosen is None else float(number[chosen] == first)
        answers.append(Answer(rater=vote.rater, stem=trial.stem, first=first, second=second, value=value))
    return answers
