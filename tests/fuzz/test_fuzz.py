"""The harness of this folder: a slice of every family here and now, 10,000 cases of them in ``make test-slow``.

Cases run in this process, as the command line would run them; those of ``calls`` run in the slow test alone, in a
process whose functions do not check the types of their arguments before nearstep does.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.calls import api_calls
from tests.fuzz.cases import GOOD, MARKER, Case, Family, Outcome, command, run
from tests.fuzz.commands import LINES
from tests.fuzz.damage import bytes_gone_wrong, header_gone_wrong, json_gone_wrong, payload
from tests.fuzz.families import FAMILIES, counts
from tests.fuzz.kit import Kit

ROOT = Path(__file__).parents[2]
SEED = 0
HERE = [family for family in FAMILIES if family.name not in ("calls", "settings")]
HERE = [family for family in HERE if family.name != "runs go on"]  # each of which trains
CHEAP = ("plans", "parsers", "names", "takes", "checkpoints", "latents", "results", "videos")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("family", HERE, ids=lambda family: family.name)
def test_a_slice_of_each_family(family: Family, kit: Kit) -> None:
    for number in range(6 if family.name in CHEAP else 1):
        found = run(family, number, kit, SEED)
        assert found.outcome in GOOD, found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LINES if name not in ("ablate", "evaluate")])
def test_the_lines_work_that_are_given_odd_options(name: str, kit: Kit) -> None:
    family = Family(name="whole", case=lambda _, kit, folder: whole_line(name, kit, folder), share=1)
    found = run(family, 0, kit, SEED)
    assert found.outcome == Outcome.FINE, found


def whole_line(name: str, kit: Kit, folder: Path) -> Case:
    line = LINES[name](kit, folder)
    return Case(what=name, act=lambda: command(*line))


def silently(call, given: dict) -> None:
    call(**given)


def test_the_calls_work_that_are_given_odd_arguments(kit: Kit) -> None:
    for name, (call, given) in api_calls(kit).items():
        found = run(act(partial(silently, call, given)), 0, kit, SEED)
        assert found.outcome == Outcome.FINE, (name, found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_ten_thousand_cases(part: int) -> None:
    """An eighth of the families each, so that none takes longer than a test may."""
    names = [family.name for family in FAMILIES][part::8]
    line = [sys.executable, "-m", "tests.fuzz", "--cases", "10000", "--seed", "1", "--only", *names]
    ran = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": "src:.", "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]


# --- the harness itself --------------------------------------------------------------------------------------------


def act(work) -> Family:
    return Family(name="one", case=lambda *_: Case(what="one", act=work, judge=lambda made: made), share=1)


def evil(folder: Path) -> None:
    (folder / MARKER).touch()


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda: None, Outcome.FINE),
        (lambda: "wrong", Outcome.GARBAGE),
        (lambda: command("info", "/nowhere"), Outcome.REFUSED),
        (lambda: command("generate", "--nonsense"), Outcome.REFUSED),
        (lambda: 1 / 0, Outcome.TRACEBACK),
        (lambda: sys.exit(1), Outcome.TRACEBACK),
        (lambda: evil(Path()), Outcome.EXECUTED),
    ],
)
def test_each_outcome_is_told_from_the_others(work, outcome: Outcome, kit: Kit) -> None:
    assert run(act(work), 0, kit, SEED).outcome == outcome


def test_what_hangs_is_stopped_and_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.cases.SECONDS", 0.2)

    def wait() -> None:
        while True:
            pass

    assert run(act(wait), 0, kit, SEED).outcome == Outcome.HANG


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x"),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("x"),
        lambda path: Path("x").touch() or Path("x").rename(path),
    ],
)
def test_nothing_is_written_outside_of_the_harness_s_folders(kit: Kit, write) -> None:
    outside = ROOT / "tests" / "fuzz" / "no-such-thing"
    found = run(act(lambda: write(outside)), 0, kit, SEED)
    assert found.outcome == Outcome.TRACEBACK and "outside of the harness's folders" in found.detail
    assert not outside.exists() and not outside.is_symlink()


def test_cases_are_functions_of_their_numbers(kit: Kit) -> None:
    family = next(family for family in FAMILIES if family.name == "plans")
    first, again = ([run(family, number, kit, SEED).what for number in range(20)] for _ in range(2))
    assert first == again and len(set(first)) > 15
    assert [run(family, number, kit, SEED + 1).what for number in range(20)] != first


def test_damage_is_damage() -> None:
    draw, data = Random(0), b'{"a": [1, 2.5, {"b": "x"}], "c": null}'
    length = (8).to_bytes(8, "little") + b'{"a":{}}' + b"numbers!"
    for _ in range(300):
        for wrong in (bytes_gone_wrong(draw, data), json_gone_wrong(draw, data), header_gone_wrong(draw, length)):
            assert isinstance(wrong.data, bytes) and wrong.what
            assert not wrong.never or wrong.data not in (data, length)


def test_a_payload_does_run_where_it_is_opened_with_pickle(tmp_path: Path) -> None:
    import pickle

    draw = Random(0)
    while (wrong := payload(draw, tmp_path)).what != "a pickle with a payload":
        pass
    pickle.loads(wrong.data)
    assert (tmp_path / MARKER).exists()


def test_ten_thousand_cases_are_ten_thousand() -> None:
    assert 10_000 <= sum(counts(10_000).values()) <= 10_200
    assert set(counts(1).values()) == {1}
