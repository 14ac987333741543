"""The options with which a command runs a student from its own file (docs/wan.md)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from nearstep.errors import NearstepError
from nearstep.models.student import Student

_DEFAULTS = {field.name: field.default for field in fields(Student)}


def _optional(metavar: str, name: str) -> Any:
    default = {None: "all", "": "none"}.get(_DEFAULTS.get(name, ""), _DEFAULTS.get(name))
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """A causal student in a weights file, run on the model's codec and text encoder."""

    student: Annotated[Path | None, _optional("FILE", "")] = None
    """A network's weights file, which takes the place of the model's transformer; nearstep convert keeps the result."""
    role: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the first of those that is there)")
    ] = None
    """Which network of FILE: generator_ema, generator, model."""
    chunk_frames: Annotated[int | None, _optional("N", "chunk_frames")] = None
    """Latent frames that it denoises together."""
    window_frames: Annotated[int | None, _optional("N", "window_frames")] = None
    """Newest latent frames that a chunk sees."""
    sink_frames: Annotated[int | None, _optional("N", "sink_frames")] = None
    """First latent frames that every chunk sees in addition."""
    shift: Annotated[float | None, _optional("K", "shift")] = None
    """Of its schedule."""
    grid: Annotated[int | None, _optional("N", "grid")] = None
    """Steps of the grid it was distilled on."""

    @property
    def chosen(self) -> Student | None:
        """The student, if one is named.

        Raises:
            NearstepError: for options of a student that is not named, or a file that is not there.
        """
        given = {field.name: getattr(self, field.name) for field in fields(StudentOptions)}
        given = {name: value for name, value in given.items() if value is not None}
        path = given.pop("student", None)
        if path is None:
            if given:
                name, value = next(iter(given.items()))
                option = f"--{name.replace('_', '-')} {value}"
                raise NearstepError(f"{option} is about a student's file; name it: --student FILE")
            return None
        return Student.of(Student(path=path, **given))


NO_STUDENT = StudentOptions()
Flat = Annotated[StudentOptions, tyro.conf.arg(name="")]
"""The options beside a command's own, without a prefix."""
