"""``nearstep table``: results as a table for a page, a paper or a sheet; and pages whose tables write themselves."""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import optional
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.files import replacing

if TYPE_CHECKING:
    from nearstep.evaluate.table import Table

PART = Literal["sums", "agreement", "figures", "sure", "ablation", "systems", "recipes"]
MARK = "<!-- nearstep table "
"""Begins the line above a page's table that says how it is made."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Make a table of results: sums with 95 % intervals, network calls with commits, and what is sure.

    A result is what "nearstep evaluate" wrote, a folder of "nearstep ablate", or one of "nearstep sample" or "nearstep
    vbench score". In a page a table follows a line such as "<!-- nearstep table ours=results/ours.json -->", paths as
    seen from the page; "--page FILE" makes all of them again.
    """

    results: Annotated[tyro.conf.Positional[tuple[str, ...]], optional("[NAME=]RESULT ...", "none")] = ()
    """Files or folders, all of one kind."""
    part: Annotated[PART, tyro.conf.arg(metavar="NAME")] = "sums"
    """sums; of evaluations agreement and figures; sure, which is differences of two on the same clips; of an ablation
    sure, ablation and systems (the paper's tables) and recipes (all of it)."""
    format: Literal["md", "latex", "csv", "html"] = "md"
    """Markdown, a LaTeX tabular (booktabs), values with commas, an HTML table."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Write it there rather than to the screen."""
    page: Annotated[Path | None, optional("FILE.md", "none")] = None
    """A page whose tables are made again."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the table."""
    asked = _parsed(arguments)
    if asked.page is not None:
        if asked.results or asked.output:
            raise NearstepError("--page makes the tables that the page names; leave results and -o out")
        text = refreshed(asked.page)
        note(f"{text.count(MARK)} tables in {asked.page}")
        with replacing(asked.page) as part:
            part.write_text(text, encoding="utf-8")
        return
    text = made(asked, Path()).rendered(asked.format)
    if asked.output is None:
        print(text)
        return
    with replacing(asked.output) as part:
        part.write_text(text + "\n", encoding="utf-8")
    print(asked.output)


def _parsed(arguments: Sequence[str]) -> Shown:
    return parsed(Shown, "nearstep table", arguments)


def refreshed(page: Path) -> str:
    """A page with all tables that it says how to make as they are now.

    Raises:
        NearstepError: if it says so nowhere, or a table cannot be made.
    """
    from nearstep.data.prompts import read_text

    lines, kept = deque(read_text(page).split("\n")), []
    while lines:
        kept.append(lines.popleft())
        if kept[-1].startswith(MARK) and kept[-1].endswith("-->"):
            kept += ["", str(made(_marked(kept[-1]), page.parent))]
            _drop_old(lines)
    if not any(line.startswith(MARK) for line in kept):
        raise NearstepError(f'{page} names no table of ours; "{MARK}ours=results/ours.json -->" on a line does')
    return "\n".join(kept)


def _marked(line: str) -> Shown:
    """What the line above a table asks for."""
    try:
        words = shlex.split(line.removeprefix(MARK).removesuffix("-->"))
    except ValueError as error:  # a quotation that does not end
        raise NearstepError(
            f"{line!r}: {error}; results are named NAME=PATH, in quotes where a name has blanks"
        ) from None
    if {"-h", "--help"} & {*words}:
        raise NearstepError(f"{line!r} asks for help; it names results, and --part at most")
    asked = _parsed(words)
    if asked.output or asked.page or asked.format != "md":
        raise NearstepError(
            f"{line!r}: a table stands on the page itself, in markdown; leave -o, --page and --format out"
        )
    return asked


def _drop_old(lines: deque[str]) -> None:
    """Take away the table that lines begin with, if they do, after blank ones."""
    blank = next((place for place, line in enumerate(lines) if line), len(lines))
    if blank < len(lines) and lines[blank].startswith("|"):
        for _ in range(blank):
            lines.popleft()
        while lines and lines[0].startswith("|"):
            lines.popleft()


def made(asked: Shown, base: Path) -> Table:
    """The table that is asked for; paths are seen from ``base``."""
    if not asked.results:
        raise NearstepError("no result; name what nearstep evaluate, ablate, sample or vbench wrote")
    places: dict[str, Path] = {}
    for given in asked.results:
        name, _, path = given.rpartition("=")
        name = name or Path(path).stem
        if name in places:
            raise NearstepError(f"two results are called {name}; name them: NAME={path}")
        places[name] = base / path
    if all(path.is_file() for path in places.values()):
        return _of_evaluations(places, asked.part)
    if not all(path.is_dir() for path in places.values()):
        missing = next((path for path in places.values() if not path.exists()), None)
        what = f"there is no {missing}" if missing else "files and folders are results of different kinds"
        raise NearstepError(f"{what}; name results of one kind")
    folders = [*places.values()]
    if len(folders) == 1 and any(folders[0].glob("*-[0-9]*.json")) and not (folders[0] / "sample.json").is_file():
        return _of_an_ablation(folders[0], asked.part)
    return _of_samples(places, asked.part)


def _of_evaluations(places: Mapping[str, Path], part: str) -> Table:
    from nearstep.evaluate.results import read_results
    from nearstep.evaluate.tables import attributes, compare, systems

    named = {name: read_results(path) for name, path in places.items()}
    if part == "sums":
        return systems(named)
    if part == "sure":
        first, second = _two(places)
        return compare(named[first], named[second])
    if part == "agreement" or part == "figures":
        return attributes(named, part)
    raise NearstepError(f"--part {part} is of an ablation; of evaluations there are sums, agreement, figures and sure")


def _of_an_ablation(folder: Path, part: str) -> Table:
    from nearstep.evaluate.tables import pooled_table
    from nearstep.recipes.ablation import EVERY_CELL
    from nearstep.recipes.tables import ablation_table, read_cells, sure_table, systems_table

    cells = read_cells(folder, EVERY_CELL)
    kinds = {
        "sums": pooled_table,
        "recipes": pooled_table,
        "sure": sure_table,
        "ablation": ablation_table,
        "systems": systems_table,
    }
    if part not in kinds:
        raise NearstepError(f"--part {part} is of evaluations; of an ablation there are {', '.join(kinds)}")
    return kinds[part](cells)


def _of_samples(places: Mapping[str, Path], part: str) -> Table:
    from nearstep.evaluate.vbench.results import ENDING, System, read_record, read_system
    from nearstep.evaluate.vbench.tables import Cost, differences, systems_table
    from nearstep.sampling.folder import took

    if part == "sure":
        first, second = _two(places)
        return differences(read_system(places[first], first), read_system(places[second], second))
    if part != "sums":
        raise NearstepError(f"--part {part}: of sampled folders there are sums and sure")
    rows: list[tuple[System, Cost]] = []
    for name, path in places.items():
        scored = any(path.rglob(f"*{ENDING}"))
        system = read_system(path, name) if scored else System(name=name, scores={}, record=read_record(path))
        cost = took(path)
        rows.append((system, Cost(calls=cost.calls, seconds=cost.seconds, rate=cost.rate)))
    return systems_table(rows)


def _two(places: Mapping[str, Path]) -> tuple[str, str]:
    if len(places) != 2:
        raise NearstepError(f"--part sure is of two results, and there are {len(places)}")
    first, second = places
    return first, second
