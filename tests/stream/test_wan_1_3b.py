"""Wan2.1-1.3B at its true size with random weights: a student's checkpoint, loaded in bfloat16, makes a chunk."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
import torch
from layouts import official_codec, official_text
from safetensors.torch import save_file

from nearstep import CausalVideoPipeline, Student, VideoTransformer
from nearstep.cli.main import main
from nearstep.models.wan import SIZES, to_official
from nearstep.nets.text import build_tokenizer


def peak() -> int:
    """Most bytes this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The release's layout with the true network, a text encoder as wide and a narrow codec; and a student's file."""
    folder, text = tmp_path / "release", official_text(vocabulary=8, heads=4, width=4096, hidden=64, layers=1)
    tokenizer = build_tokenizer("a red ball on snow".split(), length=16)
    with torch.device("meta"):
        shapes = VideoTransformer(**SIZES["1.3B"]).state_dict()
    folder.mkdir()
    official = to_official(shapes)
    state = {name: (0.02 * torch.randn(value.shape, dtype=torch.bfloat16)) for name, value in official.items()}
    torch.save({"generator_ema": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "student.pt")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    torch.save(text, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_codec(base=8), folder / "Wan2.1_VAE.pth")
    tokenizer.save_pretrained(folder / "google" / "umt5-xxl")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_chunk_of_the_true_size(release: Path, tmp_path: Path, record_property) -> None:
    began = time.perf_counter()
    assert main(["convert", str(release), str(tmp_path / "base")]) == 0
    converted = time.perf_counter()
    student = Student(path=tmp_path / "student.pt")
    pipe = CausalVideoPipeline.from_pretrained(tmp_path / "base", student=student, torch_dtype=torch.bfloat16)
    loaded = time.perf_counter()
    assert sum(value.numel() for value in pipe.transformer.parameters()) == 1_418_996_800
    (chunk,) = pipe.stream("a red ball", "1", num_frames=9, height=128, width=208, seed=0)
    made = time.perf_counter()
    assert chunk.video.shape == (1, 9, 3, 128, 208) and torch.isfinite(chunk.video).all()
    file = (tmp_path / "student.pt").stat().st_size
    assert peak() < 3 * file  # the file's pages and the weights; a float32 copy between them would be two files more
    seconds = {"convert": converted - began, "load": loaded - converted, "chunk": made - loaded}
    for name, value in {**seconds, "peak GB": peak() / 1e9, "file GB": file / 1e9}.items():
        record_property(name, round(value, 2))
