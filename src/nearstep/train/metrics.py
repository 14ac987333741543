"""Metrics: gathered on the device, flushed every few steps to JSON lines first and to TensorBoard if it is there."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import torch
from torch import Tensor


class Metrics:
    """Running means between flushes; adding never waits for the device."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _drop_torn_line(self.path)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.began, self.steps = time.monotonic(), 0
        self.board = None
        if tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values, scalars by name."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.steps += 1

    def flush(self, step: int) -> dict[str, float]:
        """Write the means since the last flush under ``step``, and the seconds a step took."""
        if not self.sums:
            return {}
        names = list(self.sums)
        means = torch.stack([self.sums[name] / self.counts[name] for name in names]).tolist()
        row = dict(zip(names, means, strict=True))
        row["seconds_per_step"] = (time.monotonic() - self.began) / self.steps
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(name, value, step)
        self.sums, self.counts, self.steps, self.began = {}, {}, 0, time.monotonic()
        return row

    def close(self) -> None:
        """Flush and close the sinks."""
        if self.board:
            self.board.close()


def _drop_torn_line(path: Path) -> None:
    # A process that is killed while it writes leaves a line without an end, and the next one would be glued to it.
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
