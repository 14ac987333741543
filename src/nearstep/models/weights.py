"""Weights from any file that Wan2.1 and its students are published in, each tensor read when it is asked for.

Files are .safetensors (sharded or not) and pickles (.pt, .pth, .bin, .ckpt), the latter only as far as torch reads them
without running code. What a checkpoint nests its network under, and which names it uses, is found by looking.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.models.folder import read_header, weight_files
from nearstep.models.lora import ROLE, Update, is_lora, updates_in
from nearstep.models.wan import bare, is_official, our_name, weights_in

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_SHOWN = 3  # names in an error
Shape = tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """Named tensors on disk. Asking for one reads it; names and shapes are known without.

    Args:
        shapes: name -> shape.
        read: the tensor of a name.
        source: where they are, for errors.
    """

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Tensor], source: Path) -> None:
        self.shapes = dict(shapes)
        self.source = source
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, rename: Callable[[str], str]) -> Weights:
        """The same tensors under other names.

        Raises:
            NearstepError: with the file's name, if ``rename`` does not know a name or gives one twice.
        """
        try:
            names = {rename(name): name for name in self.shapes}
        except NearstepError as error:
            raise NearstepError(f"{self.source}: {error}") from None
        if len(names) < len(self.shapes):
            raise NearstepError(f"{self.source} holds one weight under two names, such as {self._twice(names)}")
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Weights(shapes, lambda name: self._read(names[name]), self.source)

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> Weights:
        """The same names; each tensor goes through ``change``, which keeps its shape, when it is read."""
        return Weights(self.shapes, lambda name: change(name, self._read(name)), self.source)

    def check(self, expected: Mapping[str, Shape], what: str) -> None:
        """Refuse weights that are not exactly those of a network.

        Raises:
            NearstepError: with the first names that differ.
        """
        missing = [name for name in expected if name not in self.shapes]
        more = [name for name in self.shapes if name not in expected]
        other = [
            f"{name} is {list(self.shapes[name])}, not {list(shape)}"
            for name, shape in expected.items()
            if name in self.shapes and self.shapes[name] != tuple(shape)
        ]
        named = (("missing", missing), ("unexpected", more), ("of another shape", other))
        if faults := [f"{len(names)} {kind} ({_some(names)})" for kind, names in named if names]:
            raise NearstepError(f"{self.source} does not fit {what}: {', '.join(faults)}")

    def _twice(self, names: Mapping[str, str]) -> str:
        return next(name for name in self.shapes if name not in names.values())


def open_network(path: Path, role: str | None = None) -> Weights:
    """A video network's weights under our names, from a file or a folder of one network.

    Args:
        path: a weights file, or a folder with .safetensors or one pickle.
        role: what the checkpoint nests the network under; by default ``generator_ema``, ``generator`` or ``model``,
            the first that is there, or nothing.

    Raises:
        NearstepError: one line that names the file and what is wrong with it.
    """
    weights = open_weights(path, role).renamed(bare)
    if is_lora(weights.shapes):
        raise NearstepError(f"{path} is a LoRA, not a network: convert the network it changes, with --lora {path}")
    return weights.renamed(our_name) if is_official(weights) else weights


def open_updates(path: Path, *, alpha: float | None = None) -> dict[str, Update]:
    """Low-rank updates from a LoRA file (models/lora.py), by our names of the weights they change."""
    roles = (ROLE,) if path.suffix != ".safetensors" and ROLE in _whole(path) else ()
    weights = open_weights(path, *roles)
    try:
        return updates_in(weights, alpha=alpha)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from None


def open_weights(path: Path, role: str | None = None) -> Weights:
    """Any weights under the names that they were saved with; arguments and errors as for :func:`open_network`."""
    if path.is_dir():
        files = _files_in(path)
    elif not path.exists():
        raise NearstepError(f"there is no weights file {path}")
    else:
        files = [path]
    if any(file.suffix == ".safetensors" for file in files):
        if role is not None:
            raise NearstepError(f"{path} holds one network, so there is no role {role!r} to choose; leave it out")
        return _safetensors(files, path)
    return _pickled(files[0], role)


def _files_in(folder: Path) -> list[Path]:
    pickles = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES[1:])
    if list(folder.glob("*.safetensors")) or not pickles:
        return weight_files(folder)
    if len(pickles) > 1:
        raise NearstepError(
            f"{folder} holds {len(pickles)} weights files ({_some([p.name for p in pickles])}): name one"
        )
    return pickles


def _safetensors(files: list[Path], source: Path) -> Weights:
    homes: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for file in files:
        for name, info in read_header(file).items():
            homes[name], shapes[name] = file, info.shape

    def read(name: str) -> Tensor:
        with safe_open(homes[name], framework="pt") as opened:
            return opened.get_tensor(name)

    return Weights(shapes, read, source)


def _pickled(file: Path, role: str | None) -> Weights:
    checkpoint = _whole(file)
    try:
        state = weights_in(checkpoint, (role,)) if role else weights_in(checkpoint)
    except NearstepError as error:
        raise NearstepError(f"{file}: {error}") from None
    if role and role not in checkpoint:
        raise NearstepError(f"{file} is one network, so there is no role {role!r} to choose; leave it out")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise NearstepError(f"{file} holds no tensors{f' under {role!r}' if role else ''}: {_some([*state])}")
    return Weights({name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, file)


def _whole(file: Path) -> Mapping[str, Any]:
    """A pickle's content; its tensors stay on disk until they are used, where the file's format allows it."""
    zipped = _check_pickle(file)
    try:
        with warnings.catch_warnings():  # of an unusual pickle protocol: it loads, or the error says all
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise NearstepError(
            f"{file} holds more than weights, and reading that could run code: {_reason(error)}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise NearstepError(f"{file} is damaged: {_reason(error)}; fetch it again") from None
    if not isinstance(content, Mapping):
        raise NearstepError(f"{file} holds a {type(content).__name__}, not named weights")
    return content


def _check_pickle(file: Path) -> bool:
    """Whether the pickle is zipped (torch's format since 1.6); refuses what is no pickle at all."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise NearstepError(f"cannot read {file}: {error.strerror}") from error
    if start.startswith(b"version "):
        raise NearstepError(f"{file} is a Git LFS pointer, not the weights: run git lfs pull")
    if start.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(file):
            raise NearstepError(f"{file} is truncated ({file.stat().st_size} bytes): fetch it again")
        return True
    if not start.startswith(b"\x80"):
        raise NearstepError(f"{file} is no weights file; those end in {', '.join(SUFFIXES)} and hold tensors")
    return False


def _reason(error: Exception) -> str:
    """What torch says is wrong, without its advice to load the file all the same."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    return found.removeprefix("WeightsUnpickler error: ")[:160]


def _some(names: list[str]) -> str:
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
