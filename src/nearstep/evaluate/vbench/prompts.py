"""VBench's prompts, read from the official VBench_full_info.json, and which of them are asked for.

The file is read from a copy: that of an installed package, of its wheel, or any other. It has 946 entries with 944
different prompts; an entry names the dimensions that its videos are scored in. A rewritten list has a line for each
entry, in the same order: the line is what a video is made of, the entry's own prompt is what its file is named by.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nearstep import rng
from nearstep.data.prompts import read_text
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, FLICKERING, GROUPS, check_dimension

INFO = "VBench_full_info.json"
_IN_WHEEL = f"vbench/{INFO}"
_HOW = "'pip download --no-deps vbench==0.1.5' gets it; give that wheel, or the json, with --info"
VIDEOS, FLICKERING_VIDEOS = 5, 25
"""Of a prompt; a static filter chooses among those of temporal flickering."""
STANDARD = "standard"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One prompt, and what it is for."""

    prompt: str
    """Names the files, as the official evaluator looks them up."""
    text: str
    """What the videos are made of: the prompt, or what a rewritten list has in its place."""
    dimensions: tuple[str, ...]
    place: int
    """Among all entries of the official file; it names the noise, so that a subset has the videos of the whole."""

    @property
    def videos(self) -> int:
        """How many videos of it the protocol asks for."""
        return FLICKERING_VIDEOS if FLICKERING in self.dimensions else VIDEOS

    def file_name(self, index: int, suffix: str = ".mp4") -> str:
        """What the official evaluator looks for."""
        return f"{self.prompt}-{index}{suffix}"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Entries, and the words that say honestly which they are."""

    entries: tuple[Entry, ...]
    wording: str = STANDARD
    """"standard", or the name of the rewritten list."""
    subset: str = "all"

    @property
    def label(self) -> str:
        """For a table's column."""
        return f"{self.wording}, {self.subset}"

    @property
    def videos(self) -> int:
        """Files of the whole set."""
        return sum(entry.videos for entry in self.unique)

    @property
    def unique(self) -> tuple[Entry, ...]:
        """One entry for each name: dimensions together, and of two rewritten texts the later one.

        The official loop makes such a video twice under one name, and the later one stays.
        """
        found: dict[str, Entry] = {}
        for entry in self.entries:
            first = found.get(entry.prompt)
            if first is not None:
                dimensions = tuple(dict.fromkeys((*first.dimensions, *entry.dimensions)))
                entry = replace(first, text=entry.text, dimensions=dimensions)
            found[entry.prompt] = entry
        return tuple(found.values())


def read_prompts(info: Path | None = None, rewritten: Path | None = None) -> PromptSet:
    """All entries of the official file, worded as a list has them.

    Args:
        info: the json, a wheel or a folder that holds it; by default that of the installed package.
        rewritten: a text file with one line for each entry.

    Raises:
        NearstepError: if there is no file, or it is not what it should be.
    """
    entries = _entries(*_info(info))
    if rewritten is None:
        return PromptSet(entries=entries, subset=f"all {len(entries)}")
    lines = read_text(rewritten).rstrip("\n").split("\n")
    if len(lines) != len(entries):
        raise NearstepError(
            f"{rewritten} has {len(lines)} lines for {len(entries)} entries; a rewritten list has one line for "
            f"each, in the order of {INFO}, such as the official all_dimension_longer.txt"
        )
    if empty := [number for number, line in enumerate(lines, start=1) if not line.strip()]:
        raise NearstepError(f"{rewritten}, line {empty[0]} is empty; each prompt needs its words")
    worded = tuple(replace(entry, text=line.strip()) for entry, line in zip(entries, lines, strict=True))
    return PromptSet(entries=worded, wording=rewritten.name, subset=f"all {len(entries)}")


def _info(given: Path | None) -> tuple[str, str]:
    # Where it is, and its text.
    path = given
    if path is None:
        spec = importlib.util.find_spec("vbench")
        if spec is None or spec.origin is None:
            raise NearstepError(f"VBench's prompts are in {INFO} of its package, which is not installed here; {_HOW}")
        path = Path(spec.origin).parent
    if path.is_dir():
        path = next((each for each in (path / INFO, path / _IN_WHEEL) if each.is_file()), path / INFO)
    if path.suffix == ".whl" and path.is_file():
        try:
            with zipfile.ZipFile(path) as wheel:
                return f"{path}", wheel.read(_IN_WHEEL).decode()
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise NearstepError(f"{path} is no wheel of vbench with {_IN_WHEEL} in it; {_HOW}") from error
    if not path.is_file():
        raise NearstepError(f"there is no {path}; {_HOW}")
    return f"{path}", read_text(path)


def _entries(where: str, text: str) -> tuple[Entry, ...]:
    try:
        rows: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NearstepError(f"{where} is not JSON: {error}; {_HOW}") from error
    if not isinstance(rows, list) or not rows:
        raise NearstepError(f"{where} holds no list of prompts; {_HOW}")
    return tuple(_entry(row, place, f"{where}, entry {place}") for place, row in enumerate(rows))


def _entry(row: Any, place: int, where: str) -> Entry:
    prompt, names = (row.get("prompt_en"), row.get("dimension")) if isinstance(row, dict) else (None, None)
    if not isinstance(prompt, str) or not prompt or not isinstance(names, list) or not names:
        raise NearstepError(f"{where} has no prompt_en and dimension; {_HOW}")
    try:
        dimensions = tuple(check_dimension(str(name)) for name in names)
    except NearstepError as error:
        raise NearstepError(f"{where}: {error}") from error
    return Entry(prompt=prompt, text=prompt, dimensions=dimensions, place=place)


def of_dimensions(prompts: PromptSet, names: Sequence[str]) -> PromptSet:
    """The entries of some dimensions; those that share prompts with one of them come with it."""
    wanted = {check_dimension(name) for name in names}
    kept = tuple(entry for entry in prompts.entries if wanted & set(entry.dimensions))
    names, count = ", ".join(name for name in DIMENSIONS if name in wanted), "entry" if len(kept) == 1 else "entries"
    return replace(prompts, entries=kept, subset=f"{len(kept)} {count} of {names}")


def mini(prompts: PromptSet, count: int, *, seed: int = 0) -> PromptSet:
    """``count`` prompts, drawn so that every group has its share; fewer are among more of the same seed.

    Raises:
        NearstepError: if there are not so many, or some group would have none.
    """
    unique = prompts.unique
    groups = [[entry for entry in unique if set(names) & set(entry.dimensions)] for names in GROUPS.values()]
    most, least = len(unique), sum(map(bool, groups))
    if not least <= count <= most:
        raise NearstepError(f"--mini {count}: at least {least}, one of each group, and at most {most}")
    drawn: dict[str, float] = {}
    for name, group in zip(GROUPS, groups, strict=True):
        order = torch.randperm(len(group), generator=rng.generator("vbench mini", name, seed)).tolist()
        for rank, row in enumerate(order):
            share = (rank + 0.5) / len(group)
            drawn[group[row].prompt] = min(share, drawn.get(group[row].prompt, 1.0))
    chosen = {prompt for prompt in sorted(drawn, key=lambda prompt: drawn[prompt])[:count]}
    kept = tuple(entry for entry in prompts.entries if entry.prompt in chosen)
    among = "" if prompts.subset.startswith("all") else f" ({prompts.subset})"
    return replace(prompts, entries=kept, subset=f"mini: {count} of {most} prompts{among}, seed {seed}")


def record(prompts: PromptSet) -> dict[str, Any]:
    """A set of prompts as JSON, for :func:`recorded`."""
    entries = [asdict(entry) for entry in prompts.entries]
    return {"label": prompts.label, "wording": prompts.wording, "subset": prompts.subset, "entries": entries}


def recorded(said: Mapping[str, Any]) -> PromptSet | None:
    """The prompts that a record names; None where it names none.

    Raises:
        NearstepError: if it cannot be understood.
    """
    if "entries" not in said:
        return None
    try:
        entries = tuple(Entry(**{**each, "dimensions": tuple(each["dimensions"])}) for each in said["entries"])
        return PromptSet(entries=entries, wording=str(said["wording"]), subset=str(said["subset"]))
    except (TypeError, KeyError) as error:
        raise NearstepError(f"a record of sampled prompts cannot be read ({error}); sample again") from error
