"""What a page and the server say to each other over a WebSocket: each message, its fields, and their bounds.

Up go JSON texts, the :data:`REQUESTS`. Down come JSON texts (``hello``, ``chunk``, ``accepted``, ``applied``,
``refused``, ``rewound``, ``skipped``, ``state``, ``error``, ``pong``) and, after each ``chunk``, one binary message:
:func:`packed`.

A request that changes the stream gets two receipts. ``accepted``: it is understood and waits for the end of the chunk
that is being made. ``applied``: it holds from the chunk that is named on; or ``refused``, with the reason.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nearstep.errors import NearstepError, hint
from nearstep.json_files import TEXT, WHOLE, Kind, check_fields, count, optional, parsed_object

VERSION = 1
LONGEST_MESSAGE = 16 * 1024
"""Bytes of a message from a page."""
LONGEST_PROMPT = 4000
LONGEST_PLAN = 200
LONGEST_REF = 64
MOST_FAULTS = 20
"""Messages that are none, before the connection is closed."""
MOST_WAITING = 32
"""Requests of one stream that wait for the end of a chunk."""
AHEAD = 2
"""Chunks that are made beyond the newest one that a viewer has begun to show."""

Json: TypeAlias = dict[str, Any]


def _short(most: int) -> Kind:
    return Kind(f"a text of 1 to {most} signs", lambda value: TEXT.holds(value) and 1 <= len(value.strip()) <= most)


PROMPT = _short(LONGEST_PROMPT)
NEGATIVE = Kind(
    f"a text of at most {LONGEST_PROMPT} signs", lambda value: TEXT.holds(value) and len(value) <= LONGEST_PROMPT
)
PLAN = _short(LONGEST_PLAN)
SEED = Kind("a whole number from 0 to 2^53 - 1", lambda value: WHOLE.holds(value) and 0 <= value < 2**53)
"""What JavaScript can hold, too."""
CHUNK = count(10**6, least=0)
_REF = _short(LONGEST_REF)
_CHANGES = {"prompt": optional(PROMPT), "plan": optional(PLAN), "seed": optional(SEED)}

REQUESTS: Mapping[str, tuple[Mapping[str, Kind], frozenset[str]]] = {
    "change": ({"ref": _REF, **_CHANGES}, frozenset({"ref"})),
    "rewind": ({"ref": _REF, "chunk": CHUNK}, frozenset({"ref", "chunk"})),
    "fork": ({"ref": _REF, "chunk": CHUNK, **_CHANGES}, frozenset({"ref", "chunk"})),
    "play": ({}, frozenset()),
    "pause": ({}, frozenset()),
    "ack": ({"epoch": CHUNK, "chunk": CHUNK}, frozenset({"epoch", "chunk"})),
    "ping": ({}, frozenset()),
}
"""Type of a message -> its fields, and those that it must have. ``ack``: this chunk has begun to be shown."""
STEERING = frozenset({"change", "rewind", "fork", "play", "pause"})
"""What a read-only viewer may not ask."""


class Close:
    """Codes that a connection is closed with, beside WebSocket's own (1009: a message was too large)."""

    IDLE = 4001
    """The stream was closed: nobody had watched it."""
    FAULTS = 4400
    """Too many messages that were none."""
    ABSENT = 4404
    """There is no such stream."""
    SLOW = 4408
    """The viewer does not read what it is sent."""
    GONE = 4410
    """The stream is over; its recording and its video can be downloaded."""
    FULL = 4429
    """There are as many viewers as the server takes."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A message from a page, checked."""

    type: str
    fields: Json

    @property
    def ref(self) -> str:
        """The page's own name for it, which the receipts repeat."""
        return self.fields.get("ref", "")


def read_request(text: str) -> Request:
    """A message as a request.

    Raises:
        NearstepError: saying what is wrong with it.
    """
    if len(text) > LONGEST_MESSAGE:
        raise NearstepError(f"a message of {len(text)} signs; {LONGEST_MESSAGE} are allowed")
    try:
        content = parsed_object(text)
    except ValueError as error:
        raise NearstepError(f"a message is a JSON object: {error}") from None
    kind = content.pop("type", None)
    if not isinstance(kind, str) or kind not in REQUESTS:
        raise NearstepError(f"there is no message {str(kind)[:40]!r}: {hint(str(kind)[:40], REQUESTS, 'messages are')}")
    schema, needed = REQUESTS[kind]
    return Request(type=kind, fields=checked(content, schema, f"the message {kind!r}", needed))


def checked(content: Json, schema: Mapping[str, Kind], where: str, needed: frozenset[str] = frozenset()) -> Json:
    """An object from outside with the fields of a schema and no other; those that are null are left out.

    Raises:
        NearstepError: naming the first that is wrong.
    """
    if strange := sorted(content.keys() - schema.keys()):
        raise NearstepError(f"{where} has no field {strange[0][:40]!r}: {hint(strange[0][:40], schema, 'fields are')}")
    check_fields(content, schema, where, needed=needed, fault="")
    return {name: value for name, value in content.items() if value is not None}


_HEAD = struct.Struct(">4sIII")
_MAGIC = b"nsf1"


def packed(epoch: int, chunk: int, init: bytes, media: bytes) -> bytes:
    """A binary message: a head of 16 bytes (``nsf1``, epoch, chunk, length of the initialisation), then both parts."""
    return _HEAD.pack(_MAGIC, epoch, chunk, len(init)) + init + media


def unpacked(message: bytes) -> tuple[int, int, bytes, bytes]:
    """Epoch, chunk, initialisation and media of a binary message.

    Raises:
        NearstepError: if it is none.
    """
    if len(message) < _HEAD.size or message[:4] != _MAGIC:
        raise NearstepError("this binary message is no chunk of a stream")
    _, epoch, chunk, length = _HEAD.unpack_from(message)
    return epoch, chunk, message[_HEAD.size : _HEAD.size + length], message[_HEAD.size + length :]


State = Literal["playing", "paused", "ended", "failed", "closed"]
"""Of a take: ended is a recording that was made again, or one that is as long as it may be."""


@dataclass(frozen=True, kw_only=True)
class ChunkFacts:
    """What is known of a finished chunk."""

    index: int
    start: int
    """Its first frame."""
    frames: int
    steps: int
    prompt: str
    plan: str
    seed: int
    seconds: float
    """It took, from when it was begun until it was encoded."""
    waiting: int
    """Streams and videos that took turns with it."""
