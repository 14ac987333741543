"""The world of things: pictures of real things that move before places, with exact ground truth and a judge.

``THINGS_WORLD`` is the whole of it as a World (protocols.py).
"""

from nearstep.things.things import THINGS_WORLD, Things

__all__ = ["THINGS_WORLD", "Things"]
