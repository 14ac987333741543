"""The playground: a procedural captioned world with exact ground truth, and what measures clips of it.

``PLAYGROUND`` is the whole of it as a World (protocols.py); nothing outside this package needs more, tests and
benchmarks that look inside apart.
"""

from nearstep.playground.playground import PLAYGROUND, Playground

__all__ = ["PLAYGROUND", "Playground"]
