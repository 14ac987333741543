"""A command line read by tyro, what is wrong with it said in one line as all that is wrong with an input is.

tyro draws a box of several lines around a mistake, with the help of the option below it. That box is read back here: a
version of tyro that words one differently still gives its words in one line.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from nearstep.errors import NearstepError
from nearstep.files import path_of

FLAGS = (tyro.conf.FlagCreatePairsOff,)
"""An option that is off by default has no opposite."""
_SIDE, _RULES = "│", "─- "  # where output is ASCII, a box has no sides, and its title a rule below
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "int": "a whole number", "float": "a number"}


def parsed(
    kind: Callable[..., Any],
    prog: str,
    arguments: Sequence[str],
    *,
    flags: Sequence[object] = FLAGS,
    default: object = tyro.MISSING_NONPROP,
    description: str | None = None,
    others: bool = False,
) -> Any:
    """What the arguments say, as ``tyro.cli`` makes it.

    Args:
        kind: the dataclass of the options.
        prog: the command, as help shows it.
        arguments: those behind it.
        flags: tyro's markers for all options.
        default: what is not said is as here.
        description: above the options in help, in place of the dataclass's docstring.
        others: also return the arguments that are none of its.

    Raises:
        NearstepError: naming the option and what it takes.
    """
    parse: Callable[..., Any] = tyro.cli
    about = {"prog": prog, "description": description, "default": default, "return_unknown_args": others}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found = parse(kind, args=arguments, config=flags, **about)
    except SystemExit as end:
        if not end.code:
            raise  # after help
        raise NearstepError(f"{_meant(_parts(said.getvalue(), arguments))} ({prog} --help)") from None
    empty = set(_empty(found[0] if others else found))
    for option, value in pairwise([*arguments, "-"]):
        # The parser takes a list's option without a value for an empty list: asked for, and not done.
        if option[:2] == "--" and value[:1] == "-" and option[2:].replace("-", "_") in empty:
            raise NearstepError(f"{option} needs 1 value ({prog} --help)")
    return (_found(found[0]), *found[1:]) if others else _found(found)


def _found(options: Any) -> Any:
    """The options with ~ filled in, which no shell does behind a =, and no path that no file system takes."""
    if isinstance(options, Path):
        return path_of(options)
    if isinstance(options, tuple) and options and type(options) is tuple:
        return tuple(map(_found, options))
    if not is_dataclass(options) or isinstance(options, type):
        return options
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.init}
    changed = {name: new for name, old in given.items() if (new := _found(old)) != old}
    return replace(options, **changed) if changed else options


def _empty(options: object, prefix: str = "") -> Iterator[str]:
    """Names of the lists without a value, with and without those of the groups they stand in."""
    for field in fields(options) if is_dataclass(options) else ():
        value = getattr(options, field.name)
        if value == ():
            yield from (field.name, prefix + field.name)
        yield from _empty(value, f"{prefix}{field.name}.")


def _parts(box: str, arguments: Sequence[str]) -> list[str]:
    """The texts between the rules of a box, each as one line."""
    parts: list[list[str]] = [[]]
    drawn = box.splitlines()
    rows = [row[2:-2] for row in drawn if row.startswith(_SIDE)] or [row[2:] for row in drawn[2:]]
    full = False
    for row in rows:
        if len(row) > 1 and not row.strip(_RULES):
            parts.append([])
            continue
        text, lines = row.strip(), parts[-1]
        if full and text and lines and _broken(lines[-1], text, arguments):
            lines[-1] += text
        else:
            lines.append(text)
        full = len(row.rstrip()) == len(row)
    return [" ".join(filter(None, lines)) for lines in parts if any(lines)]


def _broken(row: str, following: str, arguments: Sequence[str]) -> bool:
    """Whether an argument, longer than a box is wide, goes on in the next row: without a space between them."""
    return row.endswith("'") or any(row[-1:] + following[:2] in argument for argument in arguments)


def _meant(parts: Sequence[str]) -> str:
    """What a box says, without what is help."""
    said = parts[0].partition(" Got errors:")[0]
    for pattern, line in _LINES:
        if found := re.fullmatch(pattern, said, re.DOTALL):
            return line(found, parts)
    return said


def _unrecognised(found: re.Match[str], parts: Sequence[str]) -> str:
    unknown = found[1].split(", ")
    options = [token for token in unknown if token.startswith("-")]
    if not options:
        return f"{unknown[0]!r} is one argument too many"
    near = re.search(r"Perhaps you meant: (?:-\w, )?(--[\w.-]+)", " ".join(parts[1:]))
    return f"there is no option {options[0]}" + (f": did you mean {near[1]}?" if near else "")


def _missing(found: re.Match[str], _parts: Sequence[str]) -> str:
    # Each argument's name stands before its help, which ends with this word; an option's long name comes last.
    names = [re.match(r"\s*(?:-\w [^\s,]+, )?(\S+)", text) for text in found[1].split("(required)") if text.strip()]
    return f"give {' and '.join(name[1] for name in names if name)}"


def _unread(found: re.Match[str], parts: Sequence[str]) -> str:
    """Values of an option that takes several, or of one that a union takes."""
    takes = re.search(re.escape(found[1]) + r" (\[\w+ \[\w+ \.\.\.\]\]|\S+)", " ".join(parts[1:]))
    return f"{found[1]} {found[2]}: give {takes[1]}" if takes else f"{found[1]} cannot be {found[2]}"


def _refused(found: re.Match[str], _parts: Sequence[str]) -> str:
    """A value that a config refused in its own words, which name it; an option's name helps, a class's does not."""
    return found[2] if found[1][:1].isupper() else f"{found[1]}: {found[2]}"


def _unlike(found: re.Match[str], _parts: Sequence[str]) -> str:
    """A value of another type."""
    return f"{found[1]} {found[3]}: give {_KINDS.get(found[2], found[2])}"


_OF = r"Error parsing (-\S+|[A-Z]+)"  # an option, or an argument
_LINES: tuple[tuple[str, Callable[[re.Match[str], Sequence[str]], str]], ...] = (
    (r"Unrecognized options: (.*)", _unrecognised),
    (r"Missing from .*?: (.*)", _missing),
    (rf"{_OF}: no type matching (?:\{{None\}}\|)?(\S+) could be instantiated from \[(.*)\]\.", _unlike),
    (rf"{_OF}: invalid literal for (int)\(\) with base 10: (.*)", _unlike),
    (rf"{_OF}: could not convert string to (float): (.*)", _unlike),
    (r"Error parsing (-\S+): Could not find valid parse for arguments: \[(.*)\]", _unread),
    (r"Error parsing (\S+): (.*)", _refused),
    (
        r"invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)\.?",
        lambda found, _parts: f"{found[2]} {found[1]}: one of {_choices(found[3])}",
    ),
    (
        r"Missing value for argument '(.*)'\. Expected (\d+) values?\.",
        lambda found, _parts: f"--{found[1].lstrip('-')} needs {found[2]} value{'s' * (found[2] != '1')}",
    ),
)


def _choices(listed: str) -> str:
    names = {name.strip(" '\"") for name in listed.split(",")}
    return ", ".join(sorted(names - {"", "None"}))
