"""The kit for a machine with a GPU (``benchmarks/gpu/``), at its smallest size on the CPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.gpu import kit, numerics, report, wheels
from benchmarks.gpu.calls import Calls
from benchmarks.gpu.sizes import SIZES, network
from benchmarks.gpu.task import NARROW, Record, Task, relative
from nearstep.nets.transformer import VideoTransformer

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def rows(file: Path) -> dict[str, dict]:
    return {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}


def task(folder: Path, seconds: float = 100) -> Task:
    record = Record(folder / "lines.jsonl", "test")
    return Task(size="tiny", device=CPU, scratch=folder, out=folder, record=record, until=time.monotonic() + seconds)


def run_sh(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The one command, where PyAV cannot be imported."""
    (folder / "without").mkdir()
    (folder / "without" / "av.py").write_text("raise ImportError('PyAV stayed behind')\n")
    there = {
        "OUT": str(folder / "out"), "PYTHON": sys.executable, "PYTHONPATH": str(folder / "without"),
        "WHEELS": str(folder / "none"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = ["bash", "benchmarks/gpu/run.sh", "--device", "cpu", "--size", "tiny", *arguments]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **there})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_kit_from_end_to_end_without_av(tmp_path: Path) -> None:
    done = run_sh(tmp_path, "--skip", "compile", "--budget", "800")
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(done.stdout) < 12_000 and "wan.distill, n = 4" in done.stdout
    assert {path.name for path in out.iterdir()} == {"results.json", "lines.jsonl", "log.txt", "playground.png"}
    found = json.loads((out / "results.json").read_text())
    assert found["rows"] == [json.loads(line) for line in (out / "lines.jsonl").read_text().splitlines()]
    assert [*found["parts"]] == [part.name for part in (*kit.PARTS, kit.ASIDE)]
    assert {ended["status"] for ended in found["parts"].values()} == {"done"}
    assert not [row for row in found["rows"] if "error" in row and "passed" not in row]
    assert all(row["error"] <= row["allowed"] for row in found["rows"] if "passed" in row)
    skipped = {row["name"]: row["skipped"] for row in found["rows"] if "skipped" in row}
    for name in ("graph, 0 frames before", "call, TF32", "product 8 x 48 -> 64, fp8", "codec, TF32"):
        assert skipped[name] == "needs CUDA"
    check_parts({row["name"]: row for row in found["rows"]})


def check_parts(found: dict[str, dict]) -> None:
    """Numbers of one part agree with each other and with those of the others."""
    assert found["av"]["version"] is None
    measured = found["plan 4,1x, as it is"]["measured"]
    assert measured["fused"]["calls"] == measured["steps"] == 6 and measured["separate"]["calls"] == 8
    stages = measured["fused"]["stages"]
    assert {"text", "step", "commit + step", "decode", "codec decode"} <= set(stages) and "mp4" not in stages
    assert measured["warm_up_seconds"] > 0 and len(found["plan 4,1x, as it is"]["fps"]) == 8
    flops = {start: found[f"step, {start} frames before"]["flops"] for start in (0, 2, 4)}
    assert flops[2] - flops[0] == flops[4] - flops[2] > 0  # what a call looks back on costs the same again
    assert found["window 4, codec"]["cache_bytes"] <= found["window 6, codec"]["cache_bytes"]
    updates = [found[f"wan.distill, n = {n}"] for n in (1, 2, 3, 4)]
    for one in updates:
        assert one["seconds"] == pytest.approx(sum(one["parts"].values()))
        assert (one["parts"]["discriminator"] > 0) == (one["n"] < 4)  # n = 4 has no reference
    # Every n has its rollout with one more step, but the largest, which has none.
    assert updates[0]["flops"] < updates[2]["flops"] > updates[3]["flops"]
    assert found["wan.self_forcing, n = 1"]["parts"]["discriminator"] == 0
    assert found["plan of wan.distill"]["peak_bytes"] > found["plan of wan.self_forcing"]["peak_bytes"] > 0


@pytest.mark.slow
def test_compiled_parts(tmp_path: Path) -> None:
    done = run_sh(tmp_path, "--parts", "inference", "calls", "--budget", "1500")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = rows(tmp_path / "out" / "lines.jsonl")
    assert found["plan 1, compiled"]["fps"].keys() == {"steady", "clip", "no decoding, fused"}
    assert found["compiled, 4 frames before"]["passed"]


@pytest.mark.gpu
@pytest.mark.timeout(1200)
def test_numerics_of_the_true_size_on_a_gpu(tmp_path: Path) -> None:
    assert kit.main(kit.Options(parts=("smoke", "numerics"), device="cuda", budget=900, out=tmp_path)) == 0


# --- the conductor ----------------------------------------------------------------------------------------------------


def test_a_part_that_passes_its_limit_is_killed_and_the_rest_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(kit, "PARTS", (kit.Part("numerics", 1), kit.Part("products", 99)))
    options = kit.Options(size="tiny", device="cpu", parts=("numerics", "products"), budget=100, out=tmp_path)
    assert kit.main(options) == 0
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert parts["numerics"]["status"] == "killed at its limit" and parts["numerics"]["seconds"] < 10
    assert parts["products"]["status"] == "done" and "attention" in capsys.readouterr().out
    assert 0 < parts["products"]["limit"] < 99.5  # what is left of both


def test_a_part_that_breaks_is_told_and_counts(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(kit, "PARTS", (kit.Part("nothing", 1),))
    assert kit.main(kit.Options(size="tiny", device="cpu", parts=("nothing",), budget=60, out=tmp_path)) == 1
    assert "No module named 'benchmarks.gpu.nothing'" in capsys.readouterr().out
    assert "nothing: failed" in (tmp_path / "log.txt").read_text()


def test_what_cannot_be_asked_is_refused(tmp_path: Path, capsys) -> None:
    assert kit.main(kit.Options(device="cpu", out=tmp_path / "out")) == 2
    assert "--size tiny" in capsys.readouterr().err
    assert kit.main(kit.Options(device="cpu", size="tiny", parts=("speed",), out=tmp_path / "out")) == 2
    assert "--parts speed: the parts are smoke" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_would_not_come_back_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    for name in ("one", "a/b/two", "a/b/c/three", "a name"):
        (tmp_path / name).touch()
    with (tmp_path / "one").open("wb") as file:
        file.truncate(kit.MOST_BYTES + 1)
    named = ["a name: names", "a/b/c/three lies", "one is larger"]
    wrong = kit.beyond(tmp_path)
    assert len(wrong) == 3 and all(any(line.startswith(name) for line in wrong) for name in named)
    for index in range(kit.MOST_FILES):
        (tmp_path / f"file-{index}").touch()
    assert kit.beyond(tmp_path)[0] == f"{4 + kit.MOST_FILES} files, and {kit.MOST_FILES} come back"


def test_the_summary_is_short_and_keeps_what_failed() -> None:
    bad = {"part": "calls", "name": "the last", "error": 0.5, "allowed": 0.1, "passed": False}
    many = [{"part": "calls", "name": f"row {index}" + "x" * 300, "seconds": 1.0} for index in range(40)]
    found = {"rows": [*many, bad], "size": "tiny", "parts": {"calls": {"status": "done", "seconds": 1.0}}}
    told = report.told(found)
    assert sum(len(line) + 1 for line in told) < 11_000
    assert any("the last: FAILED" in line for line in told)
    assert "lines more" in report.shortened(["x" * 200] * 100)[-1]


def test_the_package_knows_its_version_where_it_is_not_installed() -> None:
    """On that machine it is a checkout on the path, without metadata; what it writes names its version all the same."""
    code = """
import importlib.metadata as metadata, sys
find = metadata.Distribution.from_name.__func__
def absent(cls, name):
    if name == "nearstep":
        raise metadata.PackageNotFoundError(name)
    return find(cls, name)
metadata.Distribution.from_name = classmethod(absent)
from nearstep.cli.main import main
from nearstep.models.card import model_index
print(model_index(["transformer"], {})["_nearstep_version"])
sys.argv = ["nearstep", "--version"]
main()
"""
    path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=path)
    version, told = done.stdout.split("\n")[:2]
    assert Version(version) and told == f"nearstep {version}"


# --- what is measured -------------------------------------------------------------------------------------------------


def test_checks_find_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = VideoTransformer.forward

    def late(self, x, t, *arguments, **options):
        """Commits at the wrong time."""
        return forward(self, x, t + 0.1 if options.get("commit") == x.shape[1] else t, *arguments, **options)

    monkeypatch.setattr(VideoTransformer, "forward", late)
    numerics.run(task(tmp_path, seconds=0))
    found = rows(tmp_path / "lines.jsonl")
    assert "left" in found["update"]["skipped"]
    assert [name for name, row in found.items() if row.get("passed") is False] == [
        "chunk by chunk against one masked call, float32", "fused commits against separate ones, float32",
    ]  # fmt: skip


def test_an_error_is_relative_and_one_that_is_no_number_is_not_allowed(tmp_path: Path) -> None:
    x = torch.randn(4, 5)
    assert relative(x, x) == 0 and relative(1.1 * x, x) == pytest.approx(0.1)
    checks = numerics.Checks(Record(tmp_path / "lines.jsonl", "test"), CPU, torch.float64)
    checks("no number", x * math.nan, x, 1.0)
    assert not rows(tmp_path / "lines.jsonl")["no number"]["passed"]


def test_what_does_not_fit_is_a_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path / "lines.jsonl", "test")
    with record.trying("large"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nmore")
    record("small", seconds=1.0)
    found = rows(tmp_path / "lines.jsonl")
    assert found["large"]["error"] == "out of memory: CUDA out of memory. Tried to allocate 80 GiB"
    assert found["small"]["part"] == "test"


@torch.no_grad()
def test_a_call_is_the_same_however_often_it_is_timed(tmp_path: Path) -> None:
    size = SIZES["tiny"]
    bench = Calls(task(tmp_path), size, network(size, CPU, NARROW), 1.0)
    bench.fill(4)
    first = bench.step(4)
    assert relative(bench.fused(4), first) < 0.02  # the commit before it is made anew, in bfloat16
    bench.commit(4)
    assert torch.equal(bench.step(4), first) and torch.equal(bench.fused(4), bench.fused(4))
    bench.step(2)  # which writes its own keys where clean frames lay
    assert not torch.equal(bench.step(4), first)
    bench.fill(4)
    assert torch.equal(bench.step(4), first)


# --- wheels -----------------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, *needs: str) -> wheels.Wheel:
    """A wheel that holds nothing but what it asks for."""
    path = folder / name
    project, version, *_ = name.split("-")
    told = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}"]
    told += [f"Requires-Dist: {each}" for each in needs]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{project}-{version}.dist-info/METADATA", "\n".join(told) + "\n")
    return wheels.read(path)


def test_what_a_wheel_asks_for_must_be_there(tmp_path: Path) -> None:
    one = wheel(
        tmp_path, "one-1.0-py3-none-any.whl", "two>=2", "three", "four; python_version < '3.12'",
        "five; extra == 'more'", "six<2", "seven>5",
    )  # fmt: skip
    two = wheel(tmp_path, "two-1.5-cp312-cp312-manylinux_2_17_x86_64.whl")
    there = {"six": Version("1.9"), "seven": None}
    assert [*wheels.problems([one, two], there, [Requirement("one>=1"), Requirement("eight")])] == [
        "nearstep asks for eight, which is neither on the machine nor among the wheels",
        "one asks for two>=2; 1.5 is what there is",
        "one asks for three, which is neither on the machine nor among the wheels",
    ]


@pytest.mark.parametrize("tag", ["cp311-cp311-manylinux_2_17_x86_64", "cp312-cp312-win_amd64"])
def test_a_wheel_for_another_machine_is_found(tmp_path: Path, tag: str) -> None:
    other = wheel(tmp_path, f"one-1.0-{tag}.whl")
    assert [*wheels.problems([other], {}, [])] == [f"one-1.0-{tag}.whl is for another machine"]


def test_two_of_one_name_are_found(tmp_path: Path) -> None:
    two = [wheel(tmp_path, f"one-{version}-py3-none-any.whl") for version in ("1.0", "1.1")]
    assert [*wheels.problems(two, {}, [])] == ["one is there twice: two of one name stop the installation"]


def test_the_machine_and_the_fetched_names_hold_all_that_nearstep_asks_for() -> None:
    """A new dependency of pyproject.toml must be on that machine, or be fetched, or be left behind on purpose."""
    there = {**wheels.machine(), **dict.fromkeys(wheels.MISSING)}
    assert not [*wheels.problems([], there, wheels.project())]
    assert wheels.machine()["torch"] is not None
    pinned = wheels.pins((ROOT / "constraints.txt").read_text())
    assert {"diffusers", "tyro", "beartype"} <= pinned.keys() & {*wheels.MISSING}
