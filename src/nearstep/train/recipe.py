"""What a run is: its options as plain data, and which of them may change when it goes on.

Options that change what the run costs, or where things lie, may change between two sittings. Those that change its
numbers may not. A folder that a run reads is known by what is in it, not by its path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from nearstep.contents import content_name, parts_name
from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig, read_prompts
from nearstep.data.shards import PREPARED, read_index, shard_file
from nearstep.errors import NearstepError
from nearstep.files import check_name
from nearstep.models.folder import Settings

COST = frozenset({"micro", "checkpointing", "replay", "compile", "text_cache"})
"""Options that may change: the result is the same but for rounding."""
PLACES = frozenset({"folder", "files"})
"""Options of clips and prompts that say where they lie."""
CONTENT = "content"
"""What lies there, beside the options."""


@runtime_checkable
class Length(Protocol):
    """The part of a loop's options that belongs to the recipe."""

    @property
    def steps(self) -> int:
        """How long the run is."""
        ...


@runtime_checkable
class Recipe(Protocol):
    """A stage's config: a dataclass with the loop's among its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def loop(self) -> Length:
        """Where the run lives and how long it is."""
        ...


def recipe_of(config: Recipe) -> dict[str, Any]:
    """A config as plain data, without what may differ when a run goes on (its length in minutes, its reporting)."""
    names = [field.name for field in dataclasses.fields(config) if field.name != "loop"]
    options = {name: _plain(getattr(config, name)) for name in names}
    return {**options, "steps": config.loop.steps, CONTENT: _contents(config)}


def check_recipe(saved: Mapping[str, Any], recipe: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on from the checkpoint at ``path`` with options that would change the run's numbers.

    Raises:
        NearstepError: naming the first of them, what it was and what it is now.
    """
    if unknown := sorted(saved.keys() - recipe.keys() - {CONTENT}):
        raise NearstepError(
            f"{path} was made by another version of nearstep: its recipe says {', '.join(unknown)}, which this version "
            "does not know; go on with that version, or start anew in another run folder"
        )
    was, now = saved.get(CONTENT, {}), recipe.get(CONTENT, {})
    known = was.keys() & now.keys()
    compared = sorted(recipe.keys() - COST - {"steps", CONTENT})
    changed = [key for key in compared if _options(saved.get(key), key, known) != _options(recipe[key], key, known)]
    if recipe.get("steps", 0) < saved.get("steps", 0):
        changed.append("steps")
    if changed:
        key = changed[0]
        raise NearstepError(
            f"{path} was made with another recipe: {_difference(key, saved, recipe)} (these differ: "
            f"{', '.join(changed)}); use the old values or another run folder. A run may become longer, and "
            f"{', '.join(sorted(COST))} and the places of folders may change"
        )
    for key in sorted(known):
        if was[key] != now[key]:
            raise NearstepError(
                f"{path} was made from another {key}: what lies at {_place(recipe.get(key))} is not what the run began "
                "with; put that back, or start anew in another run folder"
            )


def _options(value: Any, key: str, known: Set[str]) -> Any:
    # What is known by its content is compared without its place.
    if key not in known:
        return _compared(value, frozenset())
    return None if isinstance(value, str) else _compared(value, PLACES)


def _compared(value: Any, without: Set[str]) -> Any:
    # An option that is not given is one that an earlier version did not have.
    if isinstance(value, Mapping):
        given = {name: inner for name, inner in value.items() if name not in without and inner is not None}
        return {name: _compared(inner, without) for name, inner in given.items()}
    return [_compared(inner, without) for inner in value] if isinstance(value, list) else value


def _difference(key: str, saved: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    was, now = saved.get(key), recipe[key]
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        inner = next(name for name in sorted({**was, **now}) if was.get(name) != now.get(name))
        return f"{key}.{inner} was {was.get(inner)!r} and is now {now.get(inner)!r}"
    return f"{key} was {was!r} and is now {now!r}"


def _place(value: Any) -> str:
    if isinstance(value, list):
        return " or ".join(dict.fromkeys(_place(lesson["latents"]) for lesson in value))
    inner = [value[name] for name in ("folder", "files") if name in value] if isinstance(value, Mapping) else [value]
    return str(inner[0]) if inner else "its place"


def _contents(config: Recipe) -> dict[str, str]:
    """Option -> a name of what lies at its place; only of what is there already."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for value in values.values():
        if isinstance(value, Path):
            check_name(value)
    found = {name: _clips(values.get(name)) for name in ("latents", "pictures")}
    if lessons := [_clips(lesson.latents) for lesson in values.get("lessons", ())]:
        found["lessons"] = None if None in lessons else content_name([str(clips) for clips in lessons], [])
    if isinstance(model := values.get("model"), Path):
        parts = dict.fromkeys([values.get("network"), values.get("teacher"), "vae", "text_encoder"])
        found["model"] = _weights([model / part for part in parts if part])
    if isinstance(codec := values.get("codec"), Path):
        found["codec"] = _weights([codec])
    if isinstance(start := values.get("start"), Path):
        found["start"] = _weights([start, start / "teacher", start / "text_encoder"])
    if isinstance(words := values.get("words"), Path):
        found["words"] = _weights([words / "text_encoder"])
    return {name: digest for name, digest in found.items() if digest is not None}


def _weights(folders: Iterable[Path]) -> str | None:
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.safetensors"))]
    return parts_name([], files) if files else None


def _clips(latents: Any) -> str | None:
    if isinstance(latents, PromptsConfig):
        return content_name([repr(read_prompts(latents.files).texts)], [])
    if not isinstance(latents, LatentsConfig):
        return None
    index = read_index(latents.folder)
    if index is None or index.kind not in PREPARED:
        return None if latents.world is None else f"world {latents.world.name}"  # a function of the other options
    used, count = [], 0
    for number, held in enumerate(index.shards):
        if latents.clips is None or count < latents.clips:  # a folder may grow behind those in use
            used.append(shard_file(latents.folder, number))
            count += held
    return content_name([index.codec, repr(index.shape)], [file for file in used if file.is_file()])


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.stated()  # a setting that a later version adds is no other recipe
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
