"""Plain lines, tables and numbers for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def note(line: str) -> None:
    """A line beside a command's results, which go to standard output alone."""
    print(line, file=sys.stderr)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of rows whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def short(number: float) -> str:
    """Three digits and the letter of a thousand's power; a unit goes behind it."""
    for unit, letter in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(int(number)) + " "
