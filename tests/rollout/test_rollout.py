"""The one loop: calls, order, chunks, gradients, and the closed-form ODE."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch

from nearstep import rng
from nearstep.flow.guidance import Guided
from nearstep.flow.path import per_frame
from nearstep.flow.plan import ChunkPlan, make_plan, prefix
from nearstep.rollout.rollout import PlannedChunk, generate, rollout, unroll

SHAPE = (2, 4, 4)


class Fused:
    """A fused commit is, by its law, a commit and a call."""

    def commit_then(self, clean, x, t, *, cache, start):
        with torch.no_grad():
            self.commit(clean, cache=cache, start=start - clean.shape[1])
            return self(x, t, cache=cache, start=start)


@dataclass
class Recorder(Fused):
    """A causal denoiser of one weight that notes its calls; its context is the mean of what was committed."""

    weight: torch.Tensor = field(default_factory=lambda: torch.tensor(0.5, requires_grad=True))
    calls: list = field(default_factory=list)
    fused: list = field(default_factory=list)

    def __call__(self, x, t, *, cache=None, start=0):
        self.calls.append(("step", start, float(t[0, 0]), torch.is_grad_enabled()))
        context = torch.stack(cache).mean() if cache else torch.zeros(())
        return self.weight * x + context

    def commit_then(self, clean, x, t, *, cache, start):
        self.fused.append(start)
        return super().commit_then(clean, x, t, cache=cache, start=start)

    def commit(self, x, *, cache, start):
        assert not x.requires_grad
        self.calls.append(("commit", start, 0.0, torch.is_grad_enabled()))
        cache.append(x.mean())

    def new_cache(self, batch, frames, height, width, *, reach=None):
        return []


def plan_of(text: str, frames: int = 9) -> ChunkPlan:
    return make_plan(text, frames=frames, chunk_frames=3, shift=5.0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("text", ["4", "2", "1", "4,2x", "4,1x", "4,2,1x"])
def test_calls_are_what_the_plan_counts(text: str, fused: bool):
    denoiser, plan = Recorder(), plan_of(text, 21)
    list(rollout(denoiser, plan, shape=SHAPE, seed=0, samples=[0], fused=fused))
    assert len(denoiser.calls) == plan.calls
    assert len(denoiser.fused) == (plan.commits if fused else 0)
    assert sum(kind == "commit" for kind, *_ in denoiser.calls) == plan.commits


def test_a_chunk_is_given_out_before_it_is_committed_and_the_last_is_never():
    denoiser = Recorder()
    chunks = rollout(denoiser, plan_of("2"), shape=SHAPE, seed=0, samples=[0])
    first = next(chunks)
    assert (first.index, first.start, first.steps) == (0, 0, 2)
    assert [kind for kind, *_ in denoiser.calls] == ["step", "step"]
    assert [chunk.start for chunk in chunks] == [3, 6]
    assert denoiser.calls[-1][0] == "step"


def test_fused_changes_nothing_and_a_graph_is_never_fused():
    options = {"shape": SHAPE, "seed": 0, "samples": [0]}
    apart, fused, graph = Recorder(), Recorder(), Recorder()
    expected = generate(apart, plan_of("2"), **options)
    assert torch.equal(generate(fused, plan_of("2"), fused=True, **options), expected)
    assert fused.calls == apart.calls
    generate(graph, plan_of("2"), fused=True, graph=True, **options)
    assert not graph.fused


def test_chunks_without_end_are_asked_for_one_at_a_time():
    asked = []

    def endless():
        for count in itertools.count():
            asked.append(count)
            yield PlannedChunk(count % 2 + 1, prefix(1 + count % 3, shift=5.0))

    def draw(chunk, frames, step):
        return rng.noise((frames, *SHAPE), seed=0, samples=[0], chunk=chunk, step=step)

    denoiser, clean = Recorder(), torch.zeros(1, 2, *SHAPE)
    chunks = unroll(denoiser, endless(), draw, cache=[], first=7, start=5, before=clean)
    made = [next(chunks) for _ in range(4)]
    assert asked == [0, 1, 2, 3]
    assert [(chunk.index, chunk.start, chunk.steps) for chunk in made] == [(7, 5, 1), (8, 6, 2), (9, 8, 3), (10, 9, 1)]
    assert denoiser.calls[0][:2] == ("commit", 3)


def test_a_chunk_stops_where_its_rule_says():
    seen = []

    def stop(step, earlier, x0):
        assert (earlier is None) == (step == 1)
        seen.append(x0 if earlier is None else x0 - earlier)
        return step == 3

    def draw(chunk, frames, step):
        return rng.noise((frames, *SHAPE), seed=0, samples=[0], chunk=chunk, step=step)

    (chunk,) = unroll(Recorder(), [PlannedChunk(3, prefix(4, shift=5.0), stop)], draw, cache=None)
    assert chunk.steps == len(seen) == 3
    torch.testing.assert_close(chunk.latents, sum(seen))


def test_a_sample_depends_on_its_own_name_alone():
    together = generate(Recorder(), plan_of("4,1x"), shape=SHAPE, seed=5, samples=[3, 8])
    # The stand-in's context mixes the batch, so compare the first chunk, which has none.
    alone = generate(Recorder(), plan_of("4", 3), shape=SHAPE, seed=5, samples=[8])
    assert torch.equal(together[1:, :3], alone)
    other = generate(Recorder(), plan_of("4", 3), shape=SHAPE, seed=6, samples=[8])
    assert not torch.equal(alone, other)


def test_only_the_last_step_of_a_chunk_keeps_a_graph():
    denoiser = Recorder()
    chunks = list(rollout(denoiser, plan_of("3"), shape=SHAPE, seed=0, samples=[0], graph=True))
    assert all(chunk.latents.requires_grad for chunk in chunks)
    graphs = [grad for kind, _, _, grad in denoiser.calls if kind == "step"]
    assert graphs == [False, False, True] * 3
    assert not any(grad for kind, _, _, grad in denoiser.calls if kind == "commit")


def test_training_with_a_prefix_is_sampling_with_it_bitwise():
    lengths = (3, 3, 3)
    plan = ChunkPlan(text="2", lengths=lengths, schedules=(prefix(2, shift=5.0),) * 3)
    trained = generate(Recorder(), plan, shape=SHAPE, seed=1, samples=[0, 1], graph=True)
    with torch.no_grad():
        sampled = generate(Recorder(), plan, shape=SHAPE, seed=1, samples=[0, 1])
    assert torch.equal(trained.detach(), sampled)


class Cacheless(Fused):
    """One chunk needs no cache."""

    def commit(self, x, *, cache, start):
        raise AssertionError("one chunk is never committed")

    def new_cache(self, batch, frames, height, width, *, reach=None):
        raise AssertionError("one chunk needs no cache")


class GaussianScore(Cacheless):
    """The exact velocity for data N(mean, deviation^2): the posterior mean of a Gaussian is linear."""

    mean, deviation = 1.5, 0.3

    def __call__(self, x, t, *, cache=None, start=0):
        t = per_frame(t, x)
        variance = ((1 - t) * self.deviation) ** 2 + t**2
        x0 = self.mean + (1 - t) * self.deviation**2 / variance * (x - (1 - t) * self.mean)
        return (x - x0) / t


def test_the_implied_noise_is_eulers_method_and_converges_to_the_exact_flow():
    errors = []
    noise = rng.noise((3, *SHAPE), seed=0, samples=[0], chunk=0, step=0)
    # The probability flow of a Gaussian is affine: noise maps to mean + deviation * noise.
    exact = GaussianScore.mean + GaussianScore.deviation * noise
    for steps in (16, 32, 64):
        plan = make_plan(str(steps), frames=3, chunk_frames=None, shift=1.0)
        made = generate(GaussianScore(), plan, shape=SHAPE, seed=0, samples=[0], renoise="implied")
        errors.append(float((made - exact).abs().max()))
    assert all(later < earlier * 0.6 for earlier, later in pairwise(errors)), errors


@pytest.mark.parametrize("steps", [1, 4, 64])
def test_fresh_noise_has_the_gaussians_mean_and_narrows_it(steps: int):
    """x0 is a posterior mean, narrower than the data; noise added anew makes up for none of what it lost."""
    plan, wide = make_plan(str(steps), frames=3, chunk_frames=None, shift=3.0), GaussianScore.deviation**2
    made = generate(GaussianScore(), plan, shape=(4, 64, 64), seed=0, samples=[0])
    left = 0.0  # variance of x0
    for t in plan.schedules[0].times:
        left = ((1 - t) * wide / ((1 - t) ** 2 * wide + t**2)) ** 2 * ((1 - t) ** 2 * left + t**2)
    assert float(made.mean()) == pytest.approx(GaussianScore.mean, abs=0.01)
    assert float(made.std()) == pytest.approx(math.sqrt(left), rel=0.02, abs=1e-6)
    assert left < 0.5 * wide


class Halves(Fused):
    """Velocity 1 for the conditional rows, 0 for the others."""

    def __call__(self, x, t, *, cache=None, start=0):
        ones = torch.ones_like(x)
        ones[len(x) // 2 :] = 0
        return ones

    def commit(self, x, *, cache, start):
        cache.append(len(x))

    def new_cache(self, batch, frames, height, width, *, reach=None):
        return [batch]


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_guidance_is_u_plus_w_times_c_minus_u(weight: float):
    guided = Guided(Halves(), weight)
    x = torch.randn(2, 3, *SHAPE)
    v = guided(x, torch.ones(2, 3))
    torch.testing.assert_close(v, torch.full_like(x, weight))
    cache = guided.new_cache(2, 9, 4, 4)
    guided.commit(x, cache=cache, start=0)
    assert cache == [4, 4]


def test_noise_names_are_independent():
    rows = [
        rng.noise((2000,), seed=seed, samples=[sample], chunk=chunk, step=step)[0]
        for seed, sample, chunk, step in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    ]
    similarity = torch.corrcoef(torch.stack(rows)) - torch.eye(5)
    assert float(similarity.abs().max()) < 5 / math.sqrt(2000)
