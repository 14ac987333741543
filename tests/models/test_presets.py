"""Published students by name: what their authors say is what runs, what is asked comes first, the docs say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import other, prefixed

from nearstep import CausalVideoPipeline, NearstepError, Student, VideoTransformer
from nearstep.cli.main import main
from nearstep.flow.plan import make_plan
from nearstep.models.empty import arguments_of
from nearstep.models.presets import PRESETS, Preset, preset_of
from nearstep.models.wan import to_official

DOCS = (Path(__file__).parents[2] / "docs" / "wan.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def official(model_folder: Path) -> dict:
    return to_official(VideoTransformer.from_pretrained(model_folder / "transformer").state_dict())


def row(name: str, preset: Preset) -> str:
    window = f"{preset.window_frames}, {preset.sink_frames}" if preset.window_frames else "none"
    numbers = f"{preset.chunk_frames} | {preset.shift:g} | {preset.default_plan} | {window}"
    return f"| `{name}` | {preset.title} `{preset.file}` | {preset.role or '-'} | {numbers} | {preset.licence} |"


@pytest.mark.parametrize("name", PRESETS)
def test_the_docs_show_it(name: str) -> None:
    assert row(name, PRESETS[name]) in DOCS


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_a_student_whose_plan_runs(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    (tmp_path / "s.pt").touch()
    student = Student.of(f"{name.upper()}={tmp_path / 's.pt'}")
    assert student.path == tmp_path / "s.pt" and student.role is None
    for field, value in preset.options.items():
        assert getattr(student, field) == value
    plan = make_plan(
        student.default_plan, frames=21, chunk_frames=student.chunk_frames, shift=student.shift, grid=student.grid
    )
    assert sum(plan.lengths) == 21


def test_their_lists_of_times() -> None:
    """Self-Forcing's list is 1000, 750, 500, 250 at shift 5; CausVid's 1, .757, .522 is nearest to 1, .75, .5."""
    times = make_plan("4", frames=3, chunk_frames=3, shift=PRESETS["self-forcing"].shift, grid=4).schedules[0].times
    expected = [5 * u / (1 + 4 * u) for u in (1, 0.75, 0.5, 0.25)]
    assert list(times) == pytest.approx(expected)
    preset = PRESETS["causvid"]
    times = make_plan(preset.default_plan, frames=3, chunk_frames=3, shift=preset.shift, grid=4).schedules[0].times
    assert list(times) == pytest.approx([1, 0.75, 0.5])


def test_what_is_asked_comes_first(tmp_path: Path) -> None:
    (tmp_path / "s.pt").touch()
    student = Student.of(f"longlive={tmp_path / 's.pt'}", shift=8.0, role="ema", window_frames=12)
    assert (student.shift, student.role, student.window_frames, student.sink_frames) == (8.0, "ema", 12, 3)


@given(name=st.sampled_from(sorted(PRESETS)), cut=st.integers(0, 3))
def test_a_name_that_is_nearly_known_names_the_nearest(name: str, cut: int) -> None:
    wrong = name[:cut] + "q" + name[cut:]
    with pytest.raises(NearstepError, match="no published student is called") as caught:
        preset_of(f"{wrong}=model.pt")
    assert name in str(caught.value)


def test_paths_stay_paths(tmp_path: Path) -> None:
    odd = tmp_path / "causvid=x.pt"
    odd.touch()
    assert preset_of(odd) == (None, str(odd))
    assert preset_of("runs/lr=3/model.pt") == (None, "runs/lr=3/model.pt")
    with pytest.raises(NearstepError, match="names no file"):
        preset_of("causvid=")
    with pytest.raises(NearstepError, match=r"there is no student no\.pt"):
        Student.of("causvid=no.pt")
    with pytest.raises(NearstepError, match=r"'zzz'; self-forcing, causvid, .* are known"):
        preset_of("zzz=model.pt")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("causvid", lambda s: {"generator": prefixed(s), "generator_ema": other(prefixed(s))}),
        ("self-forcing", lambda s: {"generator": other(prefixed(s)), "generator_ema": prefixed(s)}),
        ("longlive", lambda s: {"model": prefixed(s), "iteration": 3}),
        ("one-forcing", lambda s: dict(s)),
        ("self-forcing", lambda s: {"generator": s, "generator_ema": {}}),
    ],
)
def test_its_network_runs_by_every_door(name: str, make, official: dict, model_folder: Path, tmp_path: Path) -> None:
    preset, file = PRESETS[name], tmp_path / "s.pt"
    torch.save(make(official), file)
    pipe = CausalVideoPipeline.from_pretrained(model_folder, student=f"{name}={file}")
    config = pipe.transformer.config
    assert (config["chunk_frames"], config["window_frames"]) == (preset.chunk_frames, preset.window_frames)
    assert pipe.scheduler.config["shift"] == preset.shift and pipe.settings.default_plan == preset.default_plan
    own = VideoTransformer.from_pretrained(model_folder / "transformer").state_dict()
    assert all(torch.equal(value, own[key]) for key, value in pipe.transformer.state_dict().items())
    command = ["convert", f"{name}={file}", str(tmp_path / "m"), "--base", str(model_folder), "--head-dim", "16"]
    assert main(command) == 0
    kept = CausalVideoPipeline.from_pretrained(tmp_path / "m")
    for key in arguments_of(config):
        assert kept.transformer.config[key] == config[key]
    assert kept.settings.default_plan == preset.default_plan and kept.scheduler.config["shift"] == preset.shift
    assert f'license: "{preset.licence}"' in (tmp_path / "m" / "README.md").read_text()
    assert all(torch.equal(value, own[key]) for key, value in kept.transformer.state_dict().items())


def test_the_command_line_takes_a_name(official: dict, model_folder: Path, tmp_path: Path, capsys) -> None:
    torch.save({"generator": official, "generator_ema": other(official)}, tmp_path / "s.pt")
    chosen = ["--student", f"causvid={tmp_path / 's.pt'}"]
    assert main(["info", str(model_folder), *chosen, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["networks"]["transformer"]["shift"] == 3 and facts["settings"]["default_plan"] == "3"
    assert main(["info", str(model_folder), *chosen, "--shift", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"]["transformer"]["shift"] == 8
    assert main(["info", str(model_folder), "--student", f"causvit={tmp_path / 's.pt'}"]) == 2
    assert "no published student is called 'causvit'; causvid" in capsys.readouterr().err
