"""Runs on two processes of this machine, as torchrun starts them: started once, for that takes longer than a run."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

_SERVE = """
import os, sys, time
from itertools import count
from pathlib import Path
import torch

torch.set_num_threads(1)
inbox, tests = Path(sys.argv[1]), int(sys.argv[2])
for number in count():
    while not (job := inbox / f"{number}.pt").exists():
        os.kill(tests, 0)  # fails, and ends this process, when the tests are gone
        time.sleep(0.05)
    if (config := torch.load(job, weights_only=False)) is None:
        break
    config.run()
    (inbox / f"{number}.made.{os.environ['RANK']}").touch()
"""


class _Pair:
    """Two processes that run what is put into their inbox, in order, until one of them fails."""

    def __init__(self) -> None:
        self.inbox = Path(tempfile.mkdtemp(prefix="nearstep-two-"))
        self.numbers = count()
        (self.inbox / "serve.py").write_text(_SERVE)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        source = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
        with (self.inbox / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [*launch, self.inbox / "serve.py", self.inbox, str(os.getpid())], stdout=said, stderr=said, env=source
            )
        atexit.register(self.end)

    def put(self, job: Any) -> int:
        """The job's number; it appears whole."""
        number = next(self.numbers)
        torch.save(job, part := self.inbox / f"{number}.part")
        part.replace(self.inbox / f"{number}.pt")
        return number

    def run(self, config: Any) -> None:
        """Run a config there, and wait for both."""
        number = self.put(config)
        made = [self.inbox / f"{number}.made.{rank}" for rank in range(2)]
        try:
            while not all(path.exists() for path in made):
                assert self.process.poll() is None, (self.inbox / "said").read_text(errors="replace")[-20_000:]
                time.sleep(0.05)
        except BaseException:  # the test's time is up, say: nothing else waits behind this run
            self.process.terminate()
            self.process.wait()
            raise

    def end(self) -> None:
        """Let both finish."""
        if self.process.poll() is None:
            self.put(None)
            self.process.wait(60)
        shutil.rmtree(self.inbox, ignore_errors=True)


_pairs: list[_Pair] = []


def run_on_two(config: Any) -> None:
    """Run a config on two processes."""
    if not _pairs or _pairs[-1].process.poll() is not None:
        _pairs.append(_Pair())
    _pairs[-1].run(config)
