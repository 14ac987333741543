"""The updates of a distillation: samples of the student, and what student, assistant and discriminator learn from them.

Reading order, which is that of a step (stage.py ``DistillStage.step``): ``sample`` rolls the student out with n steps,
and with n + 1 where those are the reference; ``student`` takes two gradients at the n-step samples, adds them and sends
the sum through the rollout once; ``assistant`` and ``discriminator`` then learn from the same samples, several times,
each time under new times and noise: a rollout costs more than their updates (docs/method.md section 11). Asked to, each
of these updates has fresh samples, as Self-Forcing's critic does.

Gradients are left on the weights, as parts of a mean over this process's clips; whoever calls moves the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.path import noised, x0_from_velocity
from nearstep.flow.plan import GRID, chunk_lengths
from nearstep.losses.denoising import flow_matching
from nearstep.losses.dmd import distribution_matching, dmd_gradient
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import block_causal
from nearstep.nets.script import Text, encoded, with_negative
from nearstep.protocols import TextEncoder
from nearstep.rollout.rollout import generate
from nearstep.train.distill.adversary import Metrics
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.excerpt import draw_excerpt, seen_frames
from nearstep.train.distill.networks import Networks
from nearstep.train.distill.noise import Noise
from nearstep.train.distill.replay import NotedDenoiser, Replay
from nearstep.train.distill.scores import denoiser_of, own_chunks
from nearstep.train.distill.steps import StepPlan, step_plan, training_plan
from nearstep.train.parallel import Ranks
from nearstep.train.stages.shared import Clips

Draw = Literal["fewer", "more"]
"""Names the noise of n-step and of (n+1)-step rollouts: the two are independent. Other names would be other noise."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the samples of a micro-batch are made for."""

    text: Text
    """[B, L, D] the prompts, or a script of them."""
    data: Tensor | None
    """[B, F, C, H, W] real clips, where there are any."""
    rows: range
    """Which rows of the whole batch they are."""

    @property
    def clips(self) -> Tensor:
        """The real clips, of a run that has them.

        Raises:
            NearstepError: if there are prompts alone.
        """
        if self.data is None:
            raise NearstepError("prompts alone give no clips to sample from or to hold samples against; give latents")
        return self.data


@dataclass(frozen=True, kw_only=True)
class Batch(Conditions):
    """A micro-batch with its samples."""

    x_n: Tensor
    """[B, F, C, H, W] the n-step samples; with a graph until the student has learnt from them."""
    x_next: Tensor | None
    """[B, F, C, H, W] what they are held against, without a graph; None where n has no reference."""
    given: int = 0
    """Leading frames of ``x_n`` that are real, and not the student's."""
    replay: Replay | None = None
    """Takes the gradient on, where the graph of ``x_n`` ends at a rollout that had none."""

    def backward(self, gradient: Tensor) -> None:
        """Send a gradient at ``x_n`` through the last step of every chunk; once."""
        self.x_n.backward(gradient)
        if self.replay:
            self.replay.backward()

    def detached(self) -> Batch:
        """The same without the rollout's graph."""
        return replace(self, x_n=self.x_n.detach(), replay=None)


class DistillUpdate:
    """The updates of one distillation.

    Args:
        config: the run's.
        networks: in their places on the device.
        text: encodes prompts.
        clips: captions, with latents or without.
        codec: makes the picture that an excerpt of a long sample begins with.
        here: this process among those that train together.
        first_chunk: latent frames of the first chunk, which is then taken from the clips and not generated.
        batch: clips of an update, over all processes; None: the run's.
        kind: number of this kind of clips among the run's.
        first_steps: steps of the chunk where a scene begins; None: the run's.
    """

    def __init__(
        self,
        config: DistillFields,
        networks: Networks,
        *,
        text: TextEncoder,
        clips: Clips,
        codec: VideoCodec,
        here: Ranks,
        first_chunk: int | None = None,
        batch: int | None = None,
        kind: int = 0,
        first_steps: int | None = None,
    ) -> None:
        self.config, self.networks, self.text, self.clips, self.here = config, networks, text, clips, here
        self.codec, self.batch = codec, batch or config.batch
        self.rows, self.first_chunk, self.kind = here.share(self.batch), first_chunk, kind
        self.first_steps = first_steps or config.first_steps
        self.lengths = chunk_lengths(clips.shape[0], config.chunk_frames, first_chunk)
        if first_chunk == clips.shape[0]:
            raise NearstepError(
                f"first_chunk={first_chunk} is all of the lesson's clips, so nothing of them would be made; give it "
                "longer clips, or leave first_chunk out"
            )

    def plan(self, index: int) -> StepPlan:
        """What step ``index`` does, by its number alone."""
        config = self.config
        return step_plan(
            index,
            seed=config.seed,
            step_counts=config.step_counts,
            warmup=config.warmup,
            adversary_delay=config.adversary_delay,
        )

    def noise(self, *names: str | int) -> Noise:
        """Noise and times of this process's rows, under these names."""
        config, (frames, *shape) = self.config, self.clips.shape
        return Noise(
            names=(config.seed, *names),
            rows=self.rows,
            shape=(seen_frames(frames, config.excerpt_frames), *shape),
            t_min=config.t_min,
            t_max=config.t_max,
            device=self.here.device,
        )

    # --- samples ---------------------------------------------------------------------------------------------------

    def draw(self, index: int, number: int = 0) -> int:
        """Number of the captions and noises of step ``index``, from 0.

        Update ``number`` of assistant and discriminator, from 1, has a number of its own where samples are ``fresh``.
        """
        return index * (self.config.ratio + 1) + number if self.config.fresh else index

    def sample(self, plan: StepPlan, index: int, rows: range, *, graph: bool = False) -> Batch:
        """The n-step samples of some rows of draw ``index``, with a graph if asked to, and references without one."""
        data, captions = self.clips.batch(index * self.batch + rows.start, len(rows))
        data = None if data is None else data.to(self.here.device)
        text = encoded(self.text, captions, self.clips.starts, self.clips.shape[0])
        conditions = Conditions(text=text, data=data, rows=rows)
        excerpt = draw_excerpt(self.clips.shape[0], self.config.excerpt_frames, self.config.seed, index)
        x_n, replay = self.rollout(plan.steps, conditions, index, "fewer", graph=graph)
        if replay:
            replay = replace(replay, reached=excerpt.reached)
        x_next = self._reference(plan, conditions, index)
        return Batch(
            text=excerpt.text(text),
            data=None if data is None else excerpt.clip(data, self.codec),
            rows=rows,
            x_n=excerpt.clip(x_n, self.codec),
            x_next=None if x_next is None else excerpt.clip(x_next, self.codec),
            given=max(0, (self.first_chunk or 0) - excerpt.first),
            replay=replay,
        )

    def rollout(
        self, steps: int, conditions: Conditions, index: int, draw: Draw, *, graph: bool
    ) -> tuple[Tensor, Replay | None]:
        """``steps``-step samples of the student [B, F, C, H, W], float32.

        Args:
            steps: n.
            conditions: what they are made for.
            index: number of the draw.
            draw: names the noise.
            graph: through each chunk's last step; asked to, by a replay, and the samples are then a leaf.
        """
        config, student, device = self.config, self.networks.student, self.here.device
        choice = rng.generator("schedule", config.seed, index, steps)
        make = partial(training_plan, kind=config.schedule, lengths=self.lengths, shift=config.shift, draw=choice)
        plan = make(steps, first=self.first_steps, starts=self.clips.starts)
        again = graph and config.replay
        with torch.set_grad_enabled(graph and not again):
            if config.sampling == "data":
                return self._from_data(plan.schedules[0].times[-1], conditions, draw, index), None
            denoiser = (NotedDenoiser if again else TextDenoiser)(student, conditions.text)
            size, (frames, *shape) = len(conditions.rows), self.clips.shape
            # Append-only: the backward pass may read earlier chunks again.
            cache = denoiser.new_cache(size, frames, *shape[1:], append_only=True)
            first = index * self.batch
            samples = range(first + conditions.rows.start, first + conditions.rows.stop)
            seed = rng.key("distill", draw, config.seed)
            given = None if self.first_chunk is None else conditions.clips[:, : self.first_chunk]
            x = generate(
                denoiser,
                plan,
                shape=shape,
                seed=seed,
                samples=samples,
                cache=cache,
                graph=graph and not again,
                device=device,
                given=given,
            )
        if not isinstance(denoiser, NotedDenoiser):
            return x, None
        return x.requires_grad_(), Replay(denoiser=denoiser, cache=cache, samples=x, reached=range(frames))

    def _from_data(self, time: float, conditions: Conditions, draw: Draw, index: int) -> Tensor:
        """One call on noised clips in place of a rollout (CausVid)."""
        clips = conditions.clips
        t = torch.full(clips.shape[:2], time, device=clips.device)
        x_t = noised(clips, self.noise("data", draw, index).of(conditions.rows).eps("data"), t)
        v = self.networks.student(x_t, t, conditions.text, visibility=block_causal(self.lengths))
        return x0_from_velocity(x_t, v, t)

    def _reference(self, plan: StepPlan, conditions: Conditions, index: int) -> Tensor | None:
        adversary = self.networks.adversary
        if adversary is None or not plan.discriminator_learns or not adversary.judges(plan.steps):
            return None
        if adversary.config.against_data(plan.steps, GRID):
            return conditions.clips
        return self.rollout(plan.steps + 1, conditions, index, "more", graph=False)[0]

    # --- updates ---------------------------------------------------------------------------------------------------

    def student(self, plan: StepPlan, batch: Batch, noise: Noise) -> Metrics:
        """Gradients of the student from one micro-batch, and what to log."""
        config, networks = self.config, self.networks
        # Both gradients are taken at the samples x [B, F, C, H, W], cut off from the rollout that made them: there they
        # can be measured against each other, and only their sum has to go back through the student.
        x = batch.x_n.detach().requires_grad_()
        total, metrics = torch.zeros_like(x), {}

        # 1. Distribution matching: x noised, at one time for all that the networks see as one chunk, and scored by the
        # guided teacher (real) and by the assistant (fake). Neither learns; the gradient's numbers are float32.
        if config.dmd_on == "every" or plan.steps == max(config.step_counts):
            both = with_negative(batch.text, self.text, config.negative)
            real = denoiser_of(networks.teacher, both, x, guidance=config.guidance)
            fake = denoiser_of(networks.assistant, batch.text, x)
            lengths = own_chunks(networks.teacher.config, x.shape[1])
            t = noise.chunk_t("match", config.shift, lengths)
            direction = dmd_gradient(x, real, fake, noise.eps("match"), t, lengths)
            loss = distribution_matching(x, direction)
            (dmd,) = torch.autograd.grad(loss.sum(), x)
            total = total + dmd
            metrics = {"dmd": loss.mean(), "dmd_norm": dmd.flatten(1).norm(dim=1).mean()}

        # 2. The adversary, where n has a reference and the warm-up is over: alpha times its gradient at x.
        adversary, x_next = networks.adversary, batch.x_next
        if adversary and x_next is not None and plan.student_listens:
            asd, logged = adversary.student_gradient(
                adversary.pair(plan.steps, batch.x_n, x_next, batch.text, noise), total, self.kind
            )
            total, metrics = total.add_(asd), metrics | logged
            del asd  # a clip, before the backward pass that needs the most memory

        # 3. One backward pass through the last step of every chunk, for both.
        batch.backward(total / len(self.rows))
        for name, clips in ((str(plan.steps), x.detach()), ("data", batch.data)):
            if clips is not None:
                metrics[f"std_{name}"] = clips.std()
                if clips.shape[1] > 1:
                    metrics[f"motion_{name}"] = clips.diff(dim=1).abs().mean()
        return metrics

    def assistant(self, batch: Batch, noise: Noise) -> Metrics:
        """Gradients of the assistant from one micro-batch, and what to log.

        Flow matching on the student's samples, as the teacher once learnt from clips: so it knows how dense the
        student's samples are, now. Of frames that the samples were given it learns nothing: those are the data's.
        """
        assistant, x = self.networks.assistant, batch.x_n  # [B, F, C, H, W], without a graph by now
        t = noise.chunk_t("assistant", self.config.shift, own_chunks(assistant.config, x.shape[1]))
        t[:, : batch.given] = 0.0
        losses = flow_matching(denoiser_of(assistant, batch.text, x), x, noise.eps("assistant"), t)
        (losses.sum() / len(self.rows)).backward()
        return {"assistant": losses.mean()}

    def discriminator(self, plan: StepPlan, batch: Batch, noise: Noise, gamma: float) -> Metrics:
        """Gradients of the discriminator from one micro-batch, and what to log; none where n has no reference.

        Args:
            plan: the step's.
            batch: its samples, without a graph.
            noise: this update's.
            gamma: weight of the penalties; 0 where none is due.
        """
        adversary, x_next = self.networks.adversary, batch.x_next
        if adversary is None or x_next is None:
            return {}
        # [B] losses of D_n on pairs of n-step sample and reference; a joint backbone learns from them too.
        losses, metrics = adversary.discriminator_loss(
            adversary.pair(plan.steps, batch.x_n, x_next, batch.text, noise), gamma
        )
        (adversary.loss_weight * losses.sum() / len(self.rows)).backward()
        by_steps = {f"{name}_{plan.steps}": metrics[name] for name in ("d_n", "d_next", "gap", "accuracy")}
        return {**metrics, **by_steps}
