"""A run on two processes of this machine, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_RUN = """
import sys, torch
torch.set_num_threads(1)
torch.load(sys.argv[1], weights_only=False).run()
"""


def run_on_two(config: Any, folder: Path) -> None:
    """Run a config there; its script and pickle go to ``folder``."""
    (folder / "run.py").write_text(_RUN)
    torch.save(config, folder / "config.pt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    source = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run(
        [*launch, folder / "run.py", folder / "config.pt"], check=False, capture_output=True, text=True, env=source
    )
    assert done.returncode == 0, done.stderr[-20_000:]
