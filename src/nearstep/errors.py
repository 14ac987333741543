"""The one error type that means "the input is wrong, and here is what to change", and what such lines are made of."""

from __future__ import annotations

from collections.abc import Collection


class NearstepError(ValueError):
    """A mistake in what the user asked for, in one line: what was given, what is allowed, what to change.

    The command line shows the line alone and exits with code 2. Everything else is a fault of nearstep: one line,
    code 1, and its traceback under ``--debug``.
    """


def hint(name: str, known: Collection[str], listing: str, *, cutoff: float = 0.6) -> str:
    """What may be meant by a name that there is not: the nearest one, or else all there are.

    Args:
        name: what was given.
        known: what there is.
        listing: what the list begins with, such as "worlds are".
        cutoff: how like a near name has to be, up to 1.
    """
    import difflib  # which only mistakes need

    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else f"{listing} {', '.join(known) or 'none'}"


def first_line(error: Exception) -> str:
    """What a library's error says first, for a one-line error of ours."""
    return str(error).strip().partition("\n")[0]
