"""``nearstep ablate``: the cells of recipes/ablation.py."""

from __future__ import annotations

from collections.abc import Sequence

from nearstep.cli.arguments import parsed
from nearstep.cli.text import note


def run(arguments: Sequence[str]) -> None:
    """Run the cells that are missing and say where the tables are."""
    from nearstep.recipes.ablation import AblationConfig, playground

    config = parsed(AblationConfig, "nearstep ablate", arguments, flags=(), default=playground())
    if not config.missing:
        note(
            f"all that was asked for is in {config.out}/ already, and goes into the tables; another --out runs it anew"
        )
    print(config.run())
