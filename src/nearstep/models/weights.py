"""Weights from any file that Wan2.1 and its students are published in, each tensor read when it is asked for.

Files are .safetensors (sharded or not) and pickles (.pt, .pth, .bin, .ckpt), the latter only as far as torch reads them
without running code. What a checkpoint nests its network under, and which names it uses, is found by looking.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nearstep.errors import NearstepError, first_line
from nearstep.files import check_regular
from nearstep.models.folder import read_header, weight_files
from nearstep.models.wan import ROLES, weights_in
from nearstep.nets.fp8 import Scaled

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_SHOWN = 3  # names in an error
Shape = tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """Named tensors on disk. Asking for one reads it; names, shapes and types are known without.

    Args:
        shapes: name -> shape.
        types: name -> type, as torch calls it ("float32").
        read: the tensor of a name.
        source: where they are, for errors.
        coded: of a name that is stored in eight bits, its numbers as they are and the factor of each row; None of
            others.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        types: Mapping[str, str],
        read: Callable[[str], Tensor],
        source: Path,
        coded: Callable[[str], Scaled | None] = lambda _: None,
    ) -> None:
        self.shapes = dict(shapes)
        self.types = dict(types)
        self.source = source
        self._read = read
        self.coded = coded

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
        types = {new: self.types[old] for new, old in names.items()}
        return Weights(
            shapes, types, lambda name: self._read(names[name]), self.source, lambda name: self.coded(names[name])
        )

    def only(self, wanted: Callable[[str], bool]) -> Weights:
        """Those whose names are wanted."""
        shapes = {name: shape for name, shape in self.shapes.items() if wanted(name)}
        return Weights(shapes, {name: self.types[name] for name in shapes}, self._read, self.source, self.coded)

    def mapped(
        self,
        change: Callable[[str, Tensor], Tensor],
        types: Mapping[str, str] | None = None,
        coded: Callable[[str], Scaled | None] = lambda _: None,
    ) -> Weights:
        """The same names; each tensor goes through ``change``, which keeps its shape, when it is read.

        Args:
            change: of a name and its tensor.
            types: of those that change theirs.
            coded: as for all weights, where ``change`` is what gives eight-bit numbers back.
        """
        types = {**self.types, **(types or {})}
        return Weights(self.shapes, types, lambda name: change(name, self[name]), self.source, coded)

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
        if faults := [f"{len(names)} {kind} ({some(names)})" for kind, names in named if names]:
            raise NearstepError(f"{self.source} does not fit {what}: {', '.join(faults)}")

    def _twice(self, names: Mapping[str, str]) -> str:
        return next(name for name in self.shapes if name not in names.values())


def open_weights(path: Path, role: str | None = None, *, roles: Sequence[str] = ROLES) -> Weights:
    """Any weights under the names that they were saved with; one line names what is wrong with the file.

    Args:
        path: a weights file or a folder.
        role: what to take of a checkpoint.
        roles: where no role is named: what to look for.
    """
    check_regular(path)
    if path.is_dir():
        files = _files_in(path)
    elif not path.exists():
        raise NearstepError(f"there is no weights file {path}")
    else:
        files = [path]
    if any(file.suffix == ".safetensors" for file in files):
        weights = _safetensors(files, path)
        return weights if role is None else _of_role(weights, role)
    return _pickled(files[0], role, roles)


def _of_role(weights: Weights, role: str) -> Weights:
    """The weights of one of several networks that lie side by side, as their names say."""
    own = weights.only(lambda name: name.startswith(f"{role}."))
    if not own:
        raise NearstepError(f"{weights.source} holds one network, so there is no role {role!r} to choose; leave it out")
    return own.renamed(lambda name: name.removeprefix(f"{role}."))


def _files_in(folder: Path) -> list[Path]:
    pickles = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES[1:])
    if list(folder.glob("*.safetensors")) or not pickles:
        return weight_files(folder)
    if len(pickles) > 1:
        raise NearstepError(
            f"{folder} holds {len(pickles)} weights files ({some([p.name for p in pickles])}): name one"
        )
    return pickles


def _safetensors(files: list[Path], source: Path) -> Weights:
    homes: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    types: dict[str, str] = {}
    for file in files:
        for name, info in read_header(file).items():
            homes[name], shapes[name], types[name] = file, info.shape, info.dtype

    def read(name: str) -> Tensor:
        try:
            with safe_open(homes[name], framework="pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise NearstepError(f"{homes[name]} is damaged: {first_line(error)}; fetch or export it again") from error

    return Weights(shapes, types, read, source)


def _pickled(file: Path, role: str | None, roles: Sequence[str]) -> Weights:
    checkpoint = _whole(file)
    try:
        state = weights_in(checkpoint, (role,) if role else roles)
    except NearstepError as error:
        raise NearstepError(f"{file}: {error}") from None
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise NearstepError(f"{file} holds no tensors{f' under {role!r}' if role else ''}: {some([*state])}")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    weights = Weights(shapes, types, tensors.__getitem__, file)
    return _of_role(weights, role) if role and role not in checkpoint else weights


class _Skipped:
    """In the place of a number or array of numpy beside the weights: it is neither built nor kept."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = (
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
)


def _whole(file: Path) -> Mapping[str, Any]:
    """A pickle's content; its tensors stay on disk until they are used, where the file's format allows it."""
    zipped = _check_pickle(file)
    try:
        with warnings.catch_warnings():  # of an unusual pickle protocol: it loads, or the error says all
            warnings.simplefilter("ignore", UserWarning)
            with torch.serialization.safe_globals([(_Skipped, name) for name in _NUMPY]):
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise NearstepError(
            f"{file} holds more than weights, and reading that could run code: {_reason(error)}"
        ) from None
    except Exception as error:  # of an unpickler, anything
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
    if start.startswith(b"GGUF"):
        raise NearstepError(f"{file} is quantised, as GGUF, which is not read here: use a .safetensors or .pt file")
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


def some(names: list[str]) -> str:
    """The first few of many names, for an error."""
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
