"""Students from files: every published layout opens and is the network it was saved from, or is one clear error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import LAYOUTS, other, prefixed
from safetensors.torch import save_file

from nearstep import CausalVideoPipeline, NearstepError, Student, VideoTransformer
from nearstep.models.folder import read_json
from nearstep.models.loading import load_student
from nearstep.models.networks import open_network
from nearstep.models.wan import from_official, sizes_of, to_official
from nearstep.nets.denoiser import TextDenoiser


@pytest.fixture(scope="module")
def official(model_folder: Path) -> dict:
    """The tiny model's student under official names."""
    return to_official(VideoTransformer.from_pretrained(model_folder / "transformer").state_dict())


@pytest.fixture(scope="module")
def wan_base(reference: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of the published numbers' sizes, and other weights."""
    folder = tmp_path_factory.mktemp("base")
    heads = reference["config"]["num_heads"]
    shapes = {name: value.shape for name, value in from_official(reference["state_dict"]).items()}
    sizes = sizes_of(shapes, head_dim=reference["config"]["dim"] // heads)
    assert (sizes["num_attention_heads"], sizes["ffn_dim"], sizes["num_layers"]) == (heads, 192, 2)
    VideoTransformer(**sizes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_published_layout_agrees_with_the_published_rollout(
    layout: str, reference: dict, wan_base: Path, tmp_path: Path
) -> None:
    save, role = LAYOUTS[layout]
    student = Student(path=save(reference["state_dict"], tmp_path), role=role)
    network = load_student(student, {**read_json(wan_base / "config.json"), **student.network})
    given, times = reference["rollout"], (reference["steps"].double() / 1000).tolist()
    text = torch.nn.functional.pad(given["context"], (0, 0, 0, reference["config"]["text_len"] - 7))
    denoiser = TextDenoiser(network, text)
    batch, frames, _, height, width = given["noise"].shape
    cache = denoiser.new_cache(batch, frames, height, width)
    for x, eps in zip(given["noise"].split(given["chunk_sizes"], dim=1), given["eps"], strict=True):
        start = cache.end
        for step, time in enumerate(times):
            x0 = x - time * denoiser(x, torch.full(x.shape[:2], time), cache=cache, start=start)
            if step + 1 < len(times):
                x = (1 - times[step + 1]) * x0 + times[step + 1] * eps[step]
        denoiser.commit(x0, cache=cache, start=start)
        torch.testing.assert_close(x0, given["video"][:, start : cache.end], rtol=0, atol=3e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_is_the_network_it_was_saved_from(layout: str, official: dict, tmp_path: Path) -> None:
    save, role = LAYOUTS[layout]
    opened, expected = open_network(save(official, tmp_path), role), from_official(official)
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name], value) for name, value in expected.items())


def test_every_plan_runs_on_it_and_it_is_the_folder(model_folder: Path, official: dict, tmp_path: Path) -> None:
    file = tmp_path / "student.pt"
    torch.save({"generator_ema": prefixed(official)}, file)
    student = Student(path=file, chunk_frames=2, default_plan="4,1x")
    pipe, own = (CausalVideoPipeline.from_pretrained(model_folder, student=which) for which in (student, None))
    assert pipe.settings.default_plan == "4,1x" and pipe.settings.fps == 12
    for plan in ("4", "4,1x", "1"):
        made, expected = (p("a small red ball", plan, seed=1, output_type="latent").frames for p in (pipe, own))
        assert torch.equal(made, expected)
    window = CausalVideoPipeline.from_pretrained(model_folder, student=replace(student, window_frames=2))
    assert not torch.equal(window("a small red ball", "1", seed=1, output_type="latent").frames, made)
    plain = CausalVideoPipeline.from_pretrained(model_folder, student=file)
    assert plain.request("a ball").clip.plan.lengths == (3, 3) and plain.scheduler.config["shift"] == 5.0


def test_types_are_those_of_a_folder(model_folder: Path, official: dict, tmp_path: Path) -> None:
    torch.save(official, tmp_path / "s.pt")
    options = {"torch_dtype": torch.bfloat16}
    ours = CausalVideoPipeline.from_pretrained(model_folder, student=tmp_path / "s.pt", **options).transformer
    folder = CausalVideoPipeline.from_pretrained(model_folder, **options).transformer.state_dict()
    assert {name: value.dtype for name, value in ours.state_dict().items()} == {n: v.dtype for n, v in folder.items()}
    assert all(torch.equal(value, folder[name]) for name, value in ours.state_dict().items())


class Harm:
    def __reduce__(self):
        return (print, ("harm",))


def less(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


BROKEN: dict[str, tuple[Callable[[dict, Path], object], str | None, str]] = {
    "absent": (lambda s, f: None, None, r"there is no student .*file\.pt"),
    "other role": (lambda s, f: torch.save({"critic": s}, f), None, r"holds \['critic'\] and none of .*generator"),
    "asked role": (lambda s, f: torch.save({"generator": s}, f), "ema", r"holds \['generator'\] and none of \['ema'\]"),
    "no roles": (lambda s, f: torch.save(s, f), "generator", r"holds one network, so there is no role 'generator'"),
    "missing": (lambda s, f: torch.save(less(s, "head.head.bias"), f), None, r"1 missing \(proj_out\.bias\)"),
    "shape": (
        lambda s, f: torch.save({**s, "head.head.bias": torch.zeros(3)}, f),
        None,
        r"1 of another shape \(proj_out\.bias is \[3\], not \[16\]\)",
    ),
    "deeper": (
        lambda s, f: torch.save({**s, "blocks.2.norm3.bias": torch.zeros(3)}, f),
        None,
        r"1 unexpected \(blocks\.2\.norm2\.bias\)",
    ),
    "image": (
        lambda s, f: torch.save({**s, "img_emb.proj.0.bias": torch.zeros(3)}, f),
        None,
        r"file\.pt: weight 'img_emb\.proj\.0\.bias' is no part",
    ),
    "twice": (lambda s, f: torch.save({**s, **prefixed(s)}, f), None, r"holds one weight under two names"),
    "truncated": (lambda s, f: (torch.save(s, f), f.write_bytes(f.read_bytes()[:-999])), None, r"is truncated \(\d+ b"),
    "hole": (
        lambda s, f: (torch.save(s, f), f.write_bytes(f.read_bytes().replace(b"PK\x01\x02", b"PKxx"))),
        None,
        r"file\.pt is damaged: ",
    ),
    "text": (lambda s, f: f.write_text("hello " * 99), None, r"is no weights file; those end in \.safetensors, \.pt"),
    "empty": (lambda s, f: f.write_bytes(b""), None, r"is no weights file"),
    "pointer": (lambda s, f: f.write_text("version https://git-lfs"), None, r"git lfs pull"),
    "code": (lambda s, f: torch.save({"generator": s, "x": Harm()}, f), None, r"holds more than weights.*print"),
    "plain code": (lambda s, f: f.write_bytes(pickle.dumps(Harm())), None, r"holds more than weights"),
    "cut code": (lambda s, f: f.write_bytes(pickle.dumps({"a": 1})[:9]), None, r"file\.pt (is damaged|holds more)"),
    "list": (lambda s, f: torch.save([1], f), None, r"holds a list, not named weights"),
    "numbers": (lambda s, f: torch.save({"step": 3}, f), None, r"holds no tensors: step"),
    "lora": (
        lambda s, f: torch.save({"model": {"blocks.0.attn1.to_q.lora_A.weight": torch.zeros(1, 1)}}, f),
        None,
        r"is a LoRA, not a network.*--lora",
    ),
}


@pytest.mark.parametrize(("harm", "role", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_a_file_is_one_line(
    harm: Callable, role: str | None, message: str, model_folder: Path, official: dict, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "file.pt"
    harm(official, file)
    with pytest.raises(NearstepError, match=message) as caught:
        CausalVideoPipeline.from_pretrained(model_folder, student=Student(path=file, role=role))
    assert "\n" not in str(caught.value) and "harm" not in capsys.readouterr().out


def test_safetensors_and_folders_have_no_roles(model_folder: Path, official: dict, tmp_path: Path) -> None:
    save_file(official, tmp_path / "a.safetensors")
    for path in (tmp_path, tmp_path / "a.safetensors"):
        with pytest.raises(NearstepError, match="holds one network, so there is no role 'generator'"):
            open_network(path, "generator")
    (tmp_path / "a.safetensors").unlink()
    for name in ("b.pt", "c.pt"):
        torch.save(other(official), tmp_path / name)
    with pytest.raises(NearstepError, match=r"holds 2 weights files \(b\.pt, c\.pt\): name one"):
        open_network(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chunk_frames": 0}, "chunk_frames=0; give at least 1"),
        ({"window_frames": 2}, "window_frames=2 is less than a chunk of 3"),
        ({"sink_frames": -1}, "sink_frames=-1"),
    ],
)
def test_a_student_that_cannot_be_is_refused(values: dict, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        Student(path="x.pt", **values)


def test_a_student_takes_the_transformers_place_alone(model_folder: Path, official: dict, tmp_path: Path) -> None:
    torch.save(official, tmp_path / "s.pt")
    with pytest.raises(NearstepError, match="teacher/ would go unused"):
        CausalVideoPipeline.from_pretrained(model_folder, transformer="teacher", student=tmp_path / "s.pt")


def test_the_command_line_runs_a_student(model_folder: Path, official: dict, tmp_path: Path, capsys) -> None:
    from nearstep.cli.main import main

    torch.save({"generator": official, "generator_ema": other(official)}, tmp_path / "s.pt")
    chosen = ["--model", str(model_folder), "--student", str(tmp_path / "s.pt"), "--chunk-frames", "2"]
    assert main(["generate", "a ball", "--dry-run", *chosen, "--role", "generator", "-o", str(tmp_path / "a.mp4")]) == 0
    assert "in 3 chunks" in capsys.readouterr().err
    assert main(["info", chosen[1], *chosen[2:], "--shift", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["networks"]["transformer"]["shift"] == 3 and facts["components"]["transformer"]["class"] == "s.pt"
    assert main(["generate", "a ball", "--shift", "3"]) == 2
    assert "--shift 3.0 is about a student's file" in capsys.readouterr().err
