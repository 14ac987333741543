"""``nearstep bench`` on the tiny model, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nearstep.cli.main import main
from nearstep.cost import clock as timing
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.stream import pipeline

STAGES = {"text", "cache", "step", "commit + step", "decode", "mp4"}


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "MATRICES", {"cpu": (64, 128)})


@pytest.fixture
def bench(model_folder: Path):
    def call(*arguments: str) -> int:
        return main(["bench", str(model_folder), *arguments])

    return call


def test_each_plan_by_stage_in_a_table_and_json(bench, capsys, model_folder: Path) -> None:
    assert bench("--plans", "4,1x", "2", "--repeats", "2", "--json", "out/bench.json") == 0
    out, found = capsys.readouterr().out, json.loads(Path("out/bench.json").read_text())
    assert found["command"] == f"nearstep bench {model_folder} --plans 4,1x 2 --repeats 2 --json out/bench.json"
    assert found["machine"]["device"] == "cpu" and found["machine"]["torch"] == torch.__version__
    assert found["floor"]["float32"]["rate"] > 0
    for plan, steps, commits in ((found["plans"][0], 6, 2), (found["plans"][1], 6, 2)):
        fused, separate = plan["fused"], plan["separate"]
        assert set(fused["stages"]) == STAGES
        assert set(separate["stages"]) == STAGES - {"commit + step"} | {"commit"}
        assert (plan["steps"], plan["commits"], plan["pixel_frames"]) == (steps, commits, 21)
        assert (fused["calls"], separate["calls"]) == (steps, steps + commits)
        assert fused["stages"]["commit + step"]["times"] == separate["stages"]["commit"]["times"] == commits
        assert separate["stages"]["step"]["times"] == steps and fused["stages"]["decode"]["times"] == 3
        for made in (fused, separate):
            assert sum(has["seconds"] for has in made["stages"].values()) <= made["wall_seconds"]
            assert made["flops"] == sum(has.get("flops", 0) for has in made["stages"].values())
            assert 0 < made["chunk_seconds"]["p50"] <= made["chunk_seconds"]["p95"]
            assert 0 < made["first_frame_seconds"] < made["wall_seconds"]
        assert plan["memory"]["peak_bytes"] >= plan["memory"]["before_bytes"] > 0
        for rate in plan["fps"]:
            assert rate["fps"] > 0 and rate["counts"] in out and rate["whose"] in out
    assert "plan 4,1x: 6 steps + 2 commits in 6 calls; 21 frames in 3 chunks" in out
    assert "with commits of their own, 8 calls" in out and "floor: products of square matrices in float32" in out


def test_every_stage_has_a_share_of_the_floor(bench) -> None:
    assert bench("--plans", "1", "--repeats", "1", "--json", "bench.json") == 0
    stages = json.loads(Path("bench.json").read_text())["plans"][0]["fused"]["stages"]
    assert all(stages[name]["share_of_floor"] > 0 for name in STAGES - {"cache", "mp4"})


def test_plans_are_the_papers_or_a_teachers_own(bench, capsys) -> None:
    small = ("--frames", "5", "--repeats", "1")
    assert bench(*small) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("plan")] == [
        "plan 4", "plan 4,2x", "plan 4,1x", "plan 1",
    ]  # fmt: skip
    assert bench("--network", "teacher", *small) == 0
    assert "plan 3: 3 steps + 0 commits" in capsys.readouterr().out


def test_loading_options_are_those_of_generate(bench, capsys) -> None:
    torch.manual_seed(0)
    save_file(TinyDecoder(channels=4, widths=(8, 8, 8, 8)).state_dict(), "tiny.safetensors")
    options = ("--tiny-decoder", "tiny.safetensors", "--dtype", "bfloat16", "--text-cache", "text", "--guidance", "2")
    assert bench("--plan", "1", "--repeats", "1", *options, "--json", "bench.json") == 0
    found = json.loads(Path("bench.json").read_text())
    assert found["dtypes"]["step"] == "bfloat16" and found["dtypes"]["decode"] == "float32"
    assert found["plans"][0]["guidance"] == 2
    assert {"tiny decoder", "own decoder"} <= {rate["name"] for rate in found["plans"][0]["fps"]}
    assert "codec decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plans", "4,x"], "does not parse"),
        (["--plans", "1", "1"], "given twice"),
        (["--frames", "20"], "4n+1"),
        (["--repeats", "0"], "at least 1"),
        (["--threads", "0"], "at least 1"),
        (["--json", "."], "it is a folder"),
        (["--json", "/proc/bench.json"], "cannot write /proc/bench.json"),
        (["--prompt", "a small elephant"], "does not know the word 'elephant'"),
        (["--network", "nurse"], "has no nurse/"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_runs(
    bench, arguments: list[str], message: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.CausalVideoPipeline, "denoiser", lambda *_: pytest.fail("a network was run"))
    assert bench(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_an_interrupted_run_leaves_no_file(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.CausalVideoPipeline, "play", interrupted)
    assert bench("--json", "bench.json") == 130
    assert not [path for path in Path().rglob("*") if path.is_file()]


@pytest.mark.slow
def test_blocks_are_compiled_where_asked(bench, capsys) -> None:
    assert bench("--plans", "2", "--repeats", "1", "--compile", "--json", "bench.json") == 0
    found = json.loads(Path("bench.json").read_text())
    assert found["compiled"] and "blocks compiled" in capsys.readouterr().out
    made = found["plans"][0]
    assert made["warm_up_seconds"] > made["fused"]["wall_seconds"]  # compiling is not counted
