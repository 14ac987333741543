"""Rollouts without a graph, and each chunk's last step again with one: the memory of one chunk, however many there are.

A chunk's loss reaches its own last step alone: what it read of earlier chunks was detached when it was committed. So
the rollout needs no graph while it is made. Once the gradient at the samples is known, each chunk's last call is made
again from the same noise and the same past, and takes its share of the gradient back, one chunk after another. That
costs a call a chunk, and gives the gradients of a rollout with a graph::

    rollout    o o C  o o C  o o       no graph; the last o of each chunk is noted: x_t, t, and where it starts
    loss       gradient at the samples
    replay       o      o      o       with a graph, each followed by its backward pass

The prompt's keys are shared by all chunks: their gradients are gathered and go back once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.flow.path import x0_from_velocity
from nearstep.nets.cache import KVCache
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.script import Text, TextKeys
from nearstep.nets.transformer import VideoTransformer


class NotedDenoiser(TextDenoiser):
    """A denoiser that notes the newest call on the frames from each ``start`` on, for :class:`Replay`.

    Args:
        net: the network.
        text: as TextDenoiser's.
    """

    def __init__(self, net: VideoTransformer, text: Text) -> None:
        with torch.enable_grad():
            self.source = net.text_keys(text)
        leaves = tuple((k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in self.source.layers)
        super().__init__(net, TextKeys(leaves, self.source.starts))
        self.calls: dict[int, tuple[Tensor, Tensor]] = {}
        """Absolute index of a chunk's first frame -> x_t and t of its newest call."""

    def __call__(
        self,
        x: Float[Tensor, "B F C H W"],
        t: Float[Tensor, "B ..."],
        *,
        cache: KVCache | None = None,
        start: int = 0,
    ) -> Float[Tensor, "B F C H W"]:
        """As TextDenoiser's."""
        self.calls[start] = (x, t)
        return super().__call__(x, t, cache=cache, start=start)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a rollout left for its backward pass."""

    denoiser: NotedDenoiser
    cache: KVCache
    samples: Tensor
    """[B, F, C, H, W] the rollout's, a leaf whose gradient the losses leave on it."""
    reached: range
    """Frames that a gradient reaches; chunks without any are not made again."""

    def backward(self) -> None:
        """Send the gradient at the samples through the last call of every chunk."""
        gradient = self.samples.grad
        if gradient is None:
            raise ValueError("nothing has been learnt from these samples yet: they have no gradient")
        for start, (x, t) in list(self.denoiser.calls.items()):
            end = start + x.shape[1]
            if max(start, self.reached.start) >= min(end, self.reached.stop):
                continue
            with torch.enable_grad():
                v = self.denoiser(x, t, cache=self.cache, start=start)
                x0_from_velocity(x, v, t).backward(gradient[:, start:end])
        made = [key for layer in self.denoiser.source.layers for key in layer]
        leaves = [key for layer in self.denoiser.text.layers for key in layer]
        torch.autograd.backward(made, [leaf.grad for leaf in leaves])
