"""Names for what lies in files, so that the same path with something else in it is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

_BLOCK, _BLOCKS = 4096, 64  # bytes of a sample of a file, and how many
_LARGE = 64 * 2**20


def content_name(facts: Iterable[str], files: Iterable[Path]) -> str:
    """Sixteen digits that are others for other facts and for files that hold something else, whatever they are called.

    Of weights (11 GB) the size and 64 blocks spread evenly over them count, first and last bytes among them, and not
    every byte: training moves all weights, so that much tells two apart. Any other file counts whole, up to 64 MiB.

    Args:
        facts: what is to be named beside the files.
        files: in their order.
    """
    digest = hashlib.sha256(repr(list(facts)).encode())
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        digest.update(_sample(file, size) if file.suffix == ".safetensors" or size > _LARGE else file.read_bytes())
    return digest.hexdigest()[:16]


def parts_name(facts: Iterable[str], files: Sequence[Path]) -> str:
    """The same, of files that are known by their own names and their folders', too, as the parts of a model are."""
    return content_name([*facts, *(f"{file.parent.name}/{file.name}" for file in files)], files)


def _sample(file: Path, size: int) -> bytes:
    last = max(0, size - _BLOCK)
    with file.open("rb") as stream:
        blocks = []
        for block in range(_BLOCKS):
            stream.seek(last * block // (_BLOCKS - 1))
            blocks.append(stream.read(_BLOCK))
    return b"".join(blocks)
