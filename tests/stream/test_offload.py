"""Offloading: whole models, single layers, and a text encoder of its own device; the clip stays the same bit for bit.

There is no accelerator here, so what would go wrong on one is made to go wrong: a model that is away holds NaN, and a
layer that is away lies on meta. (What this cannot show is the transfer between two real devices.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload

from nearstep import CausalVideoPipeline
from nearstep.nets.tiny_decoder import TinyDecoder

PROMPTS = ["a small red ball slides left", "the large blue football bounces on snow"]
WISHES = dict(plan="2,1x", seed=7, output_type="pt")


@pytest.fixture
def pipe(model_folder: Path) -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained(model_folder)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """accelerate's whole-model hook, where a model that is away holds NaN; gives who was woken, in order."""
    kept: dict[int, list[torch.Tensor]] = {}
    woken: list[str] = []

    def leave(self: CpuOffload, module: torch.nn.Module) -> torch.nn.Module:
        if id(module) not in kept:
            kept[id(module)] = [p.detach().clone() for p in module.parameters()]
            for parameter in module.parameters():
                parameter.data.fill_(float("nan"))
        return module

    def arrive(self: CpuOffload, module: torch.nn.Module, *args, **kwargs):
        if self.prev_module_hook is not None:
            self.prev_module_hook.offload()
        if id(module) in kept:
            woken.append(type(module).__name__)
            for parameter, value in zip(module.parameters(), kept.pop(id(module)), strict=True):
                parameter.data.copy_(value)
        return args, kwargs

    monkeypatch.setattr(CpuOffload, "init_hook", leave)
    monkeypatch.setattr(CpuOffload, "pre_forward", arrive)
    return woken


ORDER = ["UMT5EncoderModel", "VideoTransformer", "AutoencoderKLWan"]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_whole_models_come_when_called(pipe: CausalVideoPipeline, away: list[str], guidance: float) -> None:
    plain = pipe(PROMPTS, guidance_scale=guidance, **WISHES).frames
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.isnan(pipe.transformer.proj_out.weight).all()
    assert torch.equal(pipe(PROMPTS, guidance_scale=guidance, **WISHES).frames, plain)
    assert away == ORDER  # each once


def test_a_stream_wakes_them_in_turn(pipe: CausalVideoPipeline, away: list[str]) -> None:
    whole = pipe(PROMPTS, **WISHES).frames
    pipe.enable_model_cpu_offload(device="cpu")
    chunks = list(pipe.stream(PROMPTS, plan="2,1x", seed=7))
    assert torch.equal(torch.cat([chunk.video for chunk in chunks], dim=1), whole)
    assert away[:3] == ORDER and away.count("UMT5EncoderModel") == 1


def test_encoding_wakes_the_codec(pipe: CausalVideoPipeline, away: list[str]) -> None:
    video = torch.rand(1, 5, 3, 32, 32)
    plain = pipe.codec.encode(video)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe.codec.encode(video), plain)


def offload_layers(pipe: CausalVideoPipeline) -> None:
    """What ``enable_sequential_cpu_offload`` does, but to "cpu": accelerate stumbles on its "cpu:0"."""
    for model in (pipe.transformer, pipe.vae, pipe.text_encoder):
        if model is not None:
            cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)


def test_single_layers_come_when_called(pipe: CausalVideoPipeline) -> None:
    plain = pipe(PROMPTS, guidance_scale=2.0, **WISHES).frames
    offload_layers(pipe)
    assert pipe.transformer.patch_embedding.weight.is_meta and pipe.vae.decoder.conv_in.weight.is_meta
    for _ in range(2):
        assert torch.equal(pipe(PROMPTS, guidance_scale=2.0, **WISHES).frames, plain)
    chunks = list(pipe.stream(PROMPTS, plan="2,1x", seed=7, guidance_scale=2.0))
    assert torch.equal(torch.cat([chunk.video for chunk in chunks], dim=1), plain)


def test_a_text_encoder_that_comes_late_is_offloaded_too(model_folder: Path, away: list[str], tmp_path: Path) -> None:
    plain = CausalVideoPipeline.from_pretrained(model_folder)(PROMPTS, **WISHES).frames
    for sequential in (False, True):
        late = CausalVideoPipeline.from_pretrained(model_folder, text_cache=tmp_path / str(sequential))
        offload_layers(late) if sequential else late.enable_model_cpu_offload(device="cpu")
        torch.testing.assert_close(late(PROMPTS, **WISHES).frames, plain)
    assert away[:3] == ORDER


def test_a_text_encoder_may_stay_elsewhere(model_folder: Path) -> None:
    """Everything but the text encoder on meta: what it makes must follow the network there."""
    pipe = CausalVideoPipeline.from_pretrained(model_folder, device=torch.device("meta"), text_device="cpu")
    assert pipe.text_encoder.device.type == "cpu" and pipe.vae.device.type == "meta"
    request = pipe.request(PROMPTS[0], seed=1, guidance_scale=2.0)
    assert pipe.prompt_encoder(PROMPTS).device.type == "cpu"
    assert pipe.denoiser(request).both.text.layers[0][0].device.type == "meta"
    alone = CausalVideoPipeline.from_pretrained(model_folder, text_device=torch.device("meta"))
    assert alone.text_encoder.device.type == "meta" and alone.transformer.device.type == "cpu"


def test_a_tiny_decoder_follows_the_network(model_folder: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder, device=torch.device("meta"), text_device="cpu")
    pipe.tiny_decoder = TinyDecoder(channels=4, widths=(8, 8, 8, 8))
    assert next(pipe.decoder.parameters()).device.type == "meta"
