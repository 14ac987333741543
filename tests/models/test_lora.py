"""LoRA files in peft's layout: they change what the pipeline makes, come off without a trace, and can be fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nearstep import CausalVideoPipeline, VideoTransformer
from nearstep.cli.main import main

PROMPT = dict(prompt="a small red ball slides left", plan="2,1x", seed=3)


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as diffusers and peft write it: the component, the layer, lora_A [r, in] and lora_B [out, r]."""
    network = VideoTransformer.from_pretrained(model_folder / "transformer")
    draw, state = torch.Generator().manual_seed(1), {}
    for name, layer in network.named_modules():
        if name.startswith("blocks.") and isinstance(layer, torch.nn.Linear):
            sizes = {"lora_A": (4, layer.in_features), "lora_B": (layer.out_features, 4)}
            state |= {
                f"transformer.{name}.{part}.weight": 0.2 * torch.randn(size, generator=draw)
                for part, size in sizes.items()
            }
    folder = tmp_path_factory.mktemp("lora")
    save_file(state, folder / "pytorch_lora_weights.safetensors")
    return folder


def test_it_goes_on_and_comes_off(model_folder: Path, lora: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    plain = pipe(**PROMPT).frames
    pipe.load_lora_weights(lora)
    tuned = pipe(**PROMPT).frames
    assert np.abs(tuned - plain).max() > 1e-3
    pipe.fuse_lora()
    fused = pipe(**PROMPT).frames
    np.testing.assert_allclose(fused, tuned, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.load_lora_weights(lora)
    pipe.unload_lora_weights()
    assert pipe.transformer.state_dict().keys() == before.keys()
    np.testing.assert_allclose(pipe(**PROMPT).frames, plain, atol=1e-5)  # unfusing subtracts, which rounds


def test_unloading_restores_every_bit(model_folder: Path, lora: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    plain = pipe(**PROMPT).frames
    pipe.load_lora_weights(lora)
    pipe.unload_lora_weights()
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    assert np.array_equal(pipe(**PROMPT).frames, plain)


def test_merged_by_convert_is_what_it_does_loaded(model_folder: Path, lora: Path, tmp_path: Path) -> None:
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    pipe.load_lora_weights(lora)
    file = lora / "pytorch_lora_weights.safetensors"
    assert main(["convert", str(model_folder), str(tmp_path / "m"), "--lora", str(file)]) == 0
    merged = CausalVideoPipeline.from_pretrained(tmp_path / "m")
    np.testing.assert_allclose(merged(**PROMPT).frames, pipe(**PROMPT).frames, atol=1e-4)
