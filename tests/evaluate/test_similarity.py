"""What the steps of a chunk predict, seen without changing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from nearstep import CausalVideoPipeline
from nearstep.evaluate.similarity import cosines, draw_similarity, step_similarity


def test_cosines_are_symmetric_one_on_the_diagonal_and_averaged_over_the_batch():
    one, other = torch.randn(2, 4, 6).unbind()
    matrix = cosines([one, other, -one])
    torch.testing.assert_close(torch.diagonal(matrix), torch.ones(3))
    torch.testing.assert_close(matrix, matrix.T)
    assert float(matrix[0, 2]) == pytest.approx(-1.0)
    assert float(matrix[0, 1]) == pytest.approx(float(torch.cosine_similarity(one, other, dim=1).mean()), abs=1e-6)


def test_a_matrix_per_chunk_whatever_the_batch(model_folder: Path, tmp_path: Path):
    # An untrained model: what a trained one makes of rounding grows from chunk to chunk.
    pipe = CausalVideoPipeline.from_pretrained(model_folder)
    prompts = ["a small red ball slides left", "a large blue football", "a ball on the snow"]
    matrices = step_similarity(pipe, prompts, plan="3", batch=2)
    assert matrices.shape == (3, 3, 3)
    torch.testing.assert_close(matrices, step_similarity(pipe, prompts, plan="3", batch=3), rtol=1e-4, atol=1e-5)
    picture = Image.open(draw_similarity(matrices, tmp_path / "similarity.png"))
    assert picture.width > picture.height
