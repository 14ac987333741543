"""What is read as JSON is of the kinds that its reader names, or refused in a line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nearstep.errors import NearstepError
from nearstep.json_files import (
    FLAG,
    NUMBER,
    TEXT,
    WHOLE,
    above,
    check_fields,
    count,
    either,
    list_of,
    map_of,
    object_of,
    one_of,
    optional,
    read_object,
    within,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b"[" * 100_000, "nested without end"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\xe9"}', "not a text in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not a text in UTF-8"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_object_is_refused_in_a_line(tmp_path: Path, text: bytes, reason: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with pytest.raises(NearstepError) as caught:
        read_object(file)
    assert reason in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_not_there_or_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NearstepError, match=str(path)):
            read_object(path)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (TEXT, ["", "é"], [None, 3, ["x"], "\ud800"]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (WHOLE, [0, -3], [True, 1.0, "1", 10**30, None]),
        (NUMBER, [0, -1.5], [True, float("inf"), float("nan"), 10**400, "1", None, [1]]),
        (count(5), [1, 5], [0, 6, 2.0, True]),
        (above(0), [0.1, 3], [0, -1, float("inf"), "3"]),
        (within(0, 1), [0.5, 1], [0, -1, 1.5, float("nan"), "1"]),
        (optional(WHOLE), [None, 3], ["3", 1.5]),
        (either(WHOLE, TEXT), [3, "x"], [None, 0.5]),
        (one_of("a", None), ["a", None], ["b", 0]),
        (list_of(WHOLE, 2), [[1, 2], (3, 4)], [[1], [1, 2, 3], [1, "2"], "12", {1: 2}]),
        (list_of(list_of(NUMBER)), [[], [[]], [[1.0], [2]]], [[1.0], [["x"]]]),
        (map_of(WHOLE), [{}, {"a": 1}], [{"a": "1"}, [1]]),
        (object_of({"a": WHOLE, "b": TEXT}, needed=["a"]), [{"a": 1}, {"a": 1, "b": ""}], [{}, {"a": 1, "b": 2}, 3]),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, tuple) else "",
)
def test_kinds_hold_what_they_say(kind, right: list, wrong: list) -> None:
    assert all(map(kind.holds, right)) and not any(map(kind.holds, wrong))


def test_the_first_wrong_field_is_named_and_others_may_be_anything(tmp_path: Path) -> None:
    schema = {"step": count(), "name": TEXT}
    check_fields({"step": 1, "name": "x", "more": [object()]}, schema, "f")
    with pytest.raises(NearstepError, match=r"f is damaged: its 'step' is \[1, 2\], not a whole number from 1"):
        check_fields({"step": [1, 2], "name": 3}, schema, "f")
    with pytest.raises(NearstepError, match="f is damaged: it has no 'name', which is a text"):
        check_fields({"step": 1}, schema, "f")
    check_fields({"step": 1}, schema, "f", needed=["step"])
    long = json.dumps(list(range(1000)))
    with pytest.raises(NearstepError) as caught:
        check_fields({"step": long}, schema, "f", needed=[])
    assert len(str(caught.value)) < 200
