"""What a pipeline is loaded with for large models: a text cache, a narrow or tiled codec, a tiny decoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from nearstep import CausalVideoPipeline, NearstepError
from nearstep.cli.main import main
from nearstep.models import loading
from nearstep.nets.tiny_decoder import TinyDecoder

PROMPTS = ["a small red ball slides left", "the large blue football bounces on snow"]
WISHES = dict(plan="1", seed=7, output_type="pt")


def load(folder: Path, **options) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(folder, **options)


def test_cached_prompts_need_no_text_encoder(model_folder: Path, tmp_path: Path) -> None:
    plain = load(model_folder)(PROMPTS, guidance_scale=2, **WISHES).frames
    first = load(model_folder, text_cache=tmp_path / "cache")
    assert first.text_encoder is None
    torch.testing.assert_close(first(PROMPTS, guidance_scale=2, **WISHES).frames, plain)
    assert first.text_encoder is not None
    second = load(model_folder, text_cache=tmp_path / "cache")
    again = second(PROMPTS, guidance_scale=2, **WISHES).frames
    assert second.text_encoder is None and torch.equal(again, first(PROMPTS, guidance_scale=2, **WISHES).frames)


def test_a_text_encoder_that_was_not_needed_is_saved(model_folder: Path, tmp_path: Path) -> None:
    pipe = load(model_folder, text_cache=tmp_path / "cache")
    pipe.save_pretrained(tmp_path / "model")
    plain, saved = (load(folder)(PROMPTS, **WISHES).frames for folder in (model_folder, tmp_path / "model"))
    assert torch.equal(plain, saved)


def test_codec_options_are_the_codecs_own(model_folder: Path) -> None:
    pipe = load(model_folder, vae_dtype=torch.bfloat16, vae_tile=32)
    assert pipe.vae.dtype == torch.bfloat16 and pipe.transformer.dtype == torch.float32
    plain = load(model_folder)
    wishes = dict(WISHES, height=48, width=64)
    latents = plain(PROMPTS[0], **dict(wishes, output_type="latent")).frames
    plain.vae.to(torch.bfloat16).enable_tiling(32, 32, 24, 24)
    made = pipe(PROMPTS[0], **wishes).frames
    assert torch.equal(made, plain.codec.decode(latents)) and made.dtype == torch.float32
    plain.vae.disable_tiling()
    assert not torch.equal(made, plain.codec.decode(latents))


def test_a_tiny_decoder_makes_the_pixels_of_the_same_latents(model_folder: Path, tiny_file: Path) -> None:
    pipe = load(model_folder, tiny_decoder=tiny_file)
    latents = load(model_folder)(PROMPTS, **dict(WISHES, output_type="latent")).frames
    made = pipe(PROMPTS, **WISHES).frames
    assert torch.equal(made, TinyDecoder.from_file(tiny_file).decode(latents)) and made.shape == (2, 21, 3, 32, 32)
    chunks = list(pipe.stream(PROMPTS, plan="1", seed=7))
    assert torch.equal(torch.cat([chunk.video for chunk in chunks], dim=1), made)
    assert [chunk.start for chunk in chunks] == [0, 5, 13]
    narrow = load(model_folder, tiny_decoder=tiny_file, vae_dtype=torch.bfloat16)
    assert next(narrow.tiny_decoder.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(vae_tile=20), "tiles of height 20.*multiples of 8"),
        (dict(vae_tile=8), "height 8 may share 8 to 4"),
        (dict(tiny_decoder="nothing.pth"), "cannot read the tiny decoder nothing.pth"),
        (dict(text_cache="nowhere/cache"), "there is no folder nowhere"),
        (dict(text_cache=__file__), "is a file"),
    ],
    ids=str,
)
def test_wrong_options_are_one_line_before_the_network_is_read(
    model_folder: Path, options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.load_component

    def no_network(folder, name, *arguments, **named):
        assert name != "transformer", "the network was read"
        return read(folder, name, *arguments, **named)

    monkeypatch.setattr(loading, "load_component", no_network)
    with pytest.raises(NearstepError, match=message) as caught:
        load(model_folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "text_encoder" / "model.safetensors").write_bytes(b"version "), "git lfs pull"),
        (lambda model: (model / "text_encoder" / "model.safetensors").unlink(), "text_encoder holds no .safetensors"),
        (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer is missing"),
    ],
    ids=["pointer", "no weights", "no tokenizer"],
)
def test_a_text_encoder_that_will_be_needed_is_looked_at_first(
    model_folder: Path, tmp_path: Path, spoil, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    spoil(tmp_path / "model")
    monkeypatch.setattr(loading, "load_component", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(NearstepError, match=message):
        load(tmp_path / "model", text_cache=tmp_path / "cache")


def test_a_tiny_decoder_of_other_latents_is_refused(model_folder: Path, tmp_path: Path) -> None:
    save_file(TinyDecoder(channels=16, widths=(8, 8, 8, 8), patch=2).state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(NearstepError, match="16 channels and 16 pixels, this model's have 4 and 8"):
        load(model_folder, tiny_decoder=tmp_path / "tiny.safetensors")


def test_the_command_line_passes_them_on(
    model_folder: Path, tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["generate", PROMPTS[0], "--model", str(model_folder), "--seed", "1", "--plan", "1", "-o"]
    options = ["--tiny-decoder", str(tiny_file), "--text-cache", "cache", "--vae-dtype", "bfloat16"]
    assert main([*command, "a.gif", *options, "--text-device", "cpu"]) == 0
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    assert main([*command, "b.gif", *options]) == 0
    assert Path("a.gif").read_bytes() == Path("b.gif").read_bytes()
    assert main([*command, "c.gif", "--text-cache", "cache", "--vae-tile", "32"]) == 0
    assert Path("c.gif").read_bytes() != Path("a.gif").read_bytes()
    assert main([*command, "d.gif", "--vae-tile", "30"]) == 2
    assert "multiples of 8" in capsys.readouterr().err and not Path("d.gif").exists()
