"""The report: alarms ring where they should, resumed runs are read once, and the page holds everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.train.health import findings, read_metrics
from nearstep.train.report import shipped_curves

WELL = {
    "accuracy": 0.65, "gap": -0.4, "gamma": 0.1, "r1": 0.4, "r2": 0.3, "discriminator": 0.6, "assistant": 0.3,
    "alpha": 0.05, "asd_norm": 0.06, "dmd_norm": 0.02,
    "motion_data": 0.5, "motion_1": 0.45, "motion_4": 0.5, "std_data": 1.0, "std_1": 1.02,
}  # fmt: skip


def write(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows(**last) -> list[dict]:
    return [{"step": step, **WELL, **(last if step > 60 else {})} for step in range(4, 84, 4)]


def test_a_run_that_is_well_rings_no_alarm():
    assert all(finding.well for finding in findings(rows()))
    assert {finding.name for finding in findings(rows())} >= {"accuracy", "gap", "penalty share", "motion", "spread"}


@pytest.mark.parametrize(
    ("last", "name", "word"),
    [
        ({"accuracy": 0.5}, "accuracy", "blind"),
        ({"accuracy": 0.99}, "accuracy", "easily"),
        ({"gap": -3.0}, "gap", "far ahead"),
        ({"gap": 0.2}, "gap", "behind"),
        ({"gamma": 0.001}, "penalty share", "too small"),
        ({"gamma": 5.0}, "penalty share", "rules"),
        ({"alpha": 0.3}, "adversarial share", "fool"),
        ({"alpha": 0.001}, "adversarial share", "hardly"),
        ({"motion_1": 0.2, "motion_4": 0.2}, "motion", "dying"),
        ({"std_1": 1.4}, "spread", "saturated"),
        ({"assistant": 0.6}, "assistant trend", "lags"),
    ],
)
def test_each_alarm_rings_alone_and_says_what_it_means(last, name: str, word: str):
    ringing = [finding for finding in findings(rows(**last)) if not finding.well]
    assert [finding.name for finding in ringing] == [name]
    assert word in str(ringing[0])


def test_figures_that_a_run_does_not_log_are_not_judged():
    assert findings([{"step": 1, "loss": 0.3}]) == []


def test_where_a_run_was_resumed_the_last_row_of_a_step_counts(tmp_path: Path):
    path = write(tmp_path, [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 9.0}, {"step": 4, "loss": 0.5}])
    assert [row["loss"] for row in read_metrics(path / "metrics.jsonl")] == [1.0, 0.5]


def test_the_page_holds_alarms_curves_samples_and_a_reference(tmp_path: Path, capsys):
    run, other = write(tmp_path / "run", rows(accuracy=0.5)), write(tmp_path / "other", rows())
    (run / "previews").mkdir()
    for step in range(10):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(run / "previews" / f"{step:07d}.png")
    assert main(["report", str(run), "--reference", str(other)]) == 0
    page = (run / "report.html").read_text()
    assert str(run / "report.html") in capsys.readouterr().out
    assert "blind" in page
    assert page.count("data:image/png;base64,") == 1 + 6
    assert "step 0<" in page
    assert "step 9<" in page


def test_our_own_curves_can_be_drawn_behind(tmp_path: Path, capsys):
    assert set(shipped_curves()) == {"distill", "self_forcing"}
    run = write(tmp_path / "run", rows())
    for name, path in shipped_curves().items():
        assert len(read_metrics(path)) > 10
        assert main(["report", str(run), "--reference", name]) == 0
    assert main(["report", str(run), "--reference", "dystil"]) == 2
    assert "distill, self_forcing" in capsys.readouterr().err


def test_a_folder_without_metrics_or_with_broken_ones_is_named(tmp_path: Path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl is missing" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(NearstepError, match="line 2 is no row"):
        read_metrics(tmp_path / "metrics.jsonl")
