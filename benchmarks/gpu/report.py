"""The summary that is printed at the end: short, as only the last characters of a long output may come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.gpu.task import MACHINE

MOST_ROWS = 24
"""Of one part; all are in results.json."""
MOST_CHARACTERS = 10_000

Row = Mapping[str, Any]

TOLD: Mapping[str, Callable[[Any], str]] = {
    "seconds": lambda value: f"{1000 * value:.4g} ms",
    "fps": lambda value: _rates(value) if isinstance(value, Mapping) else f"{value:.3g} frames/s",
    "first_frame_seconds": lambda value: f"first frame {1000 * value:.4g} ms",
    "rate": lambda value: f"{value / 1e12:.4g} TFLOP/s",
    "share_of_floor": lambda value: f"{value:.1%} of the floor",
    "peak_bytes": lambda value: f"peak {value / 2**30:.3g} GiB",
    "warm_up_seconds": lambda value: f"warming up {value:.3g} s",
    "cache_bytes": lambda value: f"cache {value / 2**30:.3g} GiB",
    "with_scaling_seconds": lambda value: f"{1000 * value:.4g} ms with scaling",
    "version": str,
    "phase": str,
}
"""Key of a row -> how it is told, in this order."""


def told(found: Mapping[str, Any]) -> list[str]:
    """The main figures, a line each."""
    has: Row = next((row for row in found["rows"] if row["name"] == MACHINE), {})
    lines = [f"{has.get('is')}, torch {has.get('torch')}, Python {has.get('python')}, size {found['size']}"]
    for name, ended in found["parts"].items():
        rows = [row for row in found["rows"] if row["part"] == name and row["name"] != MACHINE]
        lines.append(f"{name}: {ended['status']} after {ended['seconds']:.0f} s, {len(rows)} rows")
        lines += [f"  {line}" for line in ended.get("error", "").splitlines()]
        lines += [f"  {sentence(row)}" for row in chosen(rows)]
    return shortened(lines)


def chosen(rows: Sequence[Row]) -> Sequence[Row]:
    """The first rows, and all that say that something is wrong."""
    wrong = [row for row in rows[MOST_ROWS:] if row.get("passed") is False or ("error" in row and "passed" not in row)]
    return [*rows[:MOST_ROWS], *wrong]


def sentence(row: Row) -> str:
    """A row as it is read."""
    if "skipped" in row:
        return f"{row['name']}: skipped, {row['skipped']}"
    if "error" in row and "passed" not in row:
        return f"{row['name']}: {row['error']}"[:200]
    parts = [tell(row[key]) for key, tell in TOLD.items() if row.get(key) is not None]
    if "passed" in row:
        verdict = "ok" if row["passed"] else "FAILED"
        parts.insert(0, f"{verdict}, error {row['error']:.1e} of {row['allowed']:.0e} allowed")
    return f"{row['name']}: {'; '.join(parts) or 'none'}"


def shortened(lines: Sequence[str]) -> list[str]:
    """What fits; the rest is counted."""
    kept, length = [], 0
    for index, each in enumerate(lines):
        length += len(each) + 1
        if length > MOST_CHARACTERS:
            return [*kept, f"... and {len(lines) - index} lines more: results.json has everything"]
        kept.append(each)
    return kept


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {fps:.3g}" for name, fps in rates.items()) + " frames/s"
