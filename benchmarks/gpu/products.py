"""What the network's pieces can reach: products in float32, TF32, bfloat16 and fp8, and attention by each kernel.

Shapes are the network's own: a chunk's tokens by the widths of its layers, a chunk's queries over what it looks back
on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.sizes import SIZES, TEXT, Size
from benchmarks.gpu.task import NARROW, Task, named, relative
from nearstep.nets.attention import attention
from nearstep.nets.fp8 import by_rows, product
from nearstep.precision import tf32

KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CUDA_ALONE = ("cuDNN", "efficient")
SAME = 2e-2
"""Relative, of attention in bfloat16 by another kernel."""
FP8_ERROR = 2**-4
"""Of a product: the most that rounding to 3 bits of mantissa changes one factor, and what cancels makes it less."""


@torch.no_grad()
def run(task: Task) -> None:
    """Attention first, then fp8 beside bfloat16, then the floors of the other dtypes."""
    size = SIZES[task.size]
    task.floor()
    _attention(task, size)
    _fp8(task, size)
    task.floor(torch.float32)
    if not task.needs_cuda("floor, TF32"):
        with tf32():
            task.floor(torch.float32, "TF32")


def _attention(task: Task, size: Size) -> None:
    rows, columns = size.grid
    tokens = size.chunk * rows * columns // 4  # patches of 2 x 2
    heads, width = size.network["num_attention_heads"], size.network["attention_head_dim"]
    draw = torch.Generator(task.device).manual_seed(4)

    def drawn(count: int) -> Tensor:
        return torch.randn(1, count, heads, width, generator=draw, device=task.device).to(NARROW)

    last = size.starts[-1] // size.chunk
    contexts = {f"{chunks} chunks before": (chunks + 1) * tokens for chunks in (last, 0)}
    for what, seen in {**contexts, "text": TEXT}.items():
        q, k, v = drawn(tokens), drawn(seen), drawn(seen)
        usual = attention(q, k, v)
        flops = 4 * tokens * seen * heads * width
        seconds = task.seconds(lambda q=q, k=k, v=v: attention(q, k, v))
        task.record(f"attention, {what}, torch's choice", seconds=seconds, rate=flops / seconds)
        for name, backend in KERNELS.items():
            if name in CUDA_ALONE and task.needs_cuda(f"attention, {what}, {name}"):
                continue
            with task.record.trying(f"attention, {what}, {name}"), sdpa_kernel([backend]):
                error = relative(attention(q, k, v), usual)
                seconds = task.seconds(lambda q=q, k=k, v=v: attention(q, k, v))
                task.record(
                    f"attention, {what}, {name}", seconds=seconds, rate=flops / seconds,
                    error=error, allowed=SAME, passed=error <= SAME,
                )  # fmt: skip


def _fp8(task: Task, size: Size) -> None:
    """Layers of the network on a chunk's tokens, and on twice as many (a fused commit)."""
    rows, columns = size.grid
    tokens = size.chunk * rows * columns // 4
    dim, hidden = size.network["num_attention_heads"] * size.network["attention_head_dim"], size.network["ffn_dim"]
    draw = torch.Generator(task.device).manual_seed(5)
    for count, (outputs, inputs) in ((n * tokens, layer) for layer in _layers(dim, hidden) for n in (1, 2)):
        x = torch.randn(count, inputs, generator=draw, device=task.device).to(NARROW)
        weight = torch.randn(outputs, inputs, generator=draw, device=task.device).to(NARROW)
        what, flops = f"{count} x {inputs} -> {outputs}", 2 * count * inputs * outputs
        seconds = task.seconds(lambda x=x, weight=weight: x @ weight.t(), budget=0.1)
        task.record(f"product {what}, {named(NARROW)}", seconds=seconds, rate=flops / seconds)
        if task.needs_cuda(f"product {what}, fp8"):
            continue
        with task.record.trying(f"product {what}, fp8"):
            factors = by_rows(x), by_rows(weight)
            error = relative(product(*factors), x.float() @ weight.float().t())
            alone = task.seconds(lambda factors=factors: product(*factors), budget=0.1)
            both = task.seconds(lambda x=x, factors=factors: product(by_rows(x), factors[1]), budget=0.1)
            task.record(
                f"product {what}, fp8", seconds=alone, rate=flops / alone, with_scaling_seconds=both,
                error=error, allowed=FP8_ERROR, passed=error <= FP8_ERROR,
            )  # fmt: skip


def _layers(dim: int, hidden: int) -> tuple[tuple[int, int], ...]:
    return (hidden, dim), (dim, hidden), (dim, dim)
