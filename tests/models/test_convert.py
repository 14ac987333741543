"""Conversions there and back, what diffusers makes of them, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from layouts import RELEASE_SIZES, prefixed, small_release
from safetensors.torch import load_file

from nearstep import CausalVideoPipeline, VideoTransformer
from nearstep.cli.main import main
from nearstep.models import convert as work
from nearstep.models.wan import to_official

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_release(tmp_path_factory.mktemp("release"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / FILE)


def same(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_a_release_becomes_a_model_that_streams(release: Path, tmp_path: Path) -> None:
    assert convert(release, tmp_path / "m", "--chunk-frames", 2, "--default-plan", "2,1x", "--shift", 3) == 0
    pipe = CausalVideoPipeline.from_pretrained(tmp_path / "m")
    assert pipe.transformer.config["attention_head_dim"] == 24 and pipe.scheduler.config["shift"] == 3
    chunks = list(pipe.stream("a small red ball", num_frames=13, height=32, width=32, seed=1))
    assert [(chunk.steps, chunk.video.shape[1]) for chunk in chunks] == [(2, 5), (1, 8)]
    assert all(torch.isfinite(chunk.video).all() for chunk in chunks)
    card = (tmp_path / "m" / "README.md").read_text()
    assert card.startswith('---\nlicense: "apache-2.0"\n') and "2 latent frames at a time" in card and "2,1x" in card


def test_there_and_back_is_bit_equal(model_folder: Path, tmp_path: Path) -> None:
    assert convert(model_folder, tmp_path / "official", "--to", "official") == 0
    assert "blocks.0.self_attn.q.weight" in weights(tmp_path / "official")
    assert convert(tmp_path / "official", tmp_path / "back", "--base", model_folder, "--chunk-frames", 2) == 0
    assert same(tmp_path / "back" / "transformer", model_folder / "transformer")
    made = [
        CausalVideoPipeline.from_pretrained(folder)("a small red ball", seed=1, output_type="latent").frames
        for folder in (model_folder, tmp_path / "back")
    ]
    assert torch.equal(*made)


def test_shards_are_what_one_file_is(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert convert(release, tmp_path / "one", "--chunk-frames", 2) == 0
    monkeypatch.setattr(work, "SHARD_BYTES", 20_000)
    assert convert(release, tmp_path / "many", "--chunk-frames", 2) == 0
    assert len(list((tmp_path / "many" / "transformer").glob("*.safetensors"))) > 2
    assert convert(tmp_path / "many", tmp_path / "again") == 0  # whose shards are linked
    size = dict(num_frames=13, height=32, width=32, seed=1)
    one, *others = (
        CausalVideoPipeline.from_pretrained(tmp_path / name)("a ball", **size) for name in ("one", "many", "again")
    )
    assert all((other.frames == one.frames).all() for other in others)


@torch.no_grad()
def test_diffusers_loads_what_is_written_for_it(model_folder: Path, tmp_path: Path) -> None:
    assert convert(model_folder, tmp_path / "d", "--to", "diffusers") == 0
    config = json.loads((tmp_path / "d" / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel" and "chunk_frames" not in config
    theirs = WanPipeline.from_pretrained(tmp_path / "d").transformer
    assert isinstance(theirs, WanTransformer3DModel)
    ours = VideoTransformer.from_pretrained(model_folder / "transformer", chunk_frames=None)
    x, t, text = torch.randn(2, 3, 4, 4, 4), torch.tensor([0.9, 0.25]), torch.randn(2, 12, 16)
    expected = theirs(x.transpose(1, 2), 1000 * t, text, return_dict=False)[0].transpose(1, 2)
    torch.testing.assert_close(ours(x, t, text), expected, atol=3e-5, rtol=0)  # their time sinusoid is float32


def test_what_a_pipeline_saves_loads_in_both(model_folder: Path, tmp_path: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    pipe.save_pretrained(tmp_path / "s")
    again = CausalVideoPipeline.from_pretrained(tmp_path / "s")
    assert (again("a ball", seed=1).frames == pipe("a ball", seed=1).frames).all()
    assert isinstance(WanTransformer3DModel.from_pretrained(tmp_path / "s" / "transformer"), WanTransformer3DModel)
    assert WanPipeline.from_pretrained(tmp_path / "s").transformer is not None
    assert "A causal text-to-video network" in (tmp_path / "s" / "README.md").read_text()
    assert not [f for f in (tmp_path / "s").rglob("*.json") if str(model_folder) in f.read_text()]


def test_a_lora_file_is_merged(model_folder: Path, tmp_path: Path) -> None:
    base = to_official(VideoTransformer.from_pretrained(model_folder / "transformer").state_dict())
    name = "blocks.1.self_attn.q"
    down, up = torch.randn(3, 32), torch.randn(32, 3)
    lora = {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    torch.save({"generator": prefixed(base)}, tmp_path / "base.pt")
    torch.save({"generator_lora": lora, "critic_lora": {}, "step": 1}, tmp_path / "lora.pt")
    arguments = ("--base", model_folder, "--lora", tmp_path / "lora.pt", "--head-dim", 16)
    assert convert(tmp_path / "base.pt", tmp_path / "m", *arguments, "--lora-alpha", 6) == 0
    merged, plain = weights(tmp_path / "m" / "transformer"), weights(model_folder / "transformer")
    changed = [key for key in merged if not torch.equal(merged[key], plain[key])]
    assert changed == ["blocks.1.attn1.to_q.weight"]
    expected = plain[changed[0]] + 2 * up @ down
    torch.testing.assert_close(merged[changed[0]], expected, atol=1e-5, rtol=1e-5)
    torch.save({"generator_lora": {k: torch.zeros(5, 5) for k in lora}}, tmp_path / "lora.pt")
    assert convert(tmp_path / "base.pt", tmp_path / "n", *arguments) == 2


def test_a_window_is_held_against_the_models_own_chunk(model_folder: Path, tmp_path: Path) -> None:
    assert convert(model_folder, tmp_path / "m", "--window-frames", 2, "--sink-frames", 1) == 0  # its chunks are of 2
    config = CausalVideoPipeline.from_pretrained(tmp_path / "m").transformer.config
    assert (config["chunk_frames"], config["window_frames"], config["sink_frames"]) == (2, 2, 1)


def test_types_are_as_asked_and_the_codec_stays(model_folder: Path, tmp_path: Path) -> None:
    assert convert(model_folder, tmp_path / "m", "--dtype", "bfloat16") == 0
    kinds = {f.parent.name: {v.dtype for v in load_file(f).values()} for f in (tmp_path / "m").rglob("*.safetensors")}
    half, full = {torch.bfloat16}, {torch.float32}
    assert kinds == {"transformer": half, "text_encoder": half, "vae": full}


def test_what_does_not_change_is_linked(model_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(model_folder, tmp_path / "base"))
    torch.save(VideoTransformer.from_pretrained(base / "transformer").state_dict(), tmp_path / "student.pt")
    kept = {"vae": FILE, "text_encoder": "model.safetensors"}
    for name, options in (("student.pt", ("--base", base, "--head-dim", 16)), ("base", ("--dtype", "float32"))):
        assert convert(tmp_path / name, tmp_path / f"{name}-out", *options) == 0
        for part, file in kept.items():
            assert (tmp_path / f"{name}-out" / part / file).samefile(base / part / file)
    assert (tmp_path / "base-out" / "transformer" / FILE).samefile(base / "transformer" / FILE)
    assert convert(base, tmp_path / "half", "--dtype", "bfloat16") == 0
    for part, file in kept.items():
        linked = (tmp_path / "half" / part / file).samefile(base / part / file)
        assert linked == (part == "vae")  # the codec keeps its type
    shutil.rmtree(base)
    clip = CausalVideoPipeline.from_pretrained(tmp_path / "base-out")("a ball", seed=1).frames
    assert (clip == CausalVideoPipeline.from_pretrained(model_folder)("a ball", seed=1).frames).all()


def test_a_causal_file_gets_a_students_shift_not_its_bases(release: Path, model_folder: Path, tmp_path: Path) -> None:
    assert convert(release, tmp_path / "base", "--shift", 3) == 0
    torch.save(to_official(VideoTransformer(**RELEASE_SIZES).state_dict()), tmp_path / "s.pt")
    chosen = ("--base", tmp_path / "base", "--head-dim", 24)
    for options, shift in ((("--chunk-frames", 3), 5), ((), 3)):
        out = tmp_path / f"out{shift}"
        assert convert(tmp_path / "s.pt", out, *chosen, *options) == 0
        assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["shift"] == shift


def test_results_are_in_the_card(model_folder: Path, tmp_path: Path) -> None:
    found = {"calls": 14, **{key: {"value": 0.5} for key in ("total", "quality", "semantic")}}
    (tmp_path / "r.json").write_text(json.dumps({"plans": {"4": found}}))
    chosen = ("--results", tmp_path / "r.json", "--base-model", "owner/base", "--licence", "other")
    assert convert(model_folder, tmp_path / "m", *chosen) == 0
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| 4 | 14 | 50.0 | 50.0 | 50.0 |" in card
    assert 'license: "other"' in card and 'base_model: "owner/base"' in card


def bad_results(source: Path, tmp: Path) -> tuple:
    (tmp / "r.json").write_text("{}")
    return (source, tmp / "out", "--results", tmp / "r.json")


def other_class(source: Path, tmp: Path) -> tuple:
    (tmp / "net").mkdir()
    (tmp / "net" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return (tmp / "net", tmp / "out")


def wrong_codec(source: Path, tmp: Path) -> tuple:
    copy = Path(shutil.copytree(source, tmp / "copy"))
    torch.save({"encoder.conv9.weight": torch.zeros(1)}, copy / "Wan2.1_VAE.pth")
    return (copy, tmp / "out")


def foreign(source: Path, tmp: Path) -> tuple:
    (tmp / "photos").mkdir()
    (tmp / "photos" / "cat.jpg").write_text("x")
    return (tmp / "photos", tmp / "out")


def no_network(source: Path, tmp: Path) -> tuple:
    torch.save({"conv.weight": torch.zeros(1)}, tmp / "x.pt")
    return (tmp / "x.pt", tmp / "out")


def network_alone(source: Path, tmp: Path) -> tuple:
    copy = Path(shutil.copytree(source, tmp / "copy"))
    (copy / "Wan2.1_VAE.pth").unlink()
    return (copy, tmp / "out")


REFUSED = {
    "results": (bad_results, "r.json is damaged: it has no 'plans'"),
    "class": (other_class, "is a UNet2DModel, not a network of Wan2.1"),
    "codec": (wrong_codec, "Wan2.1_VAE.pth: weight 'encoder.conv9.weight' is no part of Wan2.1's codec"),
    "foreign": (foreign, "is no model: neither model_index.json nor weights; it holds cat.jpg"),
    "network": (no_network, "no Wan2.1 network: patch_embedding.weight is missing; its weights begin conv.weight"),
    "parts": (network_alone, "has no vae; name a model that has with --base"),
    "full": (lambda s, t: (s, t), "is there already and not empty"),
    "role": (lambda s, t: (s, t / "out", "--role", "generator"), "chooses within a checkpoint file"),
    "nowhere": (lambda s, t: (t / "no", t / "out"), "there is no folder"),
    "heads": (lambda s, t: (s / FILE, t / "out", "--base", s), "48 wide has no heads 128 wide"),
    "alpha": (lambda s, t: (s, t / "out", "--lora-alpha", "3"), "needs --lora FILE"),
    "plan": (lambda s, t: (s, t / "out", "--chunk-frames", "1", "--default-plan", "4,y"), "4,y"),
    "window": (lambda s, t: (s, t / "out", "--window-frames", "1"), "less than a chunk"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_one_line_and_leave_nothing(given, message: str, release: Path, tmp_path: Path, capsys) -> None:
    arguments = given(release, tmp_path)
    (tmp_path / "keep").touch()
    capsys.readouterr()
    assert convert(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
