"""Loading errors: every way a model folder can be wrong is one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearstep import CausalVideoPipeline, NearstepError
from nearstep.contents import content_name
from nearstep.models.folder import ModelFolder, Settings, read_header

WEIGHTS = "diffusion_pytorch_model.safetensors"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["proj_out.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda m: (m / "model_index.json").unlink(), r"model_index.json is missing"),
    "index is no json": (lambda m: (m / "model_index.json").write_text("{"), r"model_index.json is not valid JSON"),
    "index is a list": (lambda m: (m / "model_index.json").write_text("[]"), r"holds a list"),
    "misspelt setting": (lambda m: edit(m / "model_index.json", nearstep={"fsp": 3}), r"'fsp'.*did you mean fps"),
    "no network": (lambda m: shutil.rmtree(m / "transformer"), r"has no transformer/; it holds .*teacher/.*vae/"),
    "no config": (lambda m: (m / "vae/config.json").unlink(), r"vae/config.json is missing"),
    "no weights": (lambda m: (m / "vae" / WEIGHTS).unlink(), r"vae holds no .safetensors"),
    "empty weights": (lambda m: (m / "vae" / WEIGHTS).write_bytes(b""), r"no whole safetensors file \(0 bytes\)"),
    "text as weights": (lambda m: (m / "vae" / WEIGHTS).write_text("hello" * 50), r"no whole safetensors file"),
    "truncated": (lambda m: (p := m / "vae" / WEIGHTS).write_bytes(p.read_bytes()[:-1]), r"truncated: \d+ bytes"),
    "cut in header": (lambda m: (p := m / "vae" / WEIGHTS).write_bytes(p.read_bytes()[:90]), r"no whole safetensors"),
    "trailing bytes": (lambda m: (p := m / "vae" / WEIGHTS).write_bytes(p.read_bytes() + b"x"), r"is damaged"),
    "pickle renamed": (lambda m: torch.save({}, m / "vae" / WEIGHTS), r"is a pickle under a safetensors name"),
    "git lfs pointer": (lambda m: (m / "vae" / WEIGHTS).write_text("version https://git-lfs"), r"git lfs pull"),
    "other class": (lambda m: edit(m / "vae/config.json", _class_name="AutoencoderKL"), r"is a AutoencoderKL, not a"),
    "other size": (lambda m: edit(m / "transformer/config.json", ffn_dim=48), r"config.json does not fit its weights"),
    "more layers": (lambda m: edit(m / "transformer/config.json", num_layers=3), r"missing tensors \(blocks.2"),
    "fewer layers": (lambda m: edit(m / "transformer/config.json", num_layers=1), r"unexpected tensors \(blocks.1"),
    "nonsense": (lambda m: edit(m / "transformer/config.json", num_layers="two"), r"'num_layers' is 'two', not a"),
    "a million layers": (lambda m: edit(m / "transformer/config.json", num_layers=10**6), r"number from 1 to 1000"),
    "a mean too few": (lambda m: edit(m / "vae/config.json", latents_mean=[0.1] * 3), r"has 3 entries, not 4"),
    "text nonsense": (lambda m: edit(m / "text_encoder/config.json", dense_act_fn="x"), r"does not fit its weights"),
    "no padding": (lambda m: edit(m / "tokenizer/tokenizer_config.json", pad_token=None), r"has no token for padding"),
    "no length": (lambda m: edit(m / "tokenizer/tokenizer_config.json", model_max_length="x"), r"max_length is 'x'"),
    "two networks": (
        lambda m: shutil.copy(m / "transformer" / WEIGHTS, m / "transformer" / "other.safetensors"),
        r"transformer holds \S+ twice, in diffusion_pytorch_model.safetensors and in other.safetensors",
    ),
    "missing tensor": (lambda m: without_a_tensor(m / "transformer" / WEIGHTS), r"1 missing tensors \(proj_out.w"),
    "text size": (lambda m: edit(m / "text_encoder/config.json", d_ff=48), r"text_encoder/config.json does not fit"),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer"), r"tokenizer is missing"),
    "empty tokenizer": (lambda m: (m / "tokenizer/tokenizer.json").write_text("{}"), r"tokenizer holds no tokenizer"),
    "no scheduler": (lambda m: shutil.rmtree(m / "scheduler"), r"has no scheduler/"),
    "no shift": (lambda m: (m / "scheduler/scheduler_config.json").write_text("{}"), r"neither shift nor flow_shift"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(model_folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "model"))
    damage(copy)
    with pytest.raises(NearstepError, match=message) as caught:
        CausalVideoPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused_unopened(model_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (copy / "vae" / WEIGHTS).rename(copy / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(NearstepError, match=r"diffusion_pytorch_model.bin is a pickle, which can run code"):
        CausalVideoPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/folder", "there is no folder"), ("/nowhere", "there is no folder"), ("nobody/nothing", "the hub")],
)
def test_a_name_that_is_no_model(name: str, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        CausalVideoPipeline.from_pretrained(name)


def test_a_file_is_no_model(model_folder: Path) -> None:
    with pytest.raises(NearstepError, match="is a file; a model is a folder"):
        ModelFolder.open(model_folder / "model_index.json")


def test_what_a_folder_says(model_folder: Path) -> None:
    folder = ModelFolder.open(model_folder)
    assert folder.networks() == ["transformer", "teacher"]
    assert folder.settings == Settings(
        fps=12, num_frames=21, height=32, width=32, teacher_plan="3", guidance_scale=2.0, default_plan="2"
    )
    stored = load_file(model_folder / "vae" / WEIGHTS)
    header = read_header(model_folder / "vae" / WEIGHTS)
    assert {name: info.shape for name, info in header.items()} == {n: tuple(t.shape) for n, t in stored.items()}
    assert sum(info.bytes for info in header.values()) == sum(4 * t.numel() for t in stored.values())


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda m: edit_weights(m / "transformer" / WEIGHTS),
    "the codec": lambda m: edit_weights(m / "vae" / WEIGHTS),
    "the tokenizer": lambda m: edit(m / "tokenizer/tokenizer_config.json", model_max_length=9),
    "the scheduler": lambda m: edit(m / "scheduler/scheduler_config.json", shift=4.0),
    "its own guidance": lambda m: edit(m / "model_index.json", nearstep={"guidance_scale": 3.0, "fps": 12}),
}


def edit_weights(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_content_is_what_clips_depend_on(model_folder: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    moved = Path(shutil.copytree(model_folder, tmp_path / "moved"))
    stated = json.loads((moved / "model_index.json").read_text())["nearstep"]
    edit(moved / "model_index.json", nearstep=stated | {"agreement": [[0.9]]})
    edit_weights(moved / "teacher" / WEIGHTS)
    (moved / "README.md").write_text("a card")
    name = ModelFolder.open(model_folder).content("transformer")
    assert ModelFolder.open(moved).content("transformer") == name
    assert ModelFolder.open(moved).content("teacher") != ModelFolder.open(model_folder).content("teacher")
    change(moved)
    assert ModelFolder.open(moved).content("transformer") != name


def test_large_files_are_known_by_samples_of_them(tmp_path: Path) -> None:
    """Not read whole: of a file of 200 MiB of holes, its size, and what lies where it is looked at."""
    for name, size, written in (("a", 200, b""), ("b", 200, b""), ("c", 201, b""), ("d", 200, b"weights")):
        with (tmp_path / f"{name}.bin").open("wb") as file:
            file.write(written)
            file.truncate(size * 2**20)
    names = [content_name([], [tmp_path / f"{name}.bin"]) for name in "abcd"]
    assert names[0] == names[1] and len(set(names)) == 3


def test_shards_are_followed(model_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "model"))
    pipe = CausalVideoPipeline.from_pretrained(copy)
    shutil.rmtree(copy / "transformer")
    pipe.transformer.save_pretrained(copy / "transformer", max_shard_size="20KB")
    folder = ModelFolder.open(copy)
    assert len(list((copy / "transformer").glob("*.safetensors"))) > 1
    assert folder.tensors("transformer") == ModelFolder.open(model_folder).tensors("transformer")
    CausalVideoPipeline.from_pretrained(copy)
    sorted((copy / "transformer").glob("*.safetensors"))[1].unlink()
    with pytest.raises(NearstepError, match=r"-00002-of-\d+.safetensors is missing"):
        CausalVideoPipeline.from_pretrained(copy)
