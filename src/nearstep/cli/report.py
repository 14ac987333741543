"""``nearstep report``: one page about a training run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import optional
from nearstep.errors import NearstepError
from nearstep.files import check_name

_TITLE_WITHIN = 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one page about a training run: alarms with their thresholds, curves, samples over time."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    reference: Annotated[str | None, optional("RUN", "none")] = None
    """Drawn behind: "distill" or "self_forcing" (runs of ours), another run's folder, or its metrics.jsonl."""
    out: Annotated[Path | None, optional("FILE.html", "report.html in the run's folder")] = None
    """Where to."""
    overwrite: bool = False
    """Replace a file that is no report of this run. A report of it is always brought up to date."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, write the page and say where it is."""
    asked = parsed(Report, "nearstep report", arguments)
    target = asked.run / "report.html" if asked.out is None else asked.out
    check_name(target)
    if not asked.overwrite and target.is_file() and not _shows(target, asked.run):
        raise NearstepError(f"{target} is there and is no report of {asked.run}; --overwrite replaces it")
    from nearstep.train.report import write_report

    print(write_report(asked.run, reference=asked.reference, out=asked.out))


def _shows(page: Path, run: Path) -> bool:
    """Whether a page is a report of this run: its title is the run's name."""
    with page.open("rb") as file:
        begins = file.read(_TITLE_WITHIN).decode(errors="replace")
    return begins.startswith("<!doctype html>") and f"<title>{html.escape(run.resolve().name)}</title>" in begins
