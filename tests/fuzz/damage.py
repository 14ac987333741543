"""Odd values, and files as bad disks, other programs and bad people leave them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from math import inf, isfinite, nan
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.fuzz.cases import MARKER

SMALL = ("0", "1", "2", "3", "5", "-1", "-0", "0.5", "1.5", "007", "+1", "1.", ".5")
ABSURD = (
    *("nan", "inf", "-inf", "1e30", "-1e30", "1e400", "1e-400", "-1000000007", "999999999999", "9" * 40, "9" * 5000),
    *("0x10", "1_000", "٣", "½", "1,5", "1 ", "--1", "1e", "True", "None", "null", "3;4"),
)
"""Numbers that no option means, as they are written."""
WORDS = (
    *(
        "",
        " ",
        "\t",
        "x",
        "a b",
        "a\nb",
        "a\0b",
        "\x1b[31mred",
        "\udc80",
        "名前",
        "é",
        "\u202e",
        "🎈",
        "%s",
        "{}",
        "{0}",
        "$HOME",
    ),
    *(
        "*",
        "?",
        "'",
        '"',
        "\\",
        "-",
        "--",
        "~",
        "~nobody/x",
        ".",
        "..",
        "../x",
        "a/../b",
        "a//b",
        "nul",
        "NaN",
        "[]",
        "{",
    ),
    *("a" * 255, "a" * 300, "a/" * 2100, "é" * 200, "<b>", "&amp;", ":", "x:nan", "=", "x=y", "4,1x", "playground"),
)
"""Strings that come out of scripts gone wrong."""
DEEP = "[" * 100_000
KINDS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**30,
    0.5,
    -2.5,
    1e308,
    nan,
    inf,
    -inf,
    "",
    "x",
    "nan",
    "3",
    "\udc80",
)
NESTED: tuple[Any, ...] = ([], {}, [[]], [None], {"a": None}, [1, 2, 3], ["x"], [[1.0]], {"": ""}, [{}], [nan])


class Damage(NamedTuple):
    """A file gone wrong."""

    what: str
    data: bytes
    never: bool
    """Nobody could have meant it: what is accepted all the same must come out as if it were not there."""


def odd_text(draw: Random) -> str:
    """A value as a command line has it."""
    return draw.choice(draw.choice((SMALL, ABSURD, WORDS)))


def odd_value(draw: Random) -> Any:
    """A value as JSON, or Python, has it."""
    return draw.choice(KINDS) if draw.random() < 0.7 else draw.choice(NESTED)


# --- bytes ---------------------------------------------------------------------------------------------------------


def bytes_gone_wrong(draw: Random, data: bytes) -> Damage:
    """Cut off, overwritten, flipped, grown, replaced."""
    size = len(data)
    place = draw.randrange(size) if size else 0

    def flip() -> bytes:
        flipped = bytearray(data)
        for _ in range(draw.choice((1, 1, 3, 20))):
            flipped[draw.randrange(size)] ^= 1 << draw.randrange(8)
        return bytes(flipped)

    ways: dict[str, Callable[[], bytes]] = {
        "cut off": lambda: data[:place],
        "empty": lambda: b"",
        "without its beginning": lambda: data[place:],
        "a block of zeros": lambda: data[:place] + bytes(min(64, size - place)) + data[place + 64 :],
        "a block of noise": lambda: data[:place] + draw.randbytes(min(64, size - place)) + data[place + 64 :],
        "noise": lambda: draw.randbytes(draw.choice((1, 8, 100, 3000))),
        "zeros": lambda: bytes(max(1, size)),
        "grown": lambda: data + draw.randbytes(draw.choice((1, 64))),
        "twice": lambda: data * 2,
        "bytes put in": lambda: data[:place] + draw.randbytes(draw.choice((1, 7))) + data[place:],
        "a page of HTML": lambda: b"<!doctype html><html><body>404</body></html>\n",
        "a pointer of Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "bits flipped": flip,
    }
    what = draw.choice([*ways, "bits flipped", "bits flipped", "cut off"])
    changed = ways[what]() if size else b"\0"
    return Damage(f"{what} at {place} of {size}", changed, changed != data)


# --- JSON ----------------------------------------------------------------------------------------------------------


def json_gone_wrong(draw: Random, data: bytes) -> Damage:
    """A JSON file with another value, a key less or more, or that is no JSON."""
    if draw.random() < 0.25:
        return _no_json(draw, data)
    content = json.loads(data)
    places = [*_places(content)]
    if not places:
        return _no_json(draw, data)
    *above, last = draw.choice(places)
    home = content
    for step in above:
        home = home[step]
    way = draw.choice(("value", "value", "value", "value", "gone", "more"))
    if way == "gone":
        del home[last]
        return Damage(f"{last!r} is gone", _dumped(content), never=False)
    if way == "more" and isinstance(home, dict):
        home[draw.choice(("unknown", "", "_class_name", str(last).upper()))] = odd_value(draw)
        return Damage(f"one key more beside {last!r}", _dumped(content), never=False)
    was, now = home[last], odd_value(draw)
    home[last] = now
    return Damage(f"{'.'.join(map(str, (*above, last)))} is {now!r:.60}", _dumped(content), never=_is_no(now, was))


def _is_no(now: Any, was: Any) -> bool:
    """Whether a value cannot stand where another stood: of another kind, or not finite."""
    if isinstance(now, float) and not isfinite(now):
        return True
    if now is None or was is None:
        return False
    return _kind(now) is not _kind(was)


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    found: list[tuple[Any, ...]] = []
    for step, value in list(inside)[:200]:
        found += [(*above, step), *_places(value, (*above, step))]
    return found


def _dumped(content: Any) -> bytes:
    return json.dumps(content).encode()


def _no_json(draw: Random, data: bytes) -> Damage:
    ways = {
        "null": b"null",
        "a list": b"[]",
        "a number": b"3",
        "a string": b'"x"',
        "an empty object": b"{}",
        "deep": DEEP.encode(),
        "an open deep object": b'{"a":' * 50_000,
        "NaN": b"NaN",
        "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "with a mark": b"\xef\xbb\xbf" + data,
        "in UTF-16": data.decode(errors="replace").encode("utf-16"),
        "with Latin-1": data[:1] + b'"\xe9": 1, ' + data[1:],
        "with NULs": data.replace(b" ", b"\0"),
    }
    if draw.random() < 0.5:
        return bytes_gone_wrong(draw, data)._replace(never=False)
    what = draw.choice([*ways])
    meant = what in ("with a mark", "an empty object", "in UTF-16") or ways[what] == data
    return Damage(what, ways[what], never=not meant)


def lines_gone_wrong(draw: Random, data: bytes) -> Damage:
    """A file of JSON lines: one of them gone wrong, or their order."""
    lines = data.split(b"\n")
    row = draw.randrange(len(lines) - 1)
    way = draw.choice(("a line", "a line", "a line", "gone", "twice", "order", "bytes"))
    if way == "bytes":
        return bytes_gone_wrong(draw, data)._replace(never=False)
    if way == "a line":
        wrong = json_gone_wrong(draw, lines[row])
        lines[row] = wrong.data
        return Damage(f"line {row + 1}: {wrong.what}", b"\n".join(lines), wrong.never)
    if way == "gone":
        del lines[row]
    elif way == "twice":
        lines.insert(row, lines[row])
    else:
        draw.shuffle(lines)
    return Damage(f"lines: {way} at {row + 1}", b"\n".join(lines), never=False)


# --- safetensors and pickles ---------------------------------------------------------------------------------------


def header_gone_wrong(draw: Random, data: bytes) -> Damage:
    """A safetensors file whose header says something else."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if draw.random() < 0.2:
        stated = draw.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return Damage(f"a header of {stated}", stated.to_bytes(8, "little") + header + rest, never=True)
    wrong = json_gone_wrong(draw, header)
    changed = len(wrong.data).to_bytes(8, "little") + wrong.data + rest
    return Damage(f"header: {wrong.what}", changed, wrong.never and "__metadata__" not in wrong.what)


def numbers_gone_wrong(draw: Random, file: Path) -> Damage:
    """A safetensors file with a number that is none."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save

    state = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    floating = sorted(name for name, value in state.items() if value.is_floating_point())
    name, value = draw.choice(floating), draw.choice((nan, inf, -inf))
    flat = state[name].flatten()
    flat[draw.randrange(len(flat)) if draw.random() < 0.7 else slice(None)] = value
    state[name] = flat.reshape(state[name].shape).to(torch.float32 if flat.dtype == torch.float64 else flat.dtype)
    return Damage(f"{name} holds {value}", save(state, metadata), never=True)


class _Payload:
    """What runs when a pickle of it is opened."""

    def __init__(self, folder: Path) -> None:
        self.marker = str(folder / MARKER)

    def __reduce__(self) -> Any:
        return (open, (self.marker, "w"))


def payload(draw: Random, folder: Path, content: Any = None) -> Damage:
    """A pickle that makes the marker in ``folder``, alone or beside honest content."""
    import torch

    evil = _Payload(folder)
    inside = draw.choice((evil, {"a": evil}, [evil], (content, evil), {"state_dict": content, "x": evil}))
    way = draw.choice(("pickle", "torch", "torch before zip"))
    if way == "pickle":
        return Damage("a pickle with a payload", pickle.dumps(inside, protocol=draw.choice((0, 2, 4, 5))), never=True)
    stream = io.BytesIO()
    torch.save(inside, stream, _use_new_zipfile_serialization=way == "torch")
    return Damage(f"a payload in {way}", stream.getvalue(), never=True)
