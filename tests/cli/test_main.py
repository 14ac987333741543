"""The front door: quick help, near misses named, one line and an exit code for everything that goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import nearstep
from nearstep.cli import main as front
from nearstep.cli import train
from nearstep.cli.main import main
from nearstep.errors import NearstepError

SOURCE = str(Path(nearstep.__file__).parents[1])
HEAVY = {"torch", "diffusers", "transformers", "numpy", "tyro", "PIL", "av", "rich"}


def fresh(code: str) -> str:
    """What ``code`` prints in an interpreter of its own."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": SOURCE}).stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"import sys; from nearstep.cli.main import main; main(['--help']); print({HEAVY!r} & set(sys.modules))"
    out = fresh(code)
    assert out.splitlines()[-1] == "set()"
    assert all(name in out for name in front.COMMANDS)


def test_a_voting_page_is_served_without_what_models_need() -> None:
    serves = "nearstep.server.listen, nearstep.server.voting, nearstep.cli.serve, nearstep.cli.study"
    assert fresh(f"import sys, {serves}; print({{'diffusers', 'transformers', 'av'}} & set(sys.modules))") == "set()\n"


def test_public_names_are_lazy_and_exist() -> None:
    names = fresh("import sys, nearstep; assert 'torch' not in sys.modules; print(*nearstep.__all__)").split()
    assert all(callable(getattr(nearstep, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nearstep.nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "did you mean generate?"),
        (["xyz"], "commands are generate, stream, compare"),
        (["train", "playground.codek"], "did you mean playground.codec?"),
        (["train", "qqq"], "recipes are "),
        (["generate"], "no prompt"),
        (["generate", "a ball", "--model", "/nowhere"], "there is no folder /nowhere"),
        (["info", "/nowhere"], "there is no folder /nowhere"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (NearstepError("two\nlines"), 2), (BrokenPipeError(), 141)]
)
def test_exit_codes(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise raised

    monkeypatch.setattr(front, "_dispatch", fail)
    monkeypatch.setattr(front.os, "dup2", lambda *_: None)
    with capsys.disabled():
        assert main([]) == code


def test_what_nobody_foresaw_is_one_line_and_keeps_its_traceback_for_debug(monkeypatch, capsys) -> None:
    monkeypatch.setattr(front, "_dispatch", lambda _: 1 / 0)
    assert main(["generate"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in said and "--debug says where" in said and said.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        main(["generate", "--debug"])


def test_debug_may_stand_anywhere_and_changes_nothing_else(capsys) -> None:
    for arguments in (["--debug", "info", "/nowhere"], ["info", "/nowhere", "--debug"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_recipes_are_listed_and_their_keys_checked(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", "--help"]) == 0
    assert "playground.codec" in capsys.readouterr().out
    assert main(["train", "playground.codec", "--loop.stepz", "3"]) == 2
    assert "--loop.steps" in capsys.readouterr().err


def test_the_fields_of_an_optional_part_are_options_too(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "playground.distill", "--help"])
    assert "--adversary.weight" in capsys.readouterr().out
    assert main(["train", "playground.distill", "--adversary.weight", "-1"]) == 2
    assert "give a number at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "option", "value", "message"),
    [
        ("playground.distill", "--settings.default-plan", "banana", "default_plan='banana'"),
        ("playground.distill", "--settings.fpss", "3", "--settings.fps"),
        ("playground.teacher", "--settings.num-frames", "80", "num_frames=80 is not 4n+1"),
        ("playground.forcing", "--objective", "forsing", "did you mean forcing?"),
    ],
)
def test_what_a_model_cannot_be_made_for_is_refused_before_a_run(recipe, option, value, message, capsys) -> None:
    assert main(["train", recipe, option, value]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_runs_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import dataclass

    ran = []

    @dataclass(frozen=True)
    class Config:
        steps: int = 3

        def run(self) -> None:
            ran.append(self.steps)

    monkeypatch.setitem(sys.modules, "nearstep.recipes.toy", SimpleNamespace(stage=Config))  # type: ignore[arg-type]
    monkeypatch.setattr(train, "recipes", lambda: {"toy.stage": "A toy."})
    assert main(["train", "toy.stage"]) == main(["train", "toy.stage", "--steps", "5"]) == 0
    assert ran == [3, 5]


def test_a_report_replaces_reports_of_its_run_alone(tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one"]) == main(["report", "one"]) == main(["report", "one", "--out", "a.html"]) == 0
    before = Path("a.html").read_text()
    Path("b.html").write_text("notes")
    for call in (["two", "--out", "a.html"], ["one", "--out", "b.html"]):
        assert main(["report", *call]) == 2
        assert "--overwrite replaces it" in capsys.readouterr().err
    assert Path("a.html").read_text() == before and Path("b.html").read_text() == "notes"
    assert main(["report", "two", "--out", "a.html", "--overwrite"]) == 0
    assert Path("a.html").read_text() != before
    assert main(["report", "three"]) == 2 and not Path("three").exists()


def started(arguments: str, *, ends: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The program with its standard streams as a shell leaves them."""
    command = f"exec {sys.executable} -m nearstep.cli.main {arguments} {ends}"
    own = {"PYTHONPATH": SOURCE, **environment}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=own)


@pytest.mark.parametrize("ends", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(ends: str) -> None:
    assert started("--version", ends=ends).returncode == 0
    assert started("nothing", ends=ends).returncode == front.USER_ERROR


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_standard_output_is_said_in_one_line() -> None:
    found = started("--version", ends=">/dev/full")
    assert (found.returncode, found.stderr) == (
        front.USER_ERROR, "nearstep: cannot write to standard output: No space left on device\n"
    )  # fmt: skip


def test_words_that_an_encoding_lacks_are_escaped() -> None:
    found = started("h\u00fclfe", PYTHONIOENCODING="ascii")
    assert found.returncode == front.USER_ERROR and "there is no command 'h\\xfclfe'" in found.stderr
