"""A model's settings are checked where they are made, and say in a folder what they said before."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from nearstep.errors import NearstepError
from nearstep.models.folder import EMBEDDED, ModelFolder, Settings
from nearstep.recipes import playground, wan
from nearstep.train.export import check_settings


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"fpss": 3}, "did you mean fps?"),
        ({"fps": math.nan}, "fps=nan .* give a number above 0"),
        ({"fps": 0}, "fps=0 .* above 0"),
        ({"fps": "12"}, "fps='12' .* give a number"),
        ({"num_frames": 80}, "use 77 or 81"),
        ({"num_frames": 33.0}, "num_frames=33.0 .* whole number"),
        ({"height": True}, "height=True .* whole number"),
        ({"width": -48}, "width=-48 .* whole number above 0"),
        ({"grid": 0}, "grid=0 .* whole number above 0"),
        ({"default_plan": "banana"}, "default_plan='banana': plan 'banana'"),
        ({"default_plan": 4}, "default_plan=4 is no plan"),
        ({"teacher_plan": "0"}, "teacher_plan='0': .* at least 1 step"),
        ({"guidance_scale": math.inf}, "guidance_scale=inf .* 0 or above"),
        ({"teacher_renoise": "new"}, "teacher_renoise='new' .* give implied or fresh"),
        ({"teacher_renoise": ["fresh"]}, "teacher_renoise=.* give implied or fresh"),
        ({"recommit": 1}, "recommit=1 says neither yes nor no; give true or false"),
        ({"agreement": [[0.9], []]}, "give a list of cosines"),
        ({"agreement": 0.9}, "give a list of cosines"),
    ],
)
def test_what_is_misspelt_or_impossible_is_named(stated: dict, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        Settings.of(stated)


def test_a_folder_says_what_it_said() -> None:
    """The embedded model's index, written before settings were a type, says the same when it is read and written."""
    folder = ModelFolder.open(EMBEDDED)
    said = folder.index["nearstep"]
    assert Settings.of(said).stated() == {**said, "agreement": tuple(map(tuple, said["agreement"]))}
    assert replace(folder.settings, agreement=()) == playground.distill().settings
    assert wan.distill().settings.stated() == {"fps": 16, "num_frames": 81, "height": 480, "width": 832}


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(fps=12, teacher_plan="20"),
        Settings(teacher_renoise="fresh", recommit=False),
        Settings(grid=8, height=64),
    ],
)
def test_what_is_stated_is_read_again(settings: Settings) -> None:
    assert Settings.of(settings.stated()) == settings
    assert settings.stated().keys() <= asdict(settings).keys()


@pytest.mark.parametrize(
    ("settings", "message"), [({"fpss": 3}, "did you mean fps?"), ({"fps": 3}, r"is a dict; write Settings\.of")]
)
def test_a_stage_refuses_settings_that_are_not_checked(settings: dict, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        check_settings(settings)
    check_settings(Settings(fps=3))


def test_a_run_of_an_unchecked_dict_ends_before_it_begins() -> None:
    """In a process of its own: here every argument's type is checked, and a run's are not."""
    code = (
        "from dataclasses import replace\nfrom nearstep.recipes import playground\n"
        "replace(playground.forcing(), settings={'fpss': 3})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "NearstepError: unknown setting 'fpss'" in ended.stderr and "did you mean fps?" in ended.stderr
