"""Thresholds: what they promise on the captions they were set on, and that streams keep to them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from nearstep import CausalVideoPipeline
from nearstep.evaluate.calibrate import (
    ALWAYS,
    CAPTIONS_SEED,
    NEVER,
    Agreements,
    levels,
    measure_agreement,
    threshold_of,
    thresholds,
)
from nearstep.playground import PLAYGROUND


@pytest.fixture(scope="module")
def pipe() -> CausalVideoPipeline:
    return CausalVideoPipeline.from_pretrained("playground")


def test_a_threshold_lets_as_many_stop_as_are_close_enough_on_average() -> None:
    agreement, reached = torch.tensor([0.2, 0.9, 0.5, 0.7]), torch.tensor([0.1, 1.0, 0.6, 0.8])
    for wanted, threshold in ((0.6, ALWAYS), (0.8, 0.5), (0.9, 0.7), (0.95, 0.9), (1.1, NEVER)):
        assert threshold_of(agreement, reached, wanted) == pytest.approx(threshold)
    assert threshold_of(agreement[:0], reached[:0], 0.5) == ALWAYS  # nobody comes here
    same = torch.full((2,), 0.5)
    assert threshold_of(same, torch.tensor([1.0, 0.0]), 0.9) == NEVER  # who cannot be told apart stops together


def test_levels_keep_what_they_promise_and_ask_for_more_steps_where_more_is_asked() -> None:
    draw = torch.Generator().manual_seed(0)
    close = torch.rand(200, 2, 2, generator=draw).sort(dim=-1).values
    measured = Agreements((close + 0.2 * torch.randn(200, 2, 2, generator=draw)).clamp(-1, 1), close)
    stopping = []
    for wanted in (0.5, 0.7, 0.9):
        found = levels(measured, wanted)
        assert all(level.closeness >= wanted for row in found for level in row if level.stopping)
        stopping.append([row[0].stopping for row in found])
    assert stopping == sorted(stopping, reverse=True)
    assert thresholds(levels(measured, 0.01)) == [[ALWAYS, ALWAYS]] * 2


def test_agreements_whatever_the_batch(pipe: CausalVideoPipeline) -> None:
    prompts = PLAYGROUND.prompts(CAPTIONS_SEED, range(3))
    measured = measure_agreement(pipe, prompts, chunks=3, batch=2)
    assert measured.agreement.shape == measured.closeness.shape == (3, 3, 2)
    assert (measured.agreement[:, 0, 0] == ALWAYS).all()  # a first chunk goes on from nothing
    for one, other in zip(measured, measure_agreement(pipe, prompts, chunks=3, batch=3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_streams_stop_where_the_measure_says(pipe: CausalVideoPipeline) -> None:
    prompts = PLAYGROUND.prompts(CAPTIONS_SEED, range(6))
    measured = measure_agreement(pipe, prompts, chunks=1)
    limit = measured.agreement[:, 0, 1].median().item() - 1e-4
    asked, settings = [], pipe.settings
    pipe.settings = replace(settings, agreement=((NEVER, limit),))
    try:
        for sample, prompt in enumerate(prompts):
            with pipe.open(prompt, "adaptive", seed=0, sample=sample) as session:
                asked += [chunk.steps for chunk in itertools.islice(session, 1)]
    finally:
        pipe.settings = settings
    assert asked == [2 if one >= limit else 3 for one in measured.agreement[:, 0, 1].tolist()]
    assert {*asked} == {2, 3}
