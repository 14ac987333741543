"""What a study found: a page of lines, the same as JSON, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.evaluate.results import bounds
from nearstep.evaluate.statistics import Interval
from nearstep.files import check_writable, replacing
from nearstep.plots import new_figure
from nearstep.study.answers import RULE, Rater, answers_of, excluded, raters_of
from nearstep.study.compare import Comparison, agreement, comparisons, strengths
from nearstep.study.plan import VOTES, read_key
from nearstep.study.rates import POWER, votes_needed, wilson
from nearstep.study.votes import Recorded, read_votes

FEW_RATERS = 10
"""With fewer, resampling raters says little about others: of five, intervals hold the truth in 90 % and not 95."""
WANTED = (0.55, 0.6, 0.62, 0.65, 0.7, 0.8)
"""Rates whose number of votes is told."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a study found."""

    systems: tuple[str, ...]
    recorded: Recorded
    raters: tuple[Rater, ...]
    excluded: dict[str, str]
    """Rater -> why the votes do not count."""
    comparisons: tuple[Comparison, ...]
    strengths: tuple[Interval, ...]
    """Of each system, where there are three or more."""
    agreement: float | None
    """Krippendorff's alpha; None where no two raters voted on one pair, or all said the same."""
    consistency: Interval | None
    """Part of the repeats on which a rater preferred the same system again."""
    needed: dict[float, int]
    """Rate -> independent votes that tell it from one half."""

    def content(self) -> dict[str, object]:
        """As it is written."""
        names = self.systems
        return {
            "systems": list(names),
            "rule": RULE,
            "raters": [
                {**asdict(rater), "excluded": self.excluded.get(rater.name), "inattentive": rater.inattentive}
                for rater in self.raters
            ],
            "torn_lines": self.recorded.torn,
            "votes_again": self.recorded.again,
            "pairs": [
                {
                    "systems": [names[each.first], names[each.second]],
                    **{name: getattr(each, name) for name in ("wins", "losses", "ties", "raters", "prompts")},
                    "rate": bounds(each.clustered),
                    "wilson": bounds(each.independent),
                    "sign_test_p": each.sign_p,
                    "design_effect": each.design_effect,
                }
                for each in self.comparisons
            ],
            "strengths": {name: bounds(each) for name, each in zip(names, self.strengths, strict=False)},
            "krippendorff_alpha": self.agreement,
            "consistency": None if self.consistency is None else bounds(self.consistency),
            "votes_needed": {str(rate): count for rate, count in self.needed.items()},
        }

    def lines(self) -> list[str]:
        """As it is read."""
        return [*self._about_pairs(), *self._about_strengths(), *self._about_raters(), *self._about_votes()]

    def _about_pairs(self) -> list[str]:
        lines = ["preference: (wins + ties / 2) / votes, 95 % over raters and prompts; Wilson: votes independent"]
        for each in self.comparisons:
            one, other = self.systems[each.first], self.systems[each.second]
            lines += [
                f"{one} over {other}: {percent(each.clustered)}, Wilson {spread_of(each.independent)}; {each.wins} to "
                f"{each.losses} and {many(each.ties, 'tie')}, by {many(each.raters, 'rater')} on "
                f"{many(each.prompts, 'prompt')}; sign test p = {each.sign_p:.2g}"
            ]
        fewest = min(each.raters for each in self.comparisons)
        if fewest == 1:
            lines += ["of one rater, intervals are about other prompts, not about other raters"]
        elif fewest < FEW_RATERS:
            lines += [f"{fewest} raters say little about others: the intervals may be too narrow"]
        return lines

    def _about_strengths(self) -> list[str]:
        if not self.strengths:
            return []
        lines = ["strengths (Bradley and Terry, natural logarithms, mean 0): odds are exp(difference)"]
        order = sorted(zip(self.strengths, self.systems, strict=True), key=lambda row: -row[0].value)
        return lines + [f"{name}: {each.value:+.2f} [{each.low:+.2f}, {each.high:+.2f}]" for each, name in order]

    def _about_raters(self) -> list[str]:
        alpha = "cannot be said (no pair with two raters who differ in anything)"
        lines = [f"agreement, Krippendorff's alpha: {alpha if self.agreement is None else f'{self.agreement:.2f}'}"]
        again = "nobody saw a pair again" if self.consistency is None else percent(self.consistency)
        lines += [f"the same preference when a pair came again with its sides changed: {again}", f"rule: {RULE}"]
        for rater in self.raters:
            if rater.name in self.excluded:
                lines += [f"left out: {rater.name}, who {self.excluded[rater.name]}"]
            if rater.one_sided:
                lines += [
                    f"one-sided: {rater.name} pressed left {rater.left} and right {rater.right} times "
                    f"(p = {rater.side_p:.2g}); sides are drawn, so this says nothing of the clips. --without leaves "
                    "a rater out"
                ]
        return lines

    def _about_votes(self) -> list[str]:
        lines = []
        if self.recorded.torn:
            lines += [f"{self.recorded.torn} lines of {VOTES} were not written to their end, and do not count"]
        if self.recorded.again:
            lines += [f"{self.recorded.again} votes were a rater's second on a trial, and do not count"]
        wanted = ", ".join(f"{100 * rate:g} %: {count}" for rate, count in self.needed.items())
        worst = max((each.design_effect for each in self.comparisons), default=1.0)
        return [
            *lines,
            f"votes that tell a preference from 50 % (two-sided 5 %, power {POWER:.0%}, independent, without ties): "
            f"{wanted}; {worst:.1f} votes here are worth one independent vote",
        ]


def percent(interval: Interval) -> str:
    """A rate and its interval."""
    return f"{100 * interval.value:.1f} % {spread_of(interval)}"


def spread_of(interval: Interval) -> str:
    """An interval of a rate."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def many(count: int, what: str) -> str:
    """A number of things."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def report_of(study: Path, *, without: Sequence[str] = (), wanted: Sequence[float] = WANTED) -> Report:
    """Add a study's votes up.

    Args:
        study: its folder.
        without: raters whose votes are left out.
        wanted: rates whose number of votes is asked for.

    Raises:
        NearstepError: if there are no votes that count, or a library of the extra "study" is missing that they need.
    """
    needed = {rate: votes_needed(rate) for rate in wanted}
    key, recorded = read_key(study), read_votes(study / VOTES)
    raters = raters_of(key, recorded)
    out = excluded(raters, without)
    answers = answers_of(key, recorded, out)
    if not answers:
        said = "; ".join(f"{name} {why}" for name, why in out.items())
        raise NearstepError(f"{study} holds no votes that count ({said or 'nobody has voted'}); nearstep study serve")
    counted = [rater for rater in raters if rater.name not in out]
    repeats, same = sum(rater.repeats for rater in counted), sum(rater.consistent for rater in counted)
    return Report(
        systems=key.systems,
        recorded=recorded,
        raters=tuple(raters),
        excluded=out,
        comparisons=tuple(comparisons(answers)),
        strengths=tuple(strengths(answers, len(key.systems))) if len(key.systems) > 2 else (),
        agreement=agreement(answers),
        consistency=wilson(same, repeats) if repeats else None,
        needed=needed,
    )


def check_picture(path: Path) -> None:
    """Find out now, before votes are added up, whether a picture could be written.

    Raises:
        NearstepError: naming the path and the reason.
    """
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise NearstepError(f"cannot draw {path}: a picture ends in .png, .svg or .pdf")
    check_writable(path)
    new_figure(1, 1)


def write_picture(report: Report, path: Path) -> None:
    """A bar for each two systems: wins, ties, losses, and the rate with its interval; whole or not at all.

    Raises:
        NearstepError: if matplotlib is not installed, or the file cannot be written.
    """
    check_picture(path)
    count = len(report.comparisons)
    figure = new_figure(7.5, 1.2 + 0.7 * count)
    axis = figure.subplots()
    for row, each in enumerate(report.comparisons):
        parts = [100 * part / each.votes for part in (each.wins, each.ties, each.losses)]
        left = 0.0
        for part, colour in zip(parts, ("tab:blue", "0.8", "tab:orange"), strict=True):
            axis.barh(row, part, left=left, height=0.5, color=colour, alpha=0.55)
            left += part
        rate = each.clustered
        reach = [[100 * (rate.value - rate.low)], [100 * (rate.high - rate.value)]]
        axis.errorbar([100 * rate.value], [row], xerr=reach, fmt="o", color="black", capsize=4)
    axis.axvline(50, color="0.3", linewidth=0.8, linestyle=":")
    names = [f"{report.systems[each.first]}\nover {report.systems[each.second]}" for each in report.comparisons]
    axis.set_yticks(range(count), names, parse_math=False)
    axis.set_xlim(0, 100)
    axis.set_ylim(count - 0.5, -0.5)
    axis.set_xlabel("% of votes: won, tied, lost; dot: preference, 95 % over raters and prompts")
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=120)
