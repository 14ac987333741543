"""Texts and tables as other programs write them: encodings with a mark, JSON, and what spreadsheets save.

=============  ==================================================================================
.jsonl         a JSON string or an object a line
.json          a list of those, or an object of which one value is such a list
.csv, .tsv     a header, then rows; separated by commas, semicolons, tabs or bars, as the header is
=============  ==================================================================================

UTF-8, with or without a byte order mark; UTF-16 and UTF-32 with one. Any other encoding cannot be told from another
like it, so it is refused and not guessed.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import check_regular
from nearstep.json_files import parsed, shown

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = (",", "\t", ";", "|")


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark names.

    Raises:
        NearstepError: if it cannot be read, or is no text.
    """
    check_regular(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise NearstepError(f"cannot read {file}: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NearstepError(f"{file} is not a text file in UTF-8 (line {line}); convert it") from error
    if "\0" in text:
        raise NearstepError(f"{file} is not a text file: it holds NULs; save it as UTF-8")
    return text


def read_table(file: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows of a table: mappings by the header's names, or strings where a JSON row is one.

    Raises:
        NearstepError: naming the line that cannot be read.
    """
    return TABLES[file.suffix.lower()](file, read_text(file))


def cell(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first of these columns that a row has, and its value; capitals and spaces around a name do not count."""
    known = {str(name).strip().casefold(): name for name in reversed(list(row))}
    found = next((known[name.casefold()] for name in names if name.casefold() in known), None)
    return None if found is None else (found, row[found])


def _json_lines(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parsed(line)
        except ValueError as error:
            raise NearstepError(f"{file}, line {number} is not JSON: {error}") from error
        yield number, _row(row, f"{file}, line {number}")


def _json_list(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    try:
        content = parsed(text)
    except ValueError as error:
        raise NearstepError(f"{file} is not JSON: {error}") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise NearstepError(f"{file} holds {shown(content)}; a list of objects or strings is needed")
    for number, row in enumerate(content, start=1):
        yield number, _row(row, f"{file}, row {number}")


def _row(row: Any, where: str) -> Any:
    if not isinstance(row, dict | str):
        raise NearstepError(f"{where} holds a {type(row).__name__}, not an object or a string")
    return row


def _separated(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    header = text.lstrip("\r\n").partition("\n")[0]
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    separator = max((usual, *_SEPARATORS), key=header.count)  # of as many, the usual one
    stream = io.StringIO(text, newline="")
    reader = csv.DictReader(stream, strict=True, delimiter=separator, skipinitialspace=True)
    try:
        for row in reader:
            if None in row:
                raise NearstepError(f"{file}, line {reader.line_num} has more cells than the header; quote its commas")
            yield reader.line_num, row
    except csv.Error as error:
        raise NearstepError(f"{file}, line {reader.line_num} is not CSV: {error}") from error


TABLES: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".json": _json_list,
}
"""Suffix -> what reads a table's rows."""
