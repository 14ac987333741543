"""``nearstep train``: runs a recipe.

A recipe is a public function in a module of nearstep/recipes that needs no arguments and returns a frozen dataclass
with ``.run()``; its fields become options. Recipes are listed from their source, so that the list needs no imports.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tyro

from nearstep.cli.arguments import parsed
from nearstep.errors import NearstepError, hint


def run(arguments: Sequence[str]) -> None:
    """List the recipes, or run one with its fields as options."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    name, *rest = arguments
    config = configured(name, rest, f"nearstep train {name}")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading a file; ours counts steps
    config.run()


def configured(name: str, arguments: Sequence[str], prog: str) -> Any:
    """The config of a recipe with options set.

    Raises:
        NearstepError: if there is no such recipe.
    """
    known = recipes()
    if name not in known:
        raise NearstepError(f"there is no recipe {name!r}: {hint(name, known, 'recipes are', cutoff=0.4)}")
    module, function = name.split(".")
    config = getattr(importlib.import_module(f"nearstep.recipes.{module}"), function)()
    flags = (tyro.conf.AvoidSubcommands,)  # an optional part's fields are options like all
    return parsed(type(config), prog, arguments, flags=flags, default=config, description=known[name])


def recipes() -> dict[str, str]:
    """``module.function`` -> first line of its docstring, for every recipe of this package."""
    folder = Path(str(resources.files("nearstep"))) / "recipes"
    lines: dict[str, str] = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not _required(node.args):
                lines[f"{file.stem}.{node.name}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return lines


def _required(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or any(default is None for default in arguments.kw_defaults)


def _help() -> str:
    known = recipes()
    width = max(map(len, known), default=0) + 2
    lines = "\n".join(f"  {name:<{width}}{line}" for name, line in known.items())
    return (
        "usage: nearstep train RECIPE [options]\n\n"
        f"recipes:\n{lines}\n\n"
        "nearstep train RECIPE --help shows its options; every field of the recipe is one."
    )
