"""Planted effects are recovered, intervals cover as often as they say, and raters who do not look are found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, binomtest, t
from studies import new_study, prefers, vote

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.study.answers import Answer
from nearstep.study.clusters import student
from nearstep.study.compare import agreement, comparisons, strengths
from nearstep.study.plan import ATTENTION, OTHER, REPEAT
from nearstep.study.rates import even_odds, votes_needed, wilson
from nearstep.study.report import report_of

PLANTED = 0.62
LOGIT = math.log(PLANTED / (1 - PLANTED))
NAMES = ("alpha", "beta", "gamma")


def seeing(draw: np.random.Generator, trial) -> str:
    return OTHER[trial.broken] if trial.kind == ATTENTION else "left" if draw.random() < 0.5 else "right"


def prefers_alpha(draw: np.random.Generator, trial) -> str:
    return seeing(draw, trial) if trial.kind == ATTENTION else "left" if trial.left == "alpha" else "right"


# --- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (3, 10), (5, 10), (0, 40), (62, 100), (1999, 4100)])
def test_intervals_and_tests_are_those_of_scipy(successes: int, count: int) -> None:
    reference, found = binomtest(successes, count), wilson(successes, count)
    wanted = reference.proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert even_odds(successes, count) == pytest.approx(reference.pvalue, rel=1e-9)


@pytest.mark.parametrize("rate", [0.5, PLANTED, 0.9])
@pytest.mark.parametrize("count", [30, 134, 400])
def test_wilsons_interval_covers(count: int, rate: float) -> None:
    """Exactly: the probability of all counts whose interval holds the rate."""
    intervals = [wilson(successes, count) for successes in range(count + 1)]
    covered = sum(binom.pmf(k, count, rate) for k, each in enumerate(intervals) if each.low <= rate <= each.high)
    assert 0.935 < covered < 0.98


def test_so_many_votes_tell_a_difference_as_often_as_is_said() -> None:
    assert votes_needed(PLANTED) == votes_needed(1 - PLANTED) == 134

    def power(count: int) -> float:
        """Of the normal test, exactly."""
        limit = 1.959964 * math.sqrt(count) / 2
        return math.fsum(binom.pmf(k, count, PLANTED) for k in range(count + 1) if abs(k - count / 2) > limit)

    assert 0.78 < power(134) < 0.83 and power(110) < 0.76 and power(160) > 0.83
    for rate in (0.0, 0.5, 1.0, float("nan")):
        with pytest.raises(NearstepError):
            votes_needed(rate)


# --- planted effects ---------------------------------------------------------------------------------------------


def test_a_preference_of_62_percent_is_measured_at_62(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=40)
    vote(study, [f"rater {n}" for n in range(12)], prefers({"alpha": LOGIT, "beta": 0.0}))
    report = report_of(study)
    (found,) = report.comparisons
    assert found.votes == 480 and found.raters == 12 and found.prompts == 40 and not report.excluded
    assert found.clustered.low < PLANTED < found.clustered.high and found.clustered.low > 0.5
    assert found.independent.low < PLANTED < found.independent.high and found.sign_p < 1e-4
    assert found.clustered.value == pytest.approx((found.wins + found.ties / 2) / found.votes)
    assert 0.05 < found.clustered.high - found.clustered.low < 0.15


def test_ties_count_half_and_not_in_the_sign_test(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=40, repeat=0, attention=0)
    vote(study, [f"rater {n}" for n in range(10)], prefers({"alpha": 9.0, "beta": 0.0}, ties=0.5))
    (found,) = report_of(study).comparisons
    assert 150 < found.ties < 250 and found.losses < 3 and found.wins + found.losses + found.ties == 400
    assert found.clustered.value == pytest.approx(1 - found.ties / 800 - found.losses / 400)
    assert found.sign_p == even_odds(found.wins, found.wins + found.losses)


def simulated(draw: np.random.Generator, raters: int, prompts: int, rater_spread: float, prompt_spread: float):
    """Answers whose odds vary among raters and prompts."""
    logits = LOGIT + draw.normal(0, rater_spread, (raters, 1)) + draw.normal(0, prompt_spread, (1, prompts))
    wins = draw.random((raters, prompts)) < 1 / (1 + np.exp(-logits))
    return [
        Answer(rater=str(r), stem=str(p), first=0, second=1, value=float(wins[r, p]))
        for r in range(raters)
        for p in range(prompts)
    ]


SPREADS = [(12, 40, 0.0, 0.0), (12, 40, 0.5, 0.8), (12, 40, 0.2, 1.5), (5, 60, 0.5, 0.8), (25, 30, 0.8, 0.3)]


@pytest.mark.parametrize(("raters", "prompts", "rater_spread", "prompt_spread"), SPREADS)
def test_intervals_over_raters_and_prompts_cover(raters, prompts, rater_spread, prompt_spread) -> None:
    draw = np.random.default_rng(7)
    spread = math.hypot(rater_spread, prompt_spread)
    true = float((1 / (1 + np.exp(-(LOGIT + draw.normal(0, spread, 400_000))))).mean())
    found = [
        comparisons(simulated(draw, raters, prompts, rater_spread, prompt_spread), seed=n, resamples=100)[0]
        for n in range(200)
    ]
    clustered = np.mean([each.clustered.low <= true <= each.clustered.high for each in found])
    independent = np.mean([each.independent.low <= true <= each.independent.high for each in found])
    effect = np.mean([each.design_effect for each in found])
    assert (0.92 if raters > 5 else 0.88) < clustered < 0.99, (clustered, independent, effect)
    if spread:  # what the other interval is there for
        assert independent < 0.85 and effect > 2
    else:
        assert independent > 0.92 and effect < 1.5


def test_of_one_rater_votes_on_prompts_are_independent() -> None:
    answers = simulated(np.random.default_rng(1), 1, 60, 0.0, 0.0)
    (found,) = comparisons(answers)
    assert found.design_effect < 1.1
    assert found.clustered.low == pytest.approx(found.independent.low, abs=0.01)
    every = [replace(answer, value=1.0) for answer in answers]
    (sure,) = comparisons(every)  # all that was resampled is the same, and yet nothing is certain
    assert sure.clustered.value == 1 and 0.9 < sure.clustered.low < sure.independent.high and sure.clustered.low < 0.96


@pytest.mark.parametrize("freedom", [3, 5, 11, 40, 1e6])
def test_students_t_is_that_of_scipy(freedom: float) -> None:
    assert student(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.01)


def test_strengths_of_three_systems_are_recovered(tmp_path: Path) -> None:
    planted = {"alpha": 0.7, "beta": 0.0, "gamma": -0.7}
    study = new_study(tmp_path, NAMES, count=30)
    vote(study, [f"rater {n}" for n in range(10)], prefers(planted))
    report = report_of(study)
    assert len(report.comparisons) == 3 and len(report.strengths) == 3
    for name, each in zip(report.systems, report.strengths, strict=True):
        assert each.low < planted[name] < each.high and each.high - each.low < 0.8
    assert sum(each.value for each in report.strengths) == pytest.approx(0, abs=1e-9)
    assert any("beta" in line and "[" in line for line in report.lines())


def test_a_system_that_never_lost_has_a_strength() -> None:
    every = [(0, 1), (0, 2), (1, 2)]
    answers = [
        Answer(rater=str(r), stem=str(p), first=a, second=b, value=float(a == 0) if a == 0 else (r + p) % 2)
        for r in range(4)
        for p in range(6)
        for a, b in every
    ]
    found = strengths(answers, 3)
    assert found[0].value - found[1].value > 3 and all(
        math.isfinite(x) for each in found for x in (each.low, each.high)
    )


# --- raters ------------------------------------------------------------------------------------------------------


def test_who_always_presses_left_is_found_and_left_out(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=40)
    vote(study, ["ann", "bob"], prefers({"alpha": 3.0, "beta": 0.0}))
    vote(study, ["lefty"], lambda draw, trial: "left")
    report = report_of(study)
    by_name = {rater.name: rater for rater in report.raters}
    assert by_name["lefty"].one_sided and by_name["lefty"].side_p < 1e-10 and by_name["lefty"].right == 0
    assert not by_name["ann"].one_sided and not by_name["bob"].one_sided
    assert [*report.excluded] == ["lefty"] and by_name["lefty"].failed == 4
    assert report.comparisons[0].votes == 80
    said = "\n".join(report.lines())
    assert "left out: lefty, who failed 4 of 8" in said and "one-sided: lefty pressed left 44" in said


def test_raters_who_look_are_seldom_called_one_sided() -> None:
    """Of 20 raters with even sides, one in a hundred studies has one who is."""
    raters, count = 20, 44
    odds = sum(binom.pmf(k, count, 0.5) for k in range(count + 1) if even_odds(k, count) < 0.01 / raters)
    assert raters * odds < 0.01


def test_who_misses_one_broken_copy_stays_and_who_misses_two_goes(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=20)

    def missing(times: int):
        left = [times]

        def chooses(draw, trial) -> str:
            if trial.kind == ATTENTION and left[0]:
                left[0] -= 1
                return trial.broken if left[0] else "tie"
            return seeing(draw, trial)

        return chooses

    for times in range(3):
        vote(study, [f"misses {times}"], missing(times))
    report = report_of(study)
    assert [rater.failed for rater in report.raters] == [0, 1, 2] and [*report.excluded] == ["misses 2"]


def test_consistency_is_by_system_not_by_side(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=20, repeat=0.5)
    vote(study, ["same"], prefers_alpha)
    vote(study, ["side"], lambda draw, trial: seeing(draw, trial) if trial.kind == ATTENTION else "left")
    vote(study, ["ties"], lambda draw, trial: seeing(draw, trial) if trial.kind == ATTENTION else "tie")
    found = {rater.name: (rater.consistent, rater.repeats) for rater in report_of(study).raters}
    assert found == {"same": (10, 10), "side": (0, 10), "ties": (10, 10)}
    assert report_of(study, without=["side"]).consistency.value == 1


def test_agreement_is_1_of_echoes_and_0_of_coins() -> None:
    draw = np.random.default_rng(3)

    def answers(raters: int, value) -> list[Answer]:
        return [
            Answer(rater=str(r), stem=str(p), first=0, second=1, value=value(r, p))
            for r in range(raters)
            for p in range(100)
        ]

    coins = draw.random((4, 100)) < 0.5
    assert agreement(answers(3, lambda r, p: float(p % 2))) == pytest.approx(1)
    assert abs(agreement(answers(4, lambda r, p: float(coins[r, p])))) < 0.1
    assert agreement(answers(1, lambda r, p: float(p % 2))) is None
    assert agreement(answers(3, lambda r, p: 1.0)) is None


def test_repeats_and_attention_trials_are_no_votes_on_systems(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=20, repeat=1.0, attention=20)
    key = vote(study, ["ann"], prefers({"alpha": 9.0, "beta": 0.0}))
    assert sum(trial.kind == REPEAT for trial in key.trials.values()) == 20
    assert report_of(study).comparisons[0].votes == 20


# --- the command -------------------------------------------------------------------------------------------------


def test_the_report_as_lines_json_and_picture(tmp_path: Path, capsys) -> None:
    study = new_study(tmp_path, NAMES, count=10)
    vote(study, ["ann", "<b>bob</b>", "chen"], prefers({"alpha": 1.0, "beta": 0.0, "gamma": 0.0}), most=25)
    out, picture = tmp_path / "r.json", tmp_path / "r.png"
    line = ["study", "report", str(study), "-o", str(out), "--picture", str(picture), "--wanted", "0.62"]
    assert main([*line, "--without", "chen"]) == 0
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert "alpha over beta: " in said and "62 %: 134" in said and "left out: chen" in said
    assert [each["systems"] for each in found["pairs"]] == [["alpha", "beta"], ["alpha", "gamma"], ["beta", "gamma"]]
    assert found["votes_needed"] == {"0.62": 134} and {*found["strengths"]} == set(NAMES)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_reported_is_refused(tmp_path: Path, capsys) -> None:
    study = new_study(tmp_path, NAMES[:2], count=10)
    votes = study / "votes.jsonl"

    def refused(*words: str) -> str:
        assert main(["study", "report", str(study), *words]) == 2
        return capsys.readouterr().err

    assert "nobody has voted" in refused()
    vote(study, ["lefty"], lambda draw, trial: "left")
    assert "no votes that count (lefty failed" in refused()
    vote(study, ["ann"], seeing)
    assert "did you mean ann" in refused("--without", "anne")
    assert "ends in .png" in refused("--picture", str(tmp_path / "x.txt"))
    assert "rate=2" in refused("--wanted", "2")
    whole = votes.read_text()
    votes.write_text(whole.replace(json.loads(whole.splitlines()[0])["trial"], "0" * 16))
    assert "no trial of this study" in refused()
    votes.write_text(whole)
    (study / "key.json").write_text("{}")
    assert "key.json is damaged" in refused()
    (study / "key.json").unlink()
    assert "key.json is missing" in refused()
    assert main(["study", "report", str(tmp_path / "nowhere")]) == 2


def test_a_torn_line_is_said(tmp_path: Path) -> None:
    study = new_study(tmp_path, NAMES[:2], count=10)
    vote(study, ["ann"], seeing)
    with (study / "votes.jsonl").open("ab") as file:
        file.write(b'{"trial": "00')
    assert any("1 lines of votes.jsonl were not written" in line for line in report_of(study).lines())
