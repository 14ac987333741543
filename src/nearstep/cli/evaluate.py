"""``nearstep evaluate``: the measurements of evaluate/run.py, from the command line."""

from __future__ import annotations

from collections.abc import Sequence

import tyro


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments after the signature of ``evaluate.run.evaluate`` and print what it found."""
    from nearstep.evaluate.run import evaluate

    print(tyro.cli(evaluate, prog="nearstep evaluate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)))
