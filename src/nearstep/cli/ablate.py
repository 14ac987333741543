"""``nearstep ablate``: the cells of recipes/ablation.py."""

from __future__ import annotations

from collections.abc import Sequence

import tyro


def run(arguments: Sequence[str]) -> None:
    """Run the cells that are missing and say where the tables are."""
    from nearstep.recipes.ablation import AblationConfig, playground

    print(tyro.cli(AblationConfig, default=playground(), prog="nearstep ablate", args=arguments).run())
