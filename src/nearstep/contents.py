"""Names for what lies in files, so that the same path with something else in it is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_BLOCK, _BLOCKS = 4096, 64  # bytes of a sample of a file, and how many


def content_name(facts: Iterable[str], files: Iterable[Path]) -> str:
    """Sixteen digits that are others for other facts and for files that hold something else, whatever they are called.

    Of a safetensors file (11 GB) its size and 64 blocks spread evenly over it count, its first and last bytes among
    them, and not every byte: training moves all weights, so that much tells two apart. Any other file counts whole.

    Args:
        facts: what is to be named beside the files.
        files: in their order.
    """
    digest = hashlib.sha256(repr(list(facts)).encode())
    for file in files:
        digest.update(str(file.stat().st_size).encode())
        digest.update(_sample(file) if file.suffix == ".safetensors" else file.read_bytes())
    return digest.hexdigest()[:16]


def _sample(file: Path) -> bytes:
    last = max(0, file.stat().st_size - _BLOCK)
    with file.open("rb") as stream:
        blocks = []
        for block in range(_BLOCKS):
            stream.seek(last * block // (_BLOCKS - 1))
            blocks.append(stream.read(_BLOCK))
    return b"".join(blocks)
