"""Metrics: gathered on the device, flushed every few steps to JSON lines first and to TensorBoard if it is there."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.files import replacing
from nearstep.json_files import parsed


class Metrics:
    """Running means between flushes; adding never waits for the device.

    Args:
        folder: the run's.
        step: where the run goes on from; rows of later steps, which are made again, go.
        tensorboard: whether its files are written, too.

    Raises:
        NearstepError: if they cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0, *, tensorboard: bool) -> None:
        self.path = folder / "metrics.jsonl"
        _drop_rows_after(self.path, step)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.began, self.steps = time.monotonic(), 0
        self.board = None
        if tensorboard and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

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
        row["seconds_per_step"] = (time.monotonic() - self.began) / max(1, self.steps)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
            if self.board:
                for name, value in row.items():
                    self.board.add_scalar(name, value, step)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.sums, self.counts, self.steps, self.began = {}, {}, 0, time.monotonic()
        return row

    def unwritten(self) -> dict[str, tuple[float, int]]:
        """Sum and count of what was added since the last flush, by name, to the last bit."""
        sums = torch.stack(list(self.sums.values())).tolist() if self.sums else []
        return {name: (value, self.counts[name]) for name, value in zip(self.sums, sums, strict=True)}

    def restore(self, unwritten: Mapping[str, Sequence[float]]) -> None:
        """The inverse of ``unwritten``: the next row is then the one of a run that was not cut."""
        self.sums = {name: torch.tensor(value) for name, (value, _) in unwritten.items()}
        self.counts = {name: int(count) for name, (_, count) in unwritten.items()}

    def close(self) -> None:
        """Flush and close the sinks."""
        if self.board:
            self.board.close()


def _drop_rows_after(path: Path, step: int) -> None:
    # A process that is killed leaves rows of steps that are made again, and may leave a line without an end, to which
    # the next one would be glued.
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= step]
        if kept != lines:
            with replacing(path) as part:
                part.write_bytes(b"".join(kept))
        else:
            path.open("a").close()
    except OSError as error:
        raise _unwritable(path, error) from error


def _step(line: bytes) -> float:
    try:
        return float(parsed(line.decode())["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def _unwritable(path: Path, error: OSError) -> NearstepError:
    return NearstepError(
        f"cannot write {path}: {error.strerror}; the last checkpoint is whole, and the same command goes on from it"
    )
