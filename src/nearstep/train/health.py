"""Is a training run well? Alarms with stated thresholds, read off its metrics (method.md section 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.json_files import NUMBER, count, map_of, parsed_object, read_text

RECENT = 0.25
"""Part of a run, at its end, that the alarms look at."""

Rows = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Band:
    """Where a figure should lie, and what it means when it does not."""

    low: float
    high: float
    below: str
    above: str


BANDS: dict[str, Band] = {
    "accuracy": Band(0.55, 0.80, "the heads are blind: gamma too large, or Psi too noisy", "the heads win easily"),
    "gap": Band(-2.0, 0.0, "the discriminator is far ahead of the student", "the discriminator is behind the student"),
    "penalty share": Band(0.05, 0.20, "gamma is too small to hold the heads", "gamma rules the discriminator's loss"),
    "adversarial share": Band(
        0.02, 0.5, "the adversary hardly speaks: larger alpha", "the adversary rules the student, who learns to fool it"
    ),
    "motion": Band(0.70, 1.30, "motion is dying: too many updates, or too large a guidance", "samples flicker"),
    "spread": Band(0.85, 1.15, "samples are washed out", "samples are over-saturated: lower the guidance"),
    "assistant trend": Band(-math.inf, 1.25, "", "the assistant lags: more of its updates, or a lower student rate"),
}
"""Figure -> band. Motion and spread are those of the samples as a share of real clips', and the adversarial share is
alpha times the norm of the adversarial gradient at the sample over that of distribution matching."""


@dataclass(frozen=True)
class Finding:
    """One figure of a run against its band."""

    name: str
    value: float
    band: Band

    @property
    def well(self) -> bool:
        """Within the band."""
        return self.band.low <= self.value <= self.band.high

    def __str__(self) -> str:
        span = f"{self.band.low:g} to {self.band.high:g}"
        if self.well:
            return f"{self.name} {self.value:.3g} (within {span})"
        meaning = self.band.below if self.value < self.band.low else self.band.above
        return f"{self.name} {self.value:.3g}, not {span}: {meaning}"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.jsonl in order of their steps; where a run was resumed, the last row of a step counts.

    Raises:
        NearstepError: if there is none, or it holds what is no row.
    """
    if not path.is_file():
        raise NearstepError(f"{path} is missing; name the folder of a training run")
    rows: dict[float, dict[str, float]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        row = _row(line)
        if row is None:
            raise NearstepError(f"{path}, line {number} is no row of metrics: {line[:40]!r}")
        rows[row["step"]] = row
    if not rows:
        raise NearstepError(f"{path} is empty; the run has not logged yet")
    return [rows[step] for step in sorted(rows)]


def _row(line: str) -> dict[str, float] | None:
    """A line's numbers by name, a step among them; None where it is none."""
    try:
        row = parsed_object(line)
    except ValueError:
        return None
    return row if map_of(NUMBER).holds(row) and count(least=0, most=10**12).holds(row.get("step")) else None


def findings(rows: Rows) -> list[Finding]:
    """What the last part of a run shows, for the figures that it logs."""
    recent = rows[-max(1, math.ceil(RECENT * len(rows))) :]
    figures = {"accuracy": mean(recent, "accuracy"), "gap": mean(recent, "gap")}
    figures["penalty share"] = _penalty_share(recent)
    figures["adversarial share"] = _adversarial_share(recent)
    figures["motion"] = _against_data(recent, "motion")
    figures["spread"] = _against_data(recent, "std")
    figures["assistant trend"] = _trend(rows, recent, "assistant")
    return [Finding(name, value, BANDS[name]) for name, value in figures.items() if value is not None]


def mean(rows: Rows, name: str) -> float | None:
    """Mean of a figure over the rows that have it."""
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else None


def _penalty_share(rows: Rows) -> float | None:
    whole = [row for row in rows if {"gamma", "r1", "r2", "discriminator"} <= row.keys()]
    shares = [row["gamma"] * (row["r1"] + row["r2"]) / row["discriminator"] for row in whole if row["discriminator"]]
    return sum(shares) / len(shares) if shares else None


def _adversarial_share(rows: Rows) -> float | None:
    whole = [row for row in rows if {"alpha", "asd_norm", "dmd_norm"} <= row.keys()]
    shares = [row["alpha"] * row["asd_norm"] / row["dmd_norm"] for row in whole if row["dmd_norm"]]
    return sum(shares) / len(shares) if shares else None


def _against_data(rows: Rows, figure: str) -> float | None:
    real = mean(rows, f"{figure}_data")
    samples = [value for n in (1, 2, 3, 4) if (value := mean(rows, f"{figure}_{n}")) is not None]
    return sum(samples) / len(samples) / real if samples and real else None


def _trend(rows: Rows, recent: Rows, name: str) -> float | None:
    # Against the second quarter: the first one is the assistant finding the student.
    early = mean(rows[len(rows) // 4 : max(1, len(rows) // 2)], name)
    late = mean(recent, name)
    return late / early if early and late is not None else None
