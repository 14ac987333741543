"""Which pairs a study shows, on which sides, and under which names: all by a hash with a seed that only the key holds.

A study's folder has two parts. ``public/`` is all that the server opens: clips under names that say nothing, and a list
of trials. ``key.json`` says which system made which clip; only the report and the judge read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.json_files import TEXT, check_fields, list_of, map_of, object_of, one_of, optional, read_object
from nearstep.ranges import check_count, check_number

KEY, PUBLIC, TRIALS, CLIPS, VOTES = "key.json", "public", "trials.json", "clips", "votes.jsonl"
"""Names in a study's folder; trials and clips are in the public part."""
MOST_TRIALS, ATTENTIONS = 100_000, 8

PAIR, REPEAT, ATTENTION = "pair", "repeat", "attention"
"""Kinds of trial: two systems; a pair once more with its sides changed; a clip beside its broken copy."""
Item = TypeVar("Item")
Side = Literal["left", "right"]
OTHER: dict[Side, Side] = {"left": "right", "right": "left"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Two clips that are shown beside each other, as the key knows them."""

    id: str
    kind: str
    stem: str
    left: str
    """Name of the system whose clip is on the left."""
    right: str
    repeats: str | None = None
    """The trial that this one is once more."""
    broken: Side | None = None
    """The side of the broken copy."""

    def system(self, side: Side) -> str:
        """Whose clip is on a side."""
        return self.left if side == "left" else self.right


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much a study asks."""

    prompts: int | None = None
    """So many of the stems, drawn by the hash; None is all."""
    repeat: float = 0.1
    """Part of the pairs that is shown once more."""
    attention: int | None = None
    """Trials of a clip beside its broken copy; None is ATTENTIONS, or all clips where there are fewer."""

    def __post_init__(self) -> None:
        check_count("prompts", self.prompts)
        check_number("repeat", self.repeat, least=0, most=1)
        check_count("attention", self.attention, least=0, most=1000)


@dataclass(frozen=True, kw_only=True)
class Key:
    """Who is who."""

    seed: int
    systems: tuple[str, ...]
    prompts: dict[str, str | None]
    """Stem -> prompt, where it is known."""
    trials: dict[str, Trial]

    def clip_name(self, trial: str, side: Side) -> str:
        """The name under which a clip is shown."""
        return hashed("clip", self.seed, trial, side)

    def write_form(self) -> dict[str, object]:
        """As it is written."""
        trials = [asdict(trial) for trial in self.trials.values()]
        return {"seed": self.seed, "systems": list(self.systems), "prompts": self.prompts, "trials": trials}


def hashed(*names: int | str) -> str:
    """A name of 16 letters and digits that says nothing without the seed."""
    return f"{rng.key('study', *names):016x}"


def planned(systems: Sequence[str], stems: Sequence[str], extent: Extent, seed: int) -> list[Trial]:
    """The trials of a study; their own order says nothing, for they are sorted by their names.

    Args:
        systems: names of what is compared, each with each.
        stems: names of the clips.
        extent: how much is asked.
        seed: names sides, repeats and names of clips.

    Raises:
        NearstepError: if there would be too many, or there are fewer clips than are asked for.
    """
    if extent.prompts is not None and extent.prompts > len(stems):
        raise NearstepError(f"prompts={extent.prompts}: the folders share {len(stems)} clips; ask for as many at most")
    stems = sorted(_first(stems, extent.prompts, lambda stem: hashed("stem", seed, stem)))
    pairs = [pair for two in itertools.combinations(systems, 2) for pair in _pairs(two, stems, seed)]
    repeats = [
        Trial(
            id=hashed("repeat", seed, pair.id),
            kind=REPEAT,
            stem=pair.stem,
            left=pair.right,
            right=pair.left,
            repeats=pair.id,
        )
        for pair in _first(pairs, _part(extent.repeat, len(pairs)), lambda pair: hashed("repeats", seed, pair.id))
    ]
    trials = [*pairs, *repeats, *_attention(systems, stems, extent.attention, seed)]
    if len(trials) > MOST_TRIALS:
        raise NearstepError(f"{len(trials)} trials; {MOST_TRIALS} are the most: compare fewer systems, or --prompts")
    return sorted(trials, key=lambda trial: trial.id)


def _pairs(two: tuple[str, str], stems: Sequence[str], seed: int) -> list[Trial]:
    """Two systems on every stem; each is on the left in half of them."""
    order = sorted(stems, key=lambda stem: hashed("side", seed, *two, stem))
    sides = {stem: two if place % 2 else two[::-1] for place, stem in enumerate(order)}
    return [
        Trial(id=hashed("pair", seed, *two, stem), kind=PAIR, stem=stem, left=sides[stem][0], right=sides[stem][1])
        for stem in stems
    ]


def _attention(systems: Sequence[str], stems: Sequence[str], asked: int | None, seed: int) -> list[Trial]:
    every = [(stem, system) for stem in stems for system in systems]
    count = min(ATTENTIONS, len(every)) if asked is None else asked
    if count > len(every):
        raise NearstepError(f"attention={count}: there are {len(every)} clips to break; ask for as many at most")
    chosen = sorted(every, key=lambda clip: hashed("attention", seed, *clip))[:count]
    return [
        Trial(
            id=hashed("attention trial", seed, stem, system),
            kind=ATTENTION,
            stem=stem,
            left=system,
            right=system,
            broken="left" if place % 2 else "right",
        )
        for place, (stem, system) in enumerate(chosen)
    ]


def _part(part: float, count: int) -> int:
    """So much of a count, and one at least where anything is asked for."""
    return max(1, round(part * count)) if part else 0


def _first(items: Iterable[Item], count: int | None, by: Callable[[Item], str]) -> list[Item]:
    return sorted(items, key=by)[:count]


_SIDE = one_of("left", "right")
_TRIAL = object_of(
    {
        **dict.fromkeys(("id", "stem", "left", "right"), TEXT),
        "kind": one_of(PAIR, REPEAT, ATTENTION),
        "repeats": optional(TEXT),
        "broken": optional(_SIDE),
    }
)


def read_key(study: Path) -> Key:
    """The key of a study.

    Raises:
        NearstepError: if there is none, or it is damaged.
    """
    path = study / KEY
    if not study.is_dir():
        raise NearstepError(f"there is no study {study}; nearstep study make writes one")
    content = read_object(path, "make the study again, or put its own key back")
    schema = {"systems": list_of(TEXT), "prompts": map_of(optional(TEXT)), "trials": list_of(_TRIAL)}
    check_fields(content, schema, path)
    check_count("the key's seed", content.get("seed"), least=0, most=2**63)
    names = ("id", "kind", "stem", "left", "right", "repeats", "broken")
    trials = [Trial(**{name: row[name] for name in names}) for row in content["trials"]]
    known = {trial.id for trial in trials}
    for trial in trials:
        if not {trial.left, trial.right} <= set(content["systems"]) or trial.repeats not in {*known, None}:
            raise NearstepError(f"{path} is damaged: its trial {trial.id[:40]} is of systems or trials that it lacks")
    return Key(
        seed=content["seed"],
        systems=tuple(content["systems"]),
        prompts=content["prompts"],
        trials={trial.id: trial for trial in trials},
    )
