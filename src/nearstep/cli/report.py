"""``nearstep report``: one page about a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, write the page and say where it is."""

    def report(
        run: Annotated[Path, tyro.conf.Positional], reference: str | None = None, out: Path | None = None
    ) -> Path:
        """Write one page about a training run: alarms with their thresholds, curves, samples over time.

        Args:
            run: folder of the run.
            reference: drawn behind: "distill" or "self_forcing" (runs of ours), another run's folder, or its
                metrics.jsonl.
            out: where to; by default report.html in the run's folder.
        """
        from nearstep.train.report import write_report

        return write_report(run, reference=reference, out=out)

    print(tyro.cli(report, prog="nearstep report", args=arguments))
