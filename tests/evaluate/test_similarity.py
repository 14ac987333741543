"""What the steps of a chunk predict, seen without changing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from nearstep import CausalVideoPipeline
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.similarity import cosines, draw_similarity, step_similarity
from nearstep.playground import PLAYGROUND


def test_cosines_are_symmetric_one_on_the_diagonal_and_averaged_over_the_batch():
    one, other = torch.randn(2, 4, 6).unbind()
    matrix = cosines([one, other, -one])
    torch.testing.assert_close(torch.diagonal(matrix), torch.ones(3))
    torch.testing.assert_close(matrix, matrix.T)
    assert float(matrix[0, 2]) == pytest.approx(-1.0)
    assert float(matrix[0, 1]) == pytest.approx(float(torch.cosine_similarity(one, other, dim=1).mean()), abs=1e-6)


def test_a_matrix_per_chunk_whatever_the_batch(tmp_path: Path):
    pipe = CausalVideoPipeline.from_pretrained("playground")
    prompts = PLAYGROUND.prompts(CAPTIONS_SEED, range(3))
    matrices = step_similarity(pipe, prompts, plan="3", batch=2)
    assert matrices.shape == (9, 3, 3)
    torch.testing.assert_close(matrices, step_similarity(pipe, prompts, plan="3", batch=3), rtol=1e-3, atol=1e-3)
    picture = Image.open(draw_similarity(matrices, tmp_path / "similarity.png"))
    assert picture.width > picture.height
