"""What the documents name exists: files, functions, make targets."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

REFERENCE = re.compile(r"`([\w./-]+\.py)(?::([A-Za-z_][\w.]*))?`")
"""A file in backquotes, from the root or from src/nearstep, alone or as file.py:name and file.py:Class.name."""

MAKE = re.compile(r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?=`|$|\s+#)", re.MULTILINE)


def each_document(pattern: re.Pattern[str]) -> pytest.MarkDecorator:
    """One case per document and match."""
    found = {(path, *match.groups("")) for path in DOCUMENTS for match in pattern.finditer(path.read_text("utf-8"))}
    cases = [pytest.param(*case, id=":".join([case[0].name, *filter(None, case[1:])])) for case in sorted(found)]
    return pytest.mark.parametrize(("document", "name", "inner")[: pattern.groups + 1], cases)


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, their members and variables of a file, as dotted names."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(path.read_text("utf-8")), "")
    return frozenset(found)


@each_document(REFERENCE)
def test_named_code_exists(document: Path, name: str, inner: str) -> None:
    homes = [home for base in (ROOT / "src" / "nearstep", ROOT) if (home := base / name).is_file()]
    assert homes, f"{document.name} names the file {name}"
    assert not inner or inner in names_in(homes[0]), f"{document.name} names {inner} in {name}"


@each_document(MAKE)
def test_named_make_targets_exist(document: Path, name: str) -> None:
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert name in targets, f"{document.name} names make {name}"


def test_the_method_leads_to_the_code() -> None:
    assert len(REFERENCE.findall((ROOT / "docs" / "method.md").read_text("utf-8"))) > 40
