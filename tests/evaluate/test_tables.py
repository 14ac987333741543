"""Pooling seeds: intervals hold both kinds of chance, differences pair the clips, tables say what is sure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.evaluate.figures import draw_totals
from nearstep.evaluate.results import SUMS
from nearstep.evaluate.statistics import difference, pooled
from nearstep.evaluate.tables import clips, difference_table, pooled_table
from nearstep.recipes import playground
from nearstep.recipes.ablation import CELLS, EVERY_CELL, NETWORKS, AblationConfig
from nearstep.recipes.tables import ABLATION, LADDER, PAPER_ABLATION, SYSTEMS, read_cells, write_tables
from nearstep.rng import generator

PLANS = ("1", "4,1x", "2", "4,2x", "4")


def values(mean: float, *, seeds: int = 3, count: int = 200, spread: float = 0.0, name: str = "pooled") -> torch.Tensor:
    draw = generator(name)
    hard = 0.2 * torch.randn(count, generator=draw, dtype=torch.float64)
    return mean + hard + spread * torch.randn(seeds, 1, generator=draw, dtype=torch.float64)


def test_the_mean_is_the_mean_and_seeds_widen_its_interval():
    alike, apart = pooled(values(0.5)), pooled(values(0.5, spread=0.2))
    assert alike.value == pytest.approx(float(values(0.5).mean()))
    assert alike.low < alike.value < alike.high
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_hard_captions_cancel_in_a_difference():
    low, high = values(0.5), values(0.52)
    gained = difference(high, low)
    assert gained.value == pytest.approx(0.02)
    assert gained.excludes_zero
    assert gained.high - gained.low < 1e-9  # both moved by the same hard captions
    assert not difference(values(0.5, spread=0.3, name="other"), values(0.5, spread=0.3)).excludes_zero


def test_unequal_captions_are_refused():
    with pytest.raises(NearstepError, match="cannot be paired"):
        difference(values(0.5, count=4), values(0.5, count=5))
    one, other = result(0.5, count=4), result(0.5, count=5)
    with pytest.raises(NearstepError, match="cannot be pooled"):
        clips([one, other], "1", "total")


def result(mean: float, *, count: int = 50, plans: tuple[str, ...] = PLANS) -> dict:
    marks = [float(value) for value in values(mean, seeds=1, count=count)[0]]
    bounds = {"value": 3.0, "low": 2.0, "high": 4.0}
    found = {"calls": 5, "course": [], "clips": dict.fromkeys(SUMS, marks), **dict.fromkeys((*SUMS, "frechet"), bounds)}
    return {"settings": {}, "plans": {plan: {**found, "agreement": {}, "figures": {}} for plan in plans}}


def test_tables_hold_every_plan_and_what_is_sure(tmp_path: Path):
    for cell, mean in (("self_forcing", 0.5), ("asd", 0.6)):
        for seed in range(2):
            (tmp_path / f"{cell}-{seed}.json").write_text(json.dumps(result(mean)))
    (tmp_path / "teacher-0.json").write_text(json.dumps(result(0.7, plans=("20",))))
    cells = read_cells(tmp_path, EVERY_CELL)
    assert list(cells) == ["teacher", "self_forcing", "asd"]
    text = write_tables(cells, tmp_path / "tables.md").read_text()
    assert text.count("\n| asd | 2 |") == 5
    none = 100 * float(values(0.5, seeds=1, count=50).mean())
    assert f"| none | {none:.2f} [" in text
    assert "| teacher, many steps | 20 |" in text
    assert "CausVid" not in text
    assert "| ASD at 1 step | 10.00 [10.00, 10.00] | yes |" in text
    assert "| FFE at 1 step | 0.00 [0.00, 0.00] | no |" in text
    assert "| Self Forcing retrained | - | 83.49 | - | 80.62 |" in text
    assert draw_totals(cells, tmp_path / "totals.png").stat().st_size > 1000
    assert "reversed" in str(difference_table([("back", values(0.6), values(0.5))]))
    alone = str(difference_table([("alone", values(0.5, seeds=1), values(0.6, seeds=1))]))
    assert "yes, of one seed" in alone
    assert str(pooled_table({})).count("\n") == 1


def test_a_seed_that_is_still_being_measured_takes_part_with_the_plans_it_has(tmp_path: Path):
    for seed, plans in enumerate((PLANS, PLANS[:2])):
        (tmp_path / f"asd-{seed}.json").write_text(json.dumps(result(0.5, plans=plans)))
    cells = read_cells(tmp_path, ("asd",))
    assert [list(found["plans"]) for found in cells["asd"]] == [["1", "4,1x"]] * 2
    assert "| asd | 2 | 4,1x |" in str(pooled_table(cells))


def test_tables_name_cells_and_plans_that_are_run():
    config = AblationConfig()
    run = {(cell, plan) for cell in CELLS for plan in config.plans}
    run |= {(cell, plan) for cell, wishes in NETWORKS.items() for plan in wishes["plans"]}
    assert {place for _, *places in LADDER for place in places} <= run
    assert {place for places in ABLATION.values() for place in places} <= run
    assert {place for _, place in SYSTEMS} <= run
    assert PAPER_ABLATION.keys() == ABLATION.keys()


def test_sensitivities_change_what_they_name_alone():
    base, changed = (CELLS[cell](playground.self_forcing()) for cell in ("asd", "asd_share_0.5"))
    assert changed.adversary == replace(base.adversary, weight=0.5)
    assert replace(changed, adversary=base.adversary) == base


def test_an_unknown_cell_is_named():
    with pytest.raises(NearstepError, match=r"there is no cell asd_beta: did you mean asd_"):
        AblationConfig(cells=("asd_beta",))
