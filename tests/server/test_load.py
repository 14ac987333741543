"""benchmarks/serve.py from end to end, small."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serve.py"


@pytest.mark.slow  # a server in a process of its own
@pytest.mark.parametrize("pace", ["shown", "made"])
def test_a_loaded_server_is_measured(tmp_path: Path, pace: str, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("benchmark_serve", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_serve", benchmark)
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    spec.loader.exec_module(benchmark)
    out = tmp_path / "serve.json"
    options = benchmark.Options(seconds=8, sessions=2, viewers=5, change_every=1, pace=pace, out=out)
    found = benchmark.main(options)
    assert json.loads(out.read_text())["changes"] == found["changes"] >= 4
    assert found["slowest_of_mean"] > 0.8 and found["watchers_chunks"] > 0
    assert found["accepted_seconds"]["p95"] < 1 and found["memory_mib"]["most"] > 100
