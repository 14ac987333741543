"""A causal student from a weights file, run on a base model's codec, text encoder and sizes.

Published students are one network in a .pt file; everything else is Wan2.1's. What the file cannot say,
:class:`Student` does; models/presets.py lists it for those that are published. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import path_of
from nearstep.models.presets import preset_of
from nearstep.ranges import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class Causality:
    """How a network's causality and schedule were when it was trained."""

    chunk_frames: int = 3
    """Latent frames denoised together."""
    shift: float = 5.0
    """The schedule's shift k."""
    window_frames: int | None = None
    """Newest latent frames that a chunk sees, its own included; None for all."""
    sink_frames: int = 0
    """First latent frames that every chunk sees in addition."""
    grid: int = 4
    """Steps of the grid it was distilled on."""
    default_plan: str = "4"
    """Its plan unless another is asked for."""

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "grid"):
            check_count(name, getattr(self, name))
        check_number("shift", self.shift, above=0)
        check_count("sink_frames", self.sink_frames, least=0)
        check_count("window_frames", self.window_frames)
        if self.window_frames is not None and self.window_frames < self.chunk_frames:
            raise NearstepError(f"window_frames={self.window_frames} is less than a chunk of {self.chunk_frames}")
        if not isinstance(self.default_plan, str):
            raise NearstepError(f"default_plan={self.default_plan!r} is no plan; write one as a string, such as '4'")

    @property
    def network(self) -> dict[str, Any]:
        """VideoTransformer's arguments about it."""
        return {name: getattr(self, name) for name in ("chunk_frames", "window_frames", "sink_frames")}

    @property
    def settings(self) -> dict[str, Any]:
        """The model settings about it."""
        return {"grid": self.grid, "default_plan": self.default_plan}


@dataclass(frozen=True, kw_only=True)
class Student(Causality):
    """A student's file and how to run it. The defaults are Self-Forcing's (configs/self_forcing_dmd.yaml)."""

    path: Path | str
    """The weights file, or a folder of one network."""
    role: str | None = None
    """Which network of the file: ``generator_ema``, ``generator``, ``model``; the first that is there by default."""
    usual_role: str | None = None
    """Which network is looked for before all others, where no role is asked for."""

    @classmethod
    def of(cls, given: Student | Path | str, **asked: float | str | None) -> Student:
        """A student from a path, with the defaults, or from NAME=PATH, with what is published about that student.

        Args:
            given: a student, a path, or a name of models/presets.py and a path, ``"causvid=model.pt"``.
            asked: fields in place of those.

        Raises:
            NearstepError: for a name that is not known, or a file that is not there.
        """
        if isinstance(given, Student):
            student = given
        else:
            preset, path = preset_of(given)
            fields: dict[str, Any] = {**(preset.options if preset else {}), **asked}
            student = cls(path=path, **fields)
        path = path_of(student.path)
        if not path.exists():
            raise NearstepError(f"there is no student {student.path}; give a weights file")
        return replace(student, path=path)
