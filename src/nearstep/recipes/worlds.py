"""The worlds there are, by name: another one is a package like playground/ and a line here."""

from __future__ import annotations

from nearstep.errors import NearstepError, hint
from nearstep.playground import PLAYGROUND
from nearstep.protocols import World

WORLDS: dict[str, World] = {world.name: world for world in (PLAYGROUND,)}


def find_world(name: str) -> World:
    """The world of this name.

    Raises:
        NearstepError: if there is none, with the nearest name.
    """
    if name not in WORLDS:
        raise NearstepError(f"there is no world {name!r}: {hint(name, WORLDS, 'worlds are')}")
    return WORLDS[name]
