"""The one door to matplotlib, which comes with the extra "train"."""

from __future__ import annotations

from typing import Any

from nearstep.errors import NearstepError


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, without a window.

    Raises:
        NearstepError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NearstepError('a picture needs matplotlib; install it with: pip install "nearstep[train]"') from error
    return Figure(figsize=(width, height), layout="constrained")
