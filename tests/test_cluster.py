"""Work on two Ray workers, and the same work here: one outcome, also where a worker is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from nearstep import cluster
from nearstep.cli.main import main
from nearstep.cluster import Cluster, each
from nearstep.errors import NearstepError

ROOT = Path(__file__).parents[1]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray, of the extra cluster, is not installed")


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Cluster]:
    """A cluster of this machine with two cores, whatever it has."""
    import ray  # pyright: ignore[reportMissingImports]  # an extra, which development does without

    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_USAGE_STATS_ENABLED")}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])  # of the workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield Cluster()
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.mark.parametrize(
    "address", ["", "a//b", "½", "5", "host", "host:", ":6379", "host:0", "host:65536", "http://a:1"]
)
def test_an_address_that_is_none_is_refused_before_anything(address: str) -> None:
    with pytest.raises(NearstepError, match="give auto, or HOST:PORT"):
        Cluster(address=address)


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_head_that_does_not_answer_is_one_line(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound, and nobody listens
        with pytest.raises(NearstepError, match="no cluster answers there"):
            [*each(named, [0], Cluster(address=f"{scheme}127.0.0.1:{port}"))]


def named(item: int) -> tuple[int, int]:
    return item, os.getpid()


def killed_at_first(item: int) -> int:
    """Item 3 takes its process with it, once."""
    marker = Path("died")
    if item == 3 and not marker.exists():
        marker.write_text("once")
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def always_killed(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def refused(item: int) -> int:
    raise NearstepError(f"item {item} is wrong; leave it out")


def test_without_a_cluster_items_are_done_here_when_they_are_asked_for() -> None:
    seen: list[int] = []
    found = each(lambda item: seen.append(item) or -item, [3, 1, 2])
    assert not seen and next(found) == -3 and seen == [3] and [*found] == [-1, -2]


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    assert main(["evaluate", "--cluster", "auto"]) == 2
    assert 'pip install "nearstep[cluster]"' in capsys.readouterr().err


def test_a_worker_s_cores_are_for_a_cluster(capsys) -> None:
    assert main(["evaluate", "--cpus", "2"]) == 2
    assert "name one: --cluster auto" in capsys.readouterr().err


@pytest.mark.slow
@needs_ray
def test_every_result_comes_once_and_in_order(two_workers: Cluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [*each(named, range(20), two_workers)]
    assert [item for item, _ in found] == [*range(20)]
    assert len({process for _, process in found} - {os.getpid()}) == 2
    assert [*each(killed_at_first, range(8), two_workers)] == [item * item for item in range(8)]
    assert (tmp_path / "died").read_text() == "once"  # it did die, where relative paths are ours
    with pytest.raises(NearstepError, match="item 0 is wrong; leave it out$"):
        [*each(refused, range(3), two_workers)]
    with pytest.raises(NearstepError, match="item 0 was given up after 3 more tries"):
        [*each(always_killed, [0], two_workers)]
    with pytest.raises(NearstepError, match="--cpus 3: the cluster has 2"):
        [*each(named, [0], Cluster(cpus=3))]


def lines_of(folder: Path) -> list[dict]:
    return [{**json.loads(line), "seconds": None} for line in (folder / "clips.jsonl").read_text().splitlines()]


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import av, numpy as np
marker = Path(sys.argv[3])
if int(sys.argv[4]) == 26 and not marker.exists():  # in the middle of a prompt's clips
    marker.write_text("once")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1)
draw = np.random.default_rng(int(sys.argv[1]))
with av.open(sys.argv[2], "w") as file:
    stream = file.add_stream("mpeg4", rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    for _ in range(3):
        picture = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    file.mux(stream.encode())
"""
"""Makes a clip without an encoder's choices; for one clip, once, it kills the worker that has called it."""


@pytest.mark.slow
@needs_ray
def test_a_worker_that_is_killed_between_two_clips_loses_none(
    two_workers: Cluster, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    Path("prompts.txt").write_text("a ball\na football\na ring\na star\n")
    marker = tmp_path / "killed"
    command = f"{sys.executable} program.py {{seed}} {{output}} {marker} {{sample}} {{prompt}}"
    asked = ["sample", "prompts.txt", "--samples", "3", "--system", "command", "--command", command]
    assert main([*asked, "--cluster", "auto", "-o", "there"]) == 0
    assert marker.exists()
    made = [line for line in capsys.readouterr().out.splitlines() if line.startswith("there")]  # Ray speaks there, too
    assert main([*asked, "-o", "here"]) == 0
    here, there = (
        {path.name: path.read_bytes() for path in Path(where, "videos").iterdir()} for where in ("here", "there")
    )
    assert here == there and len(here) == 12
    assert sorted(made) == sorted(f"there/videos/{name}" for name in here)  # each is told of once
    assert sorted(line["name"] for line in lines_of(Path("there"))) == sorted(here)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_ray
def test_an_ablation_is_that_of_one_process(two_workers: Cluster, tmp_path: Path, monkeypatch) -> None:
    """Every verdict; students train as anywhere, on more clips than a test may encode."""
    monkeypatch.chdir(tmp_path)
    small = ["--seeds", "0", "--steps", "1", "--captions", "4", "--plans", "1", "--device", "cpu"]
    for where in ("here", "there"):
        on = ["--cluster", "auto"] if where == "there" else []
        asked = ["--cells", "causal", "teacher", *small, "--runs", f"{where}/runs", "--out", where]
        assert main(["ablate", *asked, *on]) == 0
    assert Path("here/tables.md").read_bytes() == Path("there/tables.md").read_bytes()
    for name in ("causal-0.json", "teacher-0.json"):
        plans = [json.loads(Path(where, name).read_text())["plans"] for where in ("here", "there")]
        assert [{**each, "seconds_per_clip": 0} for each in plans[0].values()] == [
            {**each, "seconds_per_clip": 0} for each in plans[1].values()
        ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_ray
def test_commands_on_a_cluster_write_what_they_write_here(
    two_workers: Cluster, tmp_path: Path, model_folder: Path, real_videos: Path, monkeypatch
) -> None:
    """Sampling, scoring, evaluation and both ways to prepare: pixels, scores, results and latents, bit for bit."""
    from vbench_files import write_info

    monkeypatch.chdir(tmp_path)
    rows = [{"prompt_en": f"a toilet {n}", "dimension": ["temporal_flickering"]} for n in range(3)]
    write_info(tmp_path, rows)
    Path("longer.txt").write_text("a small red ball\na large blue football\nthe red ball slides left\n")
    Path("videos").mkdir()
    for number, video in enumerate(sorted(real_videos.glob("*.mp4"))[:2]):
        Path(f"videos/{number}{video.suffix}").symlink_to(video)
        Path(f"videos/{number}.txt").write_text("a red ball")
    model = ["--model", str(model_folder), "--device", "cpu"]
    for where in ("here", "there"):
        on = ["--cluster", "auto"] if where == "there" else []
        sampled = ["--info", ".", "--rewritten", "longer.txt", *model, "--plan", "1", "--frames", "5"]
        assert main(["vbench", "sample", *sampled, "--flickering", "5", "-o", where, *on]) == 0
        assert main(["vbench", "score", "here", *on]) == 0
        Path("here/scores").rename(f"{where}/scores-of-here")
        small = ["--height", "32", "--width", "32", "--frames", "5", "--clips-per-video", "2"]
        assert main(["prepare", "videos", f"latents-{where}", *model, *small, "--shard", "2", *on]) == 0
        teacher = ["--from-teacher", "--network", "teacher", "--plan", "2", "--shard", "2", "--batch", "2"]
        assert main(["prepare", "longer.txt", f"made-{where}", *model, *teacher, "--frames", "5", *on]) == 0
        measured = ["--captions", "4", "--batch", "2", "--plans", "1", "--device", "cpu", "--out", f"{where}.json"]
        assert main(["evaluate", "playground", *measured, *on]) == 0
    assert len(lines_of(Path("here"))) == 15 and lines_of(Path("here")) == lines_of(Path("there"))
    name = "temporal_flickering_eval_results.json"
    assert Path(f"here/scores-of-here/{name}").read_bytes() == Path(f"there/scores-of-here/{name}").read_bytes()
    for kind in ("latents", "made"):
        files = {file.name: file.read_bytes() for file in Path(f"{kind}-here").iterdir()}
        assert len(files) > 2 and files == {file.name: file.read_bytes() for file in Path(f"{kind}-there").iterdir()}
    here, there = (json.loads(Path(f"{where}.json").read_text()) for where in ("here", "there"))
    for found in (here, there):
        found["plans"]["1"].pop("seconds_per_clip")
    assert here == there
