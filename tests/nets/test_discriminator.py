"""Heads on features: shapes, which blocks, and what a logit's loss reaches."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.nets.discriminator import Discriminator, tap_blocks


def test_taps_lie_at_45_70_and_100_percent_of_the_depth():
    assert tap_blocks(30) == (13, 20, 29)
    assert tap_blocks(5) == (1, 3, 4)
    assert tap_blocks(2) == (0, 1)
    assert tap_blocks(1) == (0,)


@pytest.fixture(params=["attention", "mean"])
def net(request: pytest.FixtureRequest) -> Discriminator:
    return Discriminator(16, 2, (0, 2), pairs=3, pool=request.param)


def features(batch: int = 2, tokens: int = 12) -> dict[int, torch.Tensor]:
    return {block: torch.randn(batch, tokens, 16) for block in (0, 2)}


def test_one_logit_per_pair_in_float32_whatever_the_features(net):
    half = {block: value.bfloat16() for block, value in features().items()}
    logits = net(half, torch.tensor([0.2, 0.9]))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32


def test_a_logit_depends_on_every_tap_on_the_time_and_on_single_tokens(net):
    given, t = features(), torch.tensor([0.2, 0.9])
    base = net(given, t).detach()
    for block in given:
        changed = {**given, block: given[block].clone()}
        changed[block][:, 7] = torch.randn(2, 16)  # a constant would vanish in the norm
        assert float((net(changed, t).detach() - base).abs().min()) > 0
    assert float((net(given, t + 0.05).detach() - base).abs().min()) > 0


def test_heads_without_a_time_judge_by_the_features_alone():
    net, given = Discriminator(16, 2, (0, 2), pairs=3, timed=False), features()
    torch.testing.assert_close(net(given, torch.tensor([0.2, 0.9])), net(given, torch.tensor([0.7, 0.1])))
    assert not any(name.startswith("time") for name, _ in net.named_parameters())


def test_the_loss_of_one_logit_gives_none_to_the_other_rows(net):
    net(features(), torch.tensor([0.2, 0.9]))[:, 1].sum().backward()
    rows = net.logits.weight.grad.abs().sum(1)
    assert float(rows[1]) > 0
    assert float(rows[0]) == float(rows[2]) == 0.0


def test_clips_of_any_length_and_no_mixing_within_the_batch(net):
    given, t = features(tokens=40), torch.tensor([0.2, 0.9])
    alone = net({block: value[1:] for block, value in given.items()}, t[1:])
    torch.testing.assert_close(net(given, t)[1:], alone)


def test_nothing_to_tell_apart_is_an_error():
    with pytest.raises(NearstepError, match="at least one"):
        Discriminator(16, 2, (0,), pairs=0)
