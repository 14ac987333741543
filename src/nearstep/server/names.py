"""Ids that nobody can guess; of one of several servers behind an address, their first two characters say whose."""

from __future__ import annotations

import re
import secrets
import string

NAME = re.compile(r"[A-Za-z0-9_-]{22}")
"""What ids look like: 128 bits that nobody can guess, or 116 behind the mark of a replica."""
_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
MOST_REPLICAS = len(_DIGITS) ** 2


def new_name(replica: int | None = None) -> str:
    """An id.

    Args:
        replica: the rank of the one that it belongs to; None: there are no others.
    """
    name = secrets.token_urlsafe(16)
    if replica is None:
        return name
    high, low = divmod(replica, len(_DIGITS))
    return _DIGITS[high] + _DIGITS[low] + name[2:]


def replica_of(name: str) -> int:
    """The rank of the replica that a marked id belongs to."""
    return _DIGITS.index(name[0]) * len(_DIGITS) + _DIGITS.index(name[1])
