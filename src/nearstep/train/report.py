"""One page about a training run: alarms, curves, and its samples over time. Needs matplotlib (the extra "train")."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import path_of, replacing
from nearstep.plots import new_figure
from nearstep.train.health import BANDS, Rows, findings, read_metrics

_PICTURES = 6
"""Sample grids shown at most, evenly over the run."""
_COLUMNS = 3
GROUPS: dict[str, tuple[str, ...]] = {
    "losses": ("loss", "dmd", "asd", "assistant", "discriminator"),
    "loss by time": ("loss_low", "loss_mid", "loss_high"),
    "accuracy by n": ("accuracy_1", "accuracy_2", "accuracy_3", "accuracy_4"),
    "gap by n": ("gap_1", "gap_2", "gap_3", "gap_4"),
    "logits": ("d_n", "d_next"),
    "penalties": ("r1", "r2"),
    "gradients at the sample": ("dmd_norm", "asd_norm"),
    "their cosine": ("cosine",),
    "gradient norms": ("grad_norm", "student_grad_norm", "assistant_grad_norm", "discriminator_grad_norm"),
    "motion": ("motion_data", "motion_1", "motion_2", "motion_3", "motion_4"),
    "spread": ("std_data", "std_1", "std_2", "std_3", "std_4"),
    "reconstruction": ("absolute", "edge", "psnr"),
    "rates": ("lr", "student_lr", "assistant_lr", "discriminator_lr", "gamma", "alpha"),
    "seconds a step": ("seconds_per_step",),
}
"""Panel -> its curves; a panel is drawn where a run logs any of them."""
_BANDED = {"accuracy by n": "accuracy", "gap by n": "gap"}
_LOGARITHMIC = {"rates"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
img { max-width: 100%; height: auto } .bad { color: #b00020; font-weight: 600 } .good { color: #1b6e2e }
figure { margin: 1rem 0 } figcaption { color: #666 }
"""


def write_report(run: Path, *, reference: str | Path | None = None, out: Path | None = None) -> Path:
    """Write ``report.html`` for the run folder ``run``; everything is inside the one file.

    Args:
        run: folder of a training run, with its metrics.jsonl.
        reference: drawn in grey behind the curves: a metrics.jsonl, the folder of another run, or the name of a run of
            ours whose curves are in this package (``shipped_curves``).
        out: where to; by default into the run's folder.

    Raises:
        NearstepError: if there are no metrics, or matplotlib is not installed.
    """
    rows = read_metrics(run / "metrics.jsonl")
    behind: Rows = []
    if reference is not None:
        behind = read_metrics(_reference(reference))
    out = out or run / "report.html"
    page = _page(run, rows, _curves(rows, behind))
    with replacing(out) as part:
        part.write_text(page, encoding="utf-8")
    return out


def shipped_curves() -> dict[str, Path]:
    """Name -> metrics of a run of ours."""
    return {
        path.stem: path for path in sorted((Path(str(resources.files("nearstep"))) / "assets/curves").glob("*.jsonl"))
    }


def _reference(name: str | Path) -> Path:
    path = path_of(name)
    if path.is_dir():
        return path / "metrics.jsonl"
    if path.is_file():
        return path
    shipped = shipped_curves()
    if str(name) in shipped:
        return shipped[str(name)]
    raise NearstepError(f"there is no run {name} to compare with; name a run folder, or one of {', '.join(shipped)}")


def _page(run: Path, rows: Rows, curves: bytes) -> str:
    name = html.escape(run.resolve().name)
    last = rows[-1]["step"]
    lines = [("good" if finding.well else "bad", html.escape(str(finding))) for finding in findings(rows)]
    alarms = "\n".join(f'<li class="{state}">{text}</li>' for state, text in lines)
    thresholds = ", ".join(f"{name} {band.low:g} to {band.high:g}" for name, band in BANDS.items())
    pictures = "\n".join(
        f"<figure>{_image(path.read_bytes())}<figcaption>step {int(path.stem)}</figcaption></figure>"
        for path in _spread(sorted(path for path in (run / "previews").glob("*.png") if path.stem.isdecimal()))
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>\n'
        f"<h1>{name}</h1><p>{len(rows)} rows, up to step {last:g}.</p>\n"
        f"<h2>Health</h2><ul>{alarms or '<li>This kind of run has no alarms.</li>'}</ul>"
        f"<p>Bands, on the last quarter of the run: {thresholds}.</p>\n"
        f"<h2>Curves</h2>{_image(curves)}\n<h2>Samples</h2>{pictures or '<p>No samples yet.</p>'}</html>\n"
    )


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _spread(paths: Sequence[Path]) -> list[Path]:
    count = min(_PICTURES, len(paths))
    return [paths[round(i * (len(paths) - 1) / max(1, count - 1))] for i in range(count)]


def _curves(rows: Rows, behind: Rows) -> bytes:
    panels = {name: [c for c in curves if any(c in row for row in rows)] for name, curves in GROUPS.items()}
    panels = {name: curves for name, curves in panels.items() if curves}
    lines = max(1, math.ceil(len(panels) / _COLUMNS))
    figure = new_figure(5 * _COLUMNS, 3 * lines)
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, curves) in zip(axes, panels.items(), strict=False):
        for curve in curves:
            _draw(axis, behind, curve, color="0.75", linewidth=1)
            _draw(axis, rows, curve, label=curve, linewidth=1)
        if name in _BANDED:
            band = BANDS[_BANDED[name]]
            axis.axhspan(band.low, band.high, color="tab:green", alpha=0.08)
        if name in _LOGARITHMIC:
            axis.set_yscale("log")
        axis.set_title(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=80)
    return target.getvalue()


def _draw(axis: Any, rows: Rows, curve: str, **style: Any) -> None:
    points = [(row["step"], row[curve]) for row in rows if curve in row]
    if points:
        axis.plot(*zip(*points, strict=True), **style)
