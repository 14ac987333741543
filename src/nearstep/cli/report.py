"""``nearstep report``: one page about a training run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from nearstep.errors import NearstepError
from nearstep.files import check_name

_TITLE_WITHIN = 4096  # bytes


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, write the page and say where it is."""

    def report(
        run: Annotated[Path, tyro.conf.Positional],
        reference: str | None = None,
        out: Path | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write one page about a training run: alarms with their thresholds, curves, samples over time.

        Args:
            run: folder of the run.
            reference: drawn behind: "distill" or "self_forcing" (runs of ours), another run's folder, or its
                metrics.jsonl.
            out: where to; by default report.html in the run's folder.
            overwrite: replace a file that is no report of this run. A report of it is always brought up to date.
        """
        target = run / "report.html" if out is None else out
        check_name(run)
        check_name(target)
        if not overwrite and target.is_file() and not _shows(target, run):
            raise NearstepError(f"{target} is there and is no report of {run}; --overwrite replaces it")
        from nearstep.train.report import write_report

        return write_report(run, reference=reference, out=out)

    print(tyro.cli(report, prog="nearstep report", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)))


def _shows(page: Path, run: Path) -> bool:
    """Whether a page is a report of this run: its title is the run's name."""
    with page.open("rb") as file:
        begins = file.read(_TITLE_WITHIN).decode(errors="replace")
    return begins.startswith("<!doctype html>") and f"<title>{html.escape(run.resolve().name)}</title>" in begins
