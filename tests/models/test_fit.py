"""What a network is run with: one type, its own codec and text encoder, whole shards; all else is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nearstep import CausalVideoPipeline, NearstepError, VideoTransformer
from nearstep.cli.main import main
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import weight_files
from nearstep.models.lora import Update
from nearstep.models.wan import to_official
from nearstep.nets.transformer import kept_in_float32

State = dict[str, Tensor]
FILE = "diffusion_pytorch_model.safetensors"
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def official(model_folder: Path) -> State:
    state = to_official(VideoTransformer.from_pretrained(model_folder / "transformer").state_dict())
    return {name: value.contiguous() for name, value in state.items()}


MIXED: dict[str, tuple[Callable[[str, Tensor], torch.dtype], torch.dtype]] = {
    "matrices narrow": (lambda name, value: BRAIN if value.ndim == 2 else FULL, BRAIN),
    "blocks narrow": (lambda name, value: BRAIN if name.startswith("blocks") else FULL, BRAIN),
    "patches wide": (lambda name, value: FULL if "patch" in name else BRAIN, BRAIN),
    "text wide": (lambda name, value: FULL if "text_emb" in name else BRAIN, BRAIN),
    "biases wide": (lambda name, value: FULL if name.endswith("bias") else HALF, HALF),
    "one bias narrow": (lambda name, value: BRAIN if name == "head.head.bias" else FULL, FULL),
    "both halves": (lambda name, value: HALF if "ffn" in name else BRAIN, FULL),
    "one type": (lambda name, value: BRAIN, BRAIN),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_file_of_several_types_runs_in_one(name: str, official: State, model_folder: Path, tmp_path: Path) -> None:
    kind, expected = MIXED[name]
    save_file({key: value.to(kind(key, value)) for key, value in official.items()}, tmp_path / "s.safetensors")
    pipe = CausalVideoPipeline.from_pretrained(model_folder, student=tmp_path / "s.safetensors")
    types = {value.dtype for key, value in pipe.transformer.state_dict().items() if not kept_in_float32(key)}
    assert types == {expected}
    made = pipe("a small red ball", "1", num_frames=9, seed=1, output_type="latent").frames
    assert torch.isfinite(made).all()


@pytest.mark.parametrize("asked", [None, FULL, BRAIN])
def test_a_lora_on_narrow_weights_is_rounded_once(
    asked: torch.dtype | None, official: State, model_folder: Path, tmp_path: Path
) -> None:
    save_file({key: value.bfloat16() for key, value in official.items()}, tmp_path / "s.safetensors")
    pair = {"down": torch.randn(4, 32) / 9, "up": torch.randn(32, 4) / 9}
    names = {"down": "blocks.0.self_attn.q.lora_A.weight", "up": "blocks.0.self_attn.q.lora_B.weight"}
    save_file({names[part]: value for part, value in pair.items()}, tmp_path / "l.safetensors")
    options = dict(student=tmp_path / "s.safetensors", lora=tmp_path / "l.safetensors", torch_dtype=asked)
    made = CausalVideoPipeline.from_pretrained(model_folder, **options).transformer.blocks[0].attn1.to_q.weight
    base = official["blocks.0.self_attn.q.weight"].bfloat16()
    assert torch.equal(made, Update(**pair).merged(base, asked))
    assert made.dtype == (asked or BRAIN)


@pytest.mark.parametrize("channels", [36, 32, 8, 100])
def test_networks_that_see_more_than_latents_are_refused(
    channels: int, official: State, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_file({**official, "patch_embedding.weight": torch.zeros(32, channels, 1, 2, 2)}, tmp_path / "s.safetensors")
    for target in (["--to", "official"], ["--base", str(model_folder)]):
        arguments = [str(tmp_path / "s.safetensors"), str(tmp_path / "m"), *target, "--head-dim", "16"]
        assert main(["convert", *arguments]) == 2
        assert f"takes {channels} channels and gives 4" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    with pytest.raises(NearstepError, match=rf"patch_embedding\.weight is \[32, {channels}, 1, 2, 2\]"):
        CausalVideoPipeline.from_pretrained(model_folder, student=tmp_path / "s.safetensors")


WRONG = {
    "other latents": (
        {"patch_embedding.weight": (32, 8, 1, 2, 2), "head.head.weight": (32, 32), "head.head.bias": (32,)},
        "works on latents of 8 channels, the codec's have 4",
    ),
    "other text": ({"text_embedding.0.weight": (32, 48)}, "reads text features 48 wide, the text encoder's are 16"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_codec_or_text_encoder_is_refused(
    name: str, official: State, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shapes, message = WRONG[name]
    save_file({**official, **{key: torch.zeros(shape) for key, shape in shapes.items()}}, tmp_path / "s.safetensors")
    arguments = [str(tmp_path / "s.safetensors"), str(tmp_path / "m"), "--base", str(model_folder), "--head-dim", "16"]
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("transformer", "in_channels", 9, "takes 9 channels and gives 4"),
        ("vae", "z_dim", 16, "its 'latents_mean' has 4 entries, not 16"),
        ("text_encoder", "d_model", 99, "the text encoder's are 99"),
    ],
)
def test_a_folder_whose_parts_do_not_fit_is_refused_before_it_is_loaded(
    part: str, key: str, value: int, message: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    config = json.loads((folder / part / "config.json").read_text())
    (folder / part / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(NearstepError, match=message):
        ModelConfigs.open(folder)


def test_a_folder_with_quantised_weights_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "m"))
    state = load_file(folder / "transformer" / FILE)
    narrow = {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in state.items()}
    save_file(narrow, folder / "transformer" / FILE, metadata={"format": "pt"})
    with pytest.raises(NearstepError, match=r"transformer is quantised \(.* is of float8_e4m3fn\); nearstep convert"):
        CausalVideoPipeline.from_pretrained(folder)
    assert main(["convert", str(folder), str(tmp_path / "n")]) == 0
    made = load_file(tmp_path / "n" / "transformer" / FILE)
    assert all(torch.equal(made[name], value.float()) for name, value in narrow.items())
    assert CausalVideoPipeline.from_pretrained(tmp_path / "n").chunk_frames == 2


INDEXES = {
    "empty": {},
    "null": {"weight_map": None},
    "list": {"weight_map": []},
    "no weights": {"weight_map": {}},
    "text": {"weight_map": "x.safetensors"},
    "number": {"weight_map": {"a": 3}},
    "elsewhere": {"weight_map": {"a": "../x.safetensors"}},
    "absolute": {"weight_map": {"a": "/x.safetensors"}},
    "a pickle": {"weight_map": {"a": "x.pt"}},
}


@pytest.mark.parametrize("name", INDEXES)
def test_a_damaged_index_is_one_line(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(INDEXES[name]))
    with pytest.raises(NearstepError, match=r"index\.json (has no weight_map|names '.*', which is no)"):
        weight_files(tmp_path)
