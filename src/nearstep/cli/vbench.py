"""``nearstep vbench``: VBench's prompts, and what is made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nearstep.cli.options import optional
from nearstep.cli.text import table as lines_of
from nearstep.errors import NearstepError

if TYPE_CHECKING:
    from nearstep.evaluate.vbench.prompts import PromptSet


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Which of VBench's prompts."""

    info: Annotated[Path | None, optional("FILE", "that of the installed package")] = None
    """The official VBench_full_info.json, a folder or a wheel that holds it: "pip download --no-deps vbench==0.1.5"."""
    rewritten: Annotated[Path | None, optional("FILE", "the standard prompts")] = None
    """A list with a line for each of its 946 entries, in their order, such as the official all_dimension_longer.txt:
    videos are made of the lines, and named by the standard prompts."""
    dimensions: Annotated[tuple[str, ...], optional("NAME ...", "all 16")] = ()
    """Only these dimensions' prompts; dimensions of one group share theirs."""
    mini: Annotated[int | None, optional("N", "all prompts")] = None
    """Only N prompts, drawn with every group in its share; results are then labelled mini."""
    mini_seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Names the draw."""

    def read(self) -> PromptSet:
        """The prompts that are asked for."""
        from nearstep.evaluate.vbench.prompts import mini, of_dimensions, read_prompts

        found = read_prompts(self.info, self.rewritten)
        if self.dimensions:
            found = of_dimensions(found, self.dimensions)
        return found if self.mini is None else mini(found, self.mini, seed=self.mini_seed)


ALL_PROMPTS = PromptOptions()
FlatPrompts = Annotated[PromptOptions, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Count VBench's prompts by the dimensions they are for, or print them."""

    prompts: FlatPrompts = ALL_PROMPTS
    """Which prompts."""
    list: bool = False
    """Print what videos are made of, one a line, each name once."""
    names: bool = False
    """Print the names of all videos, as the official evaluator looks them up."""


def _prompts(arguments: Sequence[str]) -> None:
    asked = tyro.cli(Prompts, prog="nearstep vbench prompts", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    found = asked.prompts.read()
    if asked.list and asked.names:
        raise NearstepError("--list and --names print two things; leave one out")
    if asked.list:
        print("\n".join(entry.text for entry in found.unique))
    elif asked.names:
        print("\n".join(entry.file_name(index) for entry in found.unique for index in range(entry.videos)))
    else:
        print("\n".join(_counts(found)))


def _counts(found: PromptSet) -> list[str]:
    groups: dict[tuple[str, ...], list[int]] = {}
    for entry in found.entries:
        groups.setdefault(entry.dimensions, []).append(entry.videos)
    rows = [["dimensions", "prompts", "videos"]]
    rows += [[", ".join(names), str(len(videos)), str(sum(videos))] for names, videos in groups.items()]
    rows += [["all of them, each name once", str(len(found.unique)), str(found.videos)]]
    return [f"{found.label}: {len(found.entries)} entries", *lines_of(rows)]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Add scores up as VBench's authors do, with intervals over prompts; two folders are also compared.

    Folders hold *_eval_results.json, as the official package and "nearstep vbench score" write them.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]FOLDER ...")]
    """One for each system; of two, the differences on the same prompts are shown as well."""
    allow_missing: bool = False
    """Add up what is there where dimensions are missing, and say how many of the 16 it is."""
    published: bool = False
    """Put published totals beside ours, each with its protocol."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE.md")] = None
    """Write the table there, too."""


def _table(arguments: Sequence[str]) -> None:
    asked = tyro.cli(Table, prog="nearstep vbench table", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    from nearstep.evaluate.vbench.results import read_system
    from nearstep.evaluate.vbench.tables import vbench_table
    from nearstep.files import check_writable, replacing

    if not asked.folders:
        raise NearstepError("no folder; name one with *_eval_results.json, such as what nearstep vbench score wrote")
    if asked.output:
        check_writable(asked.output)
    named = [given.rpartition("=") for given in asked.folders]
    systems = [read_system(Path(folder), name) for name, _, folder in named]
    text = vbench_table(systems, allow_missing=asked.allow_missing, published=asked.published)
    print(text)
    if asked.output:
        with replacing(asked.output) as part:
            part.write_text(text + "\n", encoding="utf-8")


PARTS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "prompts": ("which prompts there are, and for which dimensions", _prompts),
    "table": ("the scores added up, with intervals, and two systems compared", _table),
}
"""Word after ``nearstep vbench`` -> a line about it, and what runs it."""


def run(arguments: Sequence[str]) -> None:
    """Find the part that is asked for, and run it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: nearstep vbench {{{','.join(PARTS)}}} [options]\n")
        print("\n".join(lines_of([[f"  {name}", line] for name, (line, _) in PARTS.items()])))
        return
    name, *rest = arguments
    if name not in PARTS:
        near = difflib.get_close_matches(name, PARTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(PARTS)}"
        raise NearstepError(f"nearstep vbench has no part {name!r}: {hint}")
    PARTS[name][1](rest)
