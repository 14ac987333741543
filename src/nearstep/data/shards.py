"""Latents on disk: shards of safetensors, what each clip is in JSON lines beside them, and an index. See docs/data.md.

    index.json           format, codec, clip shape, type, fps, origin, and how many clips each shard holds
    00000.safetensors    latents [n, F, C, H, W], normalised
    00000.jsonl          one line per clip: {"caption": ..., and where the clip comes from}

The index is written last and names what is complete: a shard that it does not list does not exist. Latents are read
where they lie, a clip at a time; a set may be much larger than memory.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.files import check_regular, replacing, write_json, write_json_lines
from nearstep.json_files import (
    NUMBER,
    OBJECT,
    TEXT,
    Kind,
    above,
    check_fields,
    count,
    list_of,
    one_of,
    parsed_object,
    read_object,
    read_text,
)

INDEX = "index.json"
FORMAT, VERSION = "nearstep latents", 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_WRITTEN = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}  # as safetensors calls them
PREPARED = ("videos", "teacher")
"""Kinds of clips whose captions are stored; any other kind is the name of a world, which words them."""

Record = Mapping[str, Any]

_INDEX: dict[str, Kind] = {
    "codec": TEXT,
    "dtype": one_of(*DTYPES),
    "fps": above(0),
    "made_from": OBJECT,
    "shape": list_of(count(10**5), 4),
    "shards": list_of(count()),
    "sums": list_of(TEXT),
    "clips": count(10**12, least=0),
}
"""What an index may say."""
_RECORD: dict[str, Kind] = {
    "caption": TEXT,
    "file": TEXT,
    "clip": count(least=0),
    "of": count(),
    "start": NUMBER,
    "sample": count(least=0),
}
"""What a record may say."""
_SUMS = "crc32"
"""Where the file of a shard keeps what its clips sum up to, one after the other."""
_FIRST_SUM = ""
"""Stands for the sum of a shard that was written without."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of latents holds."""

    codec: str
    """Names the codec's weights."""
    shape: tuple[int, int, int, int]
    """Shape (F, C, H, W) of a clip."""
    dtype: str
    """A key of DTYPES."""
    fps: float
    """Pixel frames per second."""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    """``kind``, and the options that decide what a clip is."""
    shards: tuple[int, ...] = ()
    """How many clips each shard holds."""
    sums: tuple[str, ...] = field(default=(), compare=False)
    """What names the numbers of each shard; fewer where the first ones were written by earlier versions."""

    @property
    def clips(self) -> int:
        """How many clips all shards hold."""
        return sum(self.shards)

    @property
    def kind(self) -> str:
        """What the clips were made from: one of PREPARED, or the name of a world."""
        return str(self.made_from.get("kind"))


def shard_file(folder: Path, number: int) -> Path:
    """Where the latents of a shard lie."""
    return folder / f"{number:05d}.safetensors"


def record_file(folder: Path, number: int) -> Path:
    """Where it says what the clips of a shard are."""
    return folder / f"{number:05d}.jsonl"


def clip_bytes(index: Index) -> int:
    """How many bytes a clip takes on disk."""
    return math.prod(index.shape) * DTYPES[index.dtype].itemsize


def codec_key(config: Mapping[str, Any]) -> str:
    """Names a codec's weights, by its configuration: the statistics of its latents differ between any two trainings."""
    return f"{rng.key(repr((list(config['latents_mean']), list(config['latents_std'])))):016x}"


# --- the index -----------------------------------------------------------------------------------------------------


def read_index(folder: Path) -> Index | None:
    """The index of a folder, or None where there is none.

    Raises:
        NearstepError: if it is damaged or of another format.
    """
    path = folder / INDEX
    if not path.exists():
        return None
    given = read_object(path, "make the latents again")
    if given.get("format") != FORMAT:
        raise NearstepError(f"{path} is no index of latents; use another folder")
    if given.get("version") != VERSION:
        raise NearstepError(f"{path} has version {given.get('version')}; this nearstep reads version {VERSION}")
    check_fields(given, _INDEX, path, needed=_INDEX.keys() - {"sums", "clips"})
    fields = {name: given[name] for name in ("codec", "dtype", "fps", "made_from")}
    index = Index(
        **fields, shape=tuple(given["shape"]), shards=tuple(given["shards"]), sums=tuple(given.get("sums", ()))
    )
    if given.get("clips", index.clips) != index.clips or len(index.sums) > len(index.shards):
        raise NearstepError(f"{path} is damaged: its shards and clips do not add up; make the latents again")
    return index


def write_index(folder: Path, index: Index) -> None:
    """Write the index, whole or not at all."""
    content = {"format": FORMAT, "version": VERSION, **asdict(index), "clips": index.clips}
    write_json(folder / INDEX, content)


def check_same(folder: Path, found: Index, wanted: Index) -> None:
    """Refuse a folder whose clips are not like ``wanted``.

    Raises:
        NearstepError: naming what differs.
    """
    a, b = ({**asdict(index), **index.made_from} for index in (found, wanted))
    names = [name for name in {**b, **a} if name not in ("made_from", "shards", "sums") and a.get(name) != b.get(name)]
    if names:
        told = "; ".join(f"{name} is {a.get(name)!r} there, {b.get(name)!r} here" for name in names)
        raise NearstepError(f"{folder} holds other latents ({told}); use another latents folder")


# --- writing -------------------------------------------------------------------------------------------------------


def add_shard(folder: Path, index: Index, latents: Tensor, records: Sequence[Record] | None = None) -> Index:
    """Write one more shard and then the index, which is returned.

    Args:
        folder: what is written to.
        index: what the folder holds so far.
        latents: [n, F, C, H, W] of the index's shape.
        records: one per clip with its ``caption``; None where a world words the captions.
    """
    if latents.shape[1:] != index.shape:
        raise NearstepError(f"latents of shape {tuple(latents.shape[1:])} do not belong to {folder}: {index.shape}")
    number = len(index.shards)
    if records is not None:
        write_json_lines(record_file(folder, number), records)
    latents = latents.to(DTYPES[index.dtype]).cpu().contiguous()
    sums = " ".join(_sum_of(clip) for clip in latents)
    with replacing(shard_file(folder, number)) as part:
        # Not save_file, whose files only their owner may read.
        part.write_bytes(save({"latents": latents}, {_SUMS: sums}))
    before = (*index.sums, *[_FIRST_SUM] * (number - len(index.sums)))
    index = replace(index, shards=(*index.shards, latents.shape[0]), sums=(*before, _name_of(sums)))
    write_index(folder, index)
    return index


def _sum_of(clip: Tensor) -> str:
    return f"{zlib.crc32(clip.contiguous().view(torch.uint8).numpy().data):08x}"


def _name_of(sums: str) -> str:
    return f"{zlib.crc32(sums.encode()):08x}"


class ShardWriter:
    """Collects clips and writes a shard whenever one is full."""

    def __init__(self, folder: Path, index: Index, size: int) -> None:
        self.folder, self.index, self.size = folder, index, size
        self._latents: list[Tensor] = []
        self._records: list[Record] = []

    @property
    def room(self) -> int:
        """How many clips the shard that is being filled has still room for."""
        return self.size - len(self._latents)

    def add(self, latents: Tensor, record: Record) -> None:
        """Take one clip [F, C, H, W]."""
        self._latents.append(latents)
        self._records.append(record)
        if not self.room:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self._latents:
            self.index = add_shard(self.folder, self.index, torch.stack(self._latents), self._records)
            self._latents, self._records = [], []


# --- reading -------------------------------------------------------------------------------------------------------


class Shards:
    """The latents of a folder, read where they lie.

    Raises:
        NearstepError: if a shard that the index lists is missing, damaged or of another shape.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        self._starts = [0, *accumulate(index.shards)]
        self._sums: list[list[str]] = []
        for number, held in enumerate(index.shards):
            path = shard_file(folder, number)
            shape, dtype = _kind_of(path)
            if shape != (held, *index.shape):
                raise NearstepError(f"{path} has shape {shape}, not {(held, *index.shape)} as {INDEX} says")
            if dtype != index.dtype:
                raise NearstepError(f"{path} is of {dtype}, not of {index.dtype} as {INDEX} says")
            self._sums.append(self._sums_of(path, index.sums[number] if number < len(index.sums) else _FIRST_SUM, held))

    def _sums_of(self, path: Path, name: str, held: int) -> list[str]:
        """The sums of a shard's clips; none where it was written without."""
        if name == _FIRST_SUM:
            return []
        with safe_open(path, framework="pt") as file:
            sums = (file.metadata() or {}).get(_SUMS, "")
        if _name_of(sums) != name or len(sums.split()) != held:
            raise NearstepError(f"{path} is not the shard that {INDEX} names; make the latents again")
        return sums.split()

    @property
    def shape(self) -> torch.Size:
        """(clips, F, C, H, W)."""
        return torch.Size((self.index.clips, *self.index.shape))

    def rows(self, rows: Sequence[int]) -> Tensor:
        """The clips with these numbers, [len(rows), F, C, H, W], float32."""
        out = torch.empty((len(rows), *self.index.shape))
        places: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(bisect_right(self._starts, row) - 1, []).append(place)
        for number, wanted in places.items():
            with safe_open(shard_file(self.folder, number), framework="pt") as file:
                latents = file.get_slice("latents")
                for place in wanted:
                    inside = rows[place] - self._starts[number]
                    clip = latents[inside]
                    if self._sums[number] and _sum_of(clip) != self._sums[number][inside]:
                        path = shard_file(self.folder, number)
                        raise NearstepError(f"{path}, clip {inside}: its numbers are not those that were written")
                    out[place] = clip
        return out

    def records(self) -> list[Record]:
        """What every clip is, in order."""
        return [record for number in range(len(self.index.shards)) for record in self._records(number)]

    def _records(self, number: int) -> list[Record]:
        path, clips = record_file(self.folder, number), self.index.shards[number]
        lines = [line for line in read_text(path).split("\n") if line.strip()]
        if len(lines) != clips:
            raise NearstepError(f"{path} has {len(lines)} lines for {clips} clips; one each, with a caption, is needed")
        return [_record(line, f"{path}, line {place}") for place, line in enumerate(lines, start=1)]


def _record(line: str, where: str) -> Record:
    try:
        record = parsed_object(line)
    except ValueError as error:
        raise NearstepError(f"{where} is damaged ({error}); each is an object with a caption") from error
    check_fields(record, _RECORD, where, needed=("caption",))
    return record


def _kind_of(path: Path) -> tuple[tuple[int, ...], str]:
    """Shape and type of a shard's latents."""
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            latents = file.get_slice("latents")
            kind = str(latents.get_dtype())
            return tuple(latents.get_shape()), _WRITTEN.get(kind, kind)
    except FileNotFoundError as error:
        raise NearstepError(f"{path} is missing; is the latents folder complete?") from error
    except OSError as error:
        raise NearstepError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise NearstepError(f"{path} is no whole shard ({error}); make the latents again") from error
