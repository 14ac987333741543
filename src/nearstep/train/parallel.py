"""Many processes, from outside: networks and losses run as on one device (torchrun, FSDP2, NCCL or gloo).

Every rank draws the same step, rolls out its own rows of the batch and holds its own slice of every weight, or all of
it (``Ranks.holding``). Gradients are means over ranks, so a loss that is a mean over a rank's rows is one over the
whole batch.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from nearstep.errors import NearstepError
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import multiplies_bfloat16

_LETTING_GO = 0.5


Place = Callable[[nn.Module, torch.dtype | None], None]
"""(network, what its blocks are gathered in; None for its own type): puts it where it runs (``Ranks.place``)."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device
    mesh: DeviceMesh | None = None
    """Along which weights are cut into slices; None where the process is alone or holds networks whole."""

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def holding(self, *, slices: bool) -> Ranks:
        """The same processes, each with a slice of every weight, or with all of it."""
        return self if slices else replace(self, mesh=None)

    def share(self, batch: int) -> range:
        """This rank's rows of a batch.

        Raises:
            NearstepError: if the ranks do not divide it.
        """
        if batch % self.count:
            raise NearstepError(f"batch={batch} does not divide among {self.count} processes; use a multiple of them")
        size = batch // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.count == 1:
            return values
        summed = values.detach().clone().to(self.device)
        dist.all_reduce(summed)
        return summed.to(values.device)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each scalar's mean over all ranks, which must hold the same names."""
        if self.count == 1 or not values:
            return dict(values)
        stacked = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        return dict(zip(values, self.total(stacked / self.count).unbind(), strict=True))

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients of what every rank holds whole their mean over all ranks, in one message.

        Those of slices are means already, of FSDP's making.
        """
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.div_(self.count).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, parts, strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def divided(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """``function(rows)`` of rows that every rank holds, each rank making its part; rows keep their shape."""
        if self.count == 1:
            return function(rows)
        size = -(-len(rows) // self.count)
        own = rows[self.rank * size : (self.rank + 1) * size]
        made = rows.new_zeros(size, *rows.shape[1:])  # of one size on all ranks, as messages are
        if len(own):
            made[: len(own)] = function(own)
        parts = [torch.empty_like(made) for _ in range(self.count)]
        dist.all_gather(parts, made)
        return torch.cat(parts)[: len(rows)]

    def agreed(self, number: int) -> int:
        """The main rank's number, everywhere."""
        return int(self.total(torch.tensor(number if self.main else 0)))

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The body on the main rank, and then on the others."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def place(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Put a network on the device: whole, or every rank a slice of each weight (one group per block, and the rest).

        Args:
            network: in its place before the optimizer sees its parameters.
            dtype: that blocks are gathered in; None for the weights' own, which autocast then narrows.
        """
        if self.mesh is None:
            network.to(self.device)
            return
        if dtype is torch.bfloat16 and not multiplies_bfloat16(self.device.type):
            dtype = None  # autocast is off there, too (precision.py)
        narrow = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in network.blocks if isinstance(network, VideoTransformer) else ():
            _shard(block, self.mesh, narrow)
        _shard(network, self.mesh, whole)

    def whole(self, network: nn.Module) -> dict[str, Tensor]:
        """All of a network's weights, to save; every rank takes part, the main one gets them, on the CPU."""
        if self.mesh is None:
            return {name: value.detach() for name, value in network.state_dict().items()}
        gathered = {name: _full(value, keep=self.main) for name, value in network.state_dict().items()}
        return gathered if self.main else {}


@cache
def ranks() -> Ranks:
    """This process's place, from torchrun's environment; joins the group on the first call."""
    count, gpu = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if count == 1:
        return Ranks(0, 1, device)
    dist.init_process_group("nccl" if gpu else "gloo")
    atexit.register(_leave)
    return Ranks(dist.get_rank(), count, device, init_device_mesh(device.type, (count,)))


def resharded(*networks: nn.Module) -> None:
    """Every weight as a slice again: calls that no backward pass followed leave some of them gathered."""
    for network in networks:
        if isinstance(network, FSDPModule):
            network.reshard()


def _leave() -> None:
    # A worker thread of gloo lets go of its last tensors a moment after their collective has returned, and needs the
    # interpreter for that: where it is being torn down by then, the thread aborts the process. Sleeping hands it over.
    dist.destroy_process_group()
    time.sleep(_LETTING_GO)


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    fully_shard(module, mesh=mesh, mp_policy=policy)
    if hasattr(module, "text_keys"):  # called before forward, and needs the weights as well
        register_fsdp_forward_method(module, "text_keys")


def _full(value: Tensor, *, keep: bool) -> Tensor:
    gathered = value.full_tensor() if isinstance(value, DTensor) else value
    return gathered.cpu() if keep else gathered.new_empty(0)
