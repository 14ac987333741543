"""JSON as it comes from disk: read or refused in one line, and each value of the kind that its reader needs.

    SCHEMA = {"name": TEXT, "step": COUNT, "rates": list_of(NUMBER), "note": optional(TEXT)}
    content = check_fields(read_object(path), SCHEMA, path)

What Python's parser takes and JSON does not have (NaN, Infinity) is refused, and so is what it takes no end of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from nearstep.errors import NearstepError
from nearstep.files import check_regular

_SHOWN = 60  # characters of a value in an error
_MOST = 2**63


class Kind(NamedTuple):
    """What a value may be."""

    name: str
    """As an error says it: "a whole number"."""
    holds: Callable[[Any], bool]


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: saying what is wrong with it.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested without end") from None


def parsed_object(text: str) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        ValueError: saying what is wrong with it, or what it is instead.
    """
    content = parsed(text)
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a JSON object")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        NearstepError: if it is not there, cannot be read, or is no text.
    """
    check_regular(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NearstepError(f"{path} is missing") from None
    except OSError as error:
        raise NearstepError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise NearstepError(f"{path} is not a text in UTF-8 ({error})") from error


def read_object(path: Path, advice: str = "fetch or export it again") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        advice: what to do about one that is damaged.

    Raises:
        NearstepError: if there is none.
    """
    text = read_text(path)
    try:
        content = parsed(text)
    except ValueError as error:
        raise NearstepError(f"{path} is not valid JSON ({error}); {advice}") from error
    if not isinstance(content, dict):
        raise NearstepError(f"{path} holds a {type(content).__name__}, not a JSON object; {advice}")
    return content


def check_fields(
    content: Mapping[str, Any],
    schema: Mapping[str, Kind],
    where: object,
    *,
    needed: Collection[str] | None = None,
    fault: str = " is damaged",
) -> None:
    """Refuse an object with a value of another kind; what the schema does not name may be anything.

    Args:
        content: the object.
        schema: name -> what its value may be.
        where: what to begin an error with, such as the file.
        needed: names that must be there; all of them by default.
        fault: what an error says of that, if anything.

    Raises:
        NearstepError: naming the first that is missing or wrong.
    """
    for name, kind in schema.items():
        if name not in content:
            if needed is None or name in needed:
                raise NearstepError(f"{where}{fault}: it has no {name!r}, which is {kind.name}")
        elif not kind.holds(content[name]):
            raise NearstepError(f"{where}{fault}: its {name!r} is {shown(content[name])}, not {kind.name}")


def shown(value: object) -> str:
    """A value, short enough for an error."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


# --- kinds ---------------------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    # Half a character can be written as JSON and nowhere else.
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _is_number(value: Any) -> bool:
    # A whole number of hundreds of digits is no floating-point number either.
    return _is_whole(value) or (isinstance(value, float) and isfinite(value))


TEXT = Kind("a text", _is_text)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a finite number", _is_number)
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))


def count(most: int = 10**9, least: int = 1) -> Kind:
    """A whole number within bounds."""
    return Kind(f"a whole number from {least} to {most}", lambda value: _is_whole(value) and least <= value <= most)


def above(bound: float) -> Kind:
    """A finite number that exceeds a bound."""
    return Kind(f"a finite number above {bound:g}", lambda value: _is_number(value) and value > bound)


def within(low: float, high: float) -> Kind:
    """A number above one bound and up to the other."""
    return Kind(f"a number above {low:g} and at most {high:g}", lambda value: _is_number(value) and low < value <= high)


def optional(kind: Kind) -> Kind:
    """That, or null."""
    return Kind(f"{kind.name}, or null", lambda value: value is None or kind.holds(value))


def either(*kinds: Kind) -> Kind:
    """One of several kinds."""
    return Kind(" or ".join(kind.name for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


def one_of(*values: object) -> Kind:
    """One of a few values."""
    return Kind(f"one of {', '.join(map(str, values))}", lambda value: any(value is v or value == v for v in values))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list whose items are all of a kind, and perhaps so many."""
    many = "" if length is None else f"{length} times "

    def holds(value: object) -> bool:
        return isinstance(value, list | tuple) and length in (None, len(value)) and all(map(kind.holds, value))

    return Kind(f"a list of {many}{kind.name}", holds)


def map_of(kind: Kind) -> Kind:
    """An object whose values are all of a kind."""
    return Kind(
        f"an object of which each value is {kind.name}",
        lambda value: isinstance(value, Mapping) and all(map(kind.holds, value.values())),
    )


def object_of(schema: Mapping[str, Kind], needed: Collection[str] | None = None) -> Kind:
    """An object whose named values are of their kinds."""

    def holds(value: object) -> bool:
        wanted = schema.keys() if needed is None else needed
        return (
            isinstance(value, Mapping)
            and all(name in value for name in wanted)
            and all(kind.holds(value[name]) for name, kind in schema.items() if name in value)
        )

    return Kind(f"an object with {', '.join(schema)}", holds)
