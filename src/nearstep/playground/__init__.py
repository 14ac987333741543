"""The playground: a world of pictures of real things that move before places, with exact ground truth and a judge.

``PLAYGROUND`` is the whole of it as a World (protocols.py).
"""

from nearstep.playground.playground import PLAYGROUND, Playground

__all__ = ["PLAYGROUND", "Playground"]
