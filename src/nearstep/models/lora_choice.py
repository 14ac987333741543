"""Which adapter files a network is to be changed by, and how much. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.files import path_of

NAMES = tuple(f"{stem}{end}" for end in (".safetensors", ".bin") for stem in ("pytorch_lora_weights", "adapter_model"))
"""What diffusers and peft call the file in an adapter's folder."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """An adapter and how much it counts."""

    path: Path
    """The file."""
    strength: float = 1.0
    """What it adds counts so many times."""
    alpha: float | None = None
    """In place of the alpha that the file states; where it states none either, its rank."""

    def __post_init__(self) -> None:
        if not isfinite(self.strength):
            raise NearstepError(f"a LoRA of strength {self.strength}; give a finite number, such as {self.path}:0.8")
        if self.alpha is not None and not (isfinite(self.alpha) and self.alpha > 0):
            raise NearstepError(f"a LoRA's alpha is {self.alpha}; give a finite number above 0")

    @classmethod
    def of(cls, given: LoraFile | Path | str, alpha: float | None = None) -> LoraFile:
        """From a path, FILE or FOLDER, or a path and a strength, FILE:0.8.

        Raises:
            NearstepError: if nothing is there, or a folder holds no adapter, or several.
        """
        if isinstance(given, LoraFile):
            return replace(given, path=adapter_file(given.path), alpha=given.alpha if alpha is None else alpha)
        path, strength = path_of(given), 1.0
        stem, colon, number = str(given).rpartition(":")
        if colon and not path.exists() and (parsed := _number(number)) is not None:
            path, strength = path_of(stem), parsed
        return cls(path=adapter_file(path), strength=strength, alpha=alpha)


Given = LoraFile | Path | str
"""How an adapter may be named."""


def loras_of(given: Given | Sequence[Given] | None, alpha: float | None = None) -> tuple[LoraFile, ...]:
    """One adapter, several or none, each looked for on disk."""
    if given is None:
        return ()
    several = [given] if isinstance(given, LoraFile | Path | str) else given
    return tuple(LoraFile.of(each, alpha) for each in several)


def adapter_file(path: Path) -> Path:
    """The file of an adapter, given as itself or as its folder.

    Raises:
        NearstepError: if there is none.
    """
    if not path.is_dir():
        if not path.exists():
            default = path if path.suffix in _SUFFIXES else path / NAMES[0]
            raise NearstepError(f"there is no adapter {default}; name a LoRA file, or the folder that holds one")
        return path
    if named := [path / name for name in NAMES if (path / name).is_file()]:
        return named[0]
    others = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(others) != 1:
        held = f"{len(others)} weights files ({others[0].name}, ...)" if others else "no weights file"
        raise NearstepError(f"there is no adapter {path / NAMES[0]}: {path} holds {held}; name the file itself")
    return others[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
