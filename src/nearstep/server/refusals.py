"""What the server does not do, each with the HTTP status that says so."""

from __future__ import annotations


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: the HTTP status.
        why: one line: what was asked, what is allowed, what to change.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


def check_size(width: int, height: int, *, usual: int) -> None:
    """Refuse frames whose making would take this machine's memory from everybody else.

    Args:
        width: pixels.
        height: pixels.
        usual: pixels of the model's own frames.
    """
    if width * height > 4 * max(usual, 2**18):
        why = f"size={width}x{height}: this server makes no frames of more than 4 times its model's pixels"
        raise Refusal(400, why)


def full(what: str, most: int, option: str) -> Refusal:
    """There are as many as the server takes."""
    return Refusal(429, f"there are {most} {what} already; close one, or start the server with more ({option})")


def absent(what: str, name: str) -> Refusal:
    """There is no such thing."""
    return Refusal(404, f"there is no {what} {name[:40]!r} here")
