"""Reads a checkpoint as data: nothing in its folder can run code.

torch's distributed checkpoint opens its description (``.metadata``) with pickle, and single numbers with a
``torch.load`` that may run anything. Here the description is read by an unpickler that knows torch's own records and
nothing else, and numbers are loaded as weights are.
"""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from nearstep.errors import NearstepError

DESCRIPTION = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
}
"""Module -> names that a description is made of; none of them does more than hold what it is given."""


class _Records(pickle.Unpickler):
    """An unpickler for which there is nothing but those records, tensor sizes and types."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and (global_name == "Size" or isinstance(vars(torch).get(global_name), torch.dtype)):
            return vars(torch)[global_name]
        if global_name in _RECORDS.get(module_name, ()):
            name = "pathlib" if module_name == "pathlib._local" else module_name  # where it lies depends on the Python
            return getattr(importlib.import_module(name), global_name)
        raise _refusal(self.path, f"it names {module_name}.{global_name}, which no description needs")


class Reader(FileSystemReader):
    """torch's reader of a checkpoint's folder, whose description was read and checked beforehand.

    Raises:
        NearstepError: if the description cannot be read, or is more than one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._described = described(folder)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what is planned, whose checksums are looked at first: torch's own reader passes over them.

        Raises:
            NearstepError: if a part is not what was written.
        """
        parts = (self.storage_data[item.storage_index] for item in plan.items)
        for info in {(part.relative_path, part.offset): part for part in parts}.values():
            source = Path(self.path) / info.relative_path
            with source.open("rb") as file:
                file.seek(info.offset)
                _check_sums(file.read(info.length), source)
        return super().read_data(plan, planner)

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """The description."""
        return self._described


class Planner(DefaultLoadPlanner):
    """torch's plan of what to read, which takes single numbers as data, too."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take a number, saved as torch saves anything: opened as weights are, it comes back saved by whom it may."""
        number = torch.load(value, weights_only=True)
        clean = io.BytesIO()
        torch.save(number, clean)
        clean.seek(0)
        super().load_bytes(read_item, clean)


def _check_sums(part: bytes, source: Path) -> None:
    """A tensor or number lies there as torch saves it: a zip archive, with a checksum for each of its files."""
    try:
        with zipfile.ZipFile(io.BytesIO(part)) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, zlib.error) as error:
        raise NearstepError(f"{source} is damaged: {error}") from error
    if damaged is not None:
        raise NearstepError(f"{source} is damaged: its numbers are not those that were written")


def described(folder: Path) -> Metadata:
    """The description of the checkpoint in ``folder``.

    Raises:
        NearstepError: if it cannot be read, is no description, or names files outside of the folder.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise NearstepError(f"{path} is not there, or no file; delete {folder} to start the run anew")
    with path.open("rb") as file:
        try:
            metadata = _Records(file, path).load()
        except NearstepError:
            raise
        except Exception as error:  # of an unpickler, anything
            raise _refusal(path, f"it is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise _refusal(path, "it describes nothing")
    for name in {str(getattr(info, "relative_path", "")) for info in metadata.storage_data.values()}:
        if name != Path(name).name or name in ("", "..") or not (folder / name).is_file():
            raise _refusal(path, f"it names {name!r}, which is no file of its folder")
    return metadata


def _refusal(path: Path, why: str) -> NearstepError:
    return NearstepError(
        f"{path} is not what a run of nearstep writes: {why}. Nothing of it was executed; if the folder came from "
        "somebody else, do not use it, else delete it to start the run anew"
    )
