"""Prompt files: text, JSON lines or CSV, checked, and in an order that is a function of how many were seen.

=========  ==========================================================================================
.txt       one prompt a line; a line that begins with # is a prompt too (hashtags are)
.jsonl     a JSON string or an object a line; the object's ``caption``, ``text`` or ``prompt`` counts
.json      a list of those
.csv       a header, then rows; the column ``caption``, ``text`` or ``prompt`` counts; .tsv likewise
=========  ==========================================================================================

Encodings and separators are those of data/tables.py. Blank lines are skipped, white space around a prompt is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearstep.data.tables import TABLES, cell, read_table, read_text
from nearstep.errors import NearstepError
from nearstep.json_files import TEXT, shown
from nearstep.ranges import check_count

CAPTION_COLUMNS = ("caption", "text", "prompt", "cap")
"""Names of the column that is read, in this order, unless one is asked for."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of some files, each once."""

    texts: tuple[str, ...]
    repeated: tuple[str, ...] = ()
    """The prompts that the files hold more than once."""
    places: tuple[str, ...] = ()
    """File and line of each of ``texts``."""

    def batch(self, first: int, size: int, *, seed: int = 0) -> list[str]:
        """The ``size`` prompts that come after the first ``first``: each once an epoch, shuffled by ``seed``."""
        from nearstep.data.order import rows_after  # which needs torch, and reading does not

        return [self.texts[row] for _, row in rows_after(first, size, count=len(self.texts), seed=seed)]


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """Prompts to train on without clips, and the size of the clips to make of them."""

    files: tuple[Path, ...]
    """Prompt files (docs/data.md)."""
    frames: int
    """Latent frames F."""
    channels: int
    height: int
    """Height of a latent frame."""
    width: int
    """Width of a latent frame."""
    seed: int = 0
    """Names the order."""

    def __post_init__(self) -> None:
        if not self.files:
            raise NearstepError("latents.files names no prompt file; name at least one")
        for name in ("frames", "channels", "height", "width"):
            check_count(name, getattr(self, name), most=10**5)


class PromptClips:
    """Prompts in the place of clips: what distillation needs, unless its adversary or sampling asks for clips.

    Args:
        config: the files and sizes.

    Raises:
        NearstepError: as read_prompts does.
    """

    def __init__(self, config: PromptsConfig) -> None:
        self.prompts, self.seed = read_prompts(config.files), config.seed
        self.shape = (config.frames, config.channels, config.height, config.width)

    @property
    def starts(self) -> tuple[int, ...]:
        """None: a prompt holds for a whole clip."""
        return ()

    @property
    def texts(self) -> Sequence[str]:
        """All of them."""
        return self.prompts.texts

    def examples(self, count: int) -> list[str]:
        """The first prompts, to look at while training."""
        return list(self.prompts.texts[:count])

    def batch(self, first: int, size: int) -> tuple[None, list[str]]:
        """No clips, and the prompts that come after the first ``first``."""
        return None, self.prompts.batch(first, size, seed=self.seed)


def read_prompts(files: Sequence[Path], *, column: str | None = None) -> Prompts:
    """Read prompt files, in order.

    Args:
        files: at least one.
        column: the column or key that holds the prompt, where it is none of :data:`CAPTION_COLUMNS`.

    Raises:
        NearstepError: naming the file and the line that cannot be read, or a file without prompts.
    """
    seen: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for file in files:
        found = [
            (text, line) for line, text in ((line, prompt.strip()) for line, prompt in _read(file, column)) if text
        ]
        if not found:
            raise NearstepError(f"{file} holds no prompts; write one a line")
        for text, line in found:
            (repeated if text in seen else seen)[text] = f"{file}, line {line}"
    return Prompts(texts=tuple(seen), repeated=tuple(repeated), places=tuple(seen.values()))


def _read(file: Path, column: str | None) -> Iterator[tuple[int, str]]:
    suffix = file.suffix.lower()
    if suffix in (".txt", ""):
        yield from enumerate(read_text(file).splitlines(), start=1)
    elif suffix in TABLES:
        for line, row in read_table(file):
            yield line, row if isinstance(row, str) else caption_in(row, f"{file}, line {line}", column)
    else:
        raise NearstepError(f"{file}: a prompt file ends in .txt, {', '.join(TABLES)}, not {file.suffix}")


def caption_in(row: Mapping[str, Any], where: str, column: str | None = None, *, absent: bool = False) -> str:
    """The caption that a row holds; ``""`` where the value is missing, and the column too if it may be ``absent``.

    Raises:
        NearstepError: beginning with ``where``, if no column is known, or the value is no text.
    """
    names = (column,) if column else CAPTION_COLUMNS
    found = cell(row, names)
    if found is None:
        if absent:
            return ""
        known = " or ".join(names)
        raise NearstepError(f"{where}: no column {known}; it has {', '.join(map(str, row)) or 'none'}")
    name, value = found
    if isinstance(value, list) and len(value) == 1:  # as FastVideo writes captions
        value = value[0]
    if value is not None and not TEXT.holds(value):
        raise NearstepError(f"{where}: {name} is {shown(value)}, not a text")
    return str(value or "")
