"""The one error type that means "the input is wrong, and here is what to change"."""

from __future__ import annotations


class NearstepError(ValueError):
    """A mistake in what the user asked for, in one line: what was given, what is allowed, what to change.

    The command line shows the line alone and exits with code 2. Everything else is a fault of nearstep: one line,
    code 1, and its traceback under ``--debug``.
    """
