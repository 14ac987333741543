"""Products in bfloat16 beside float32 on this machine's CPU, on one core: which of the two training should take.

python benchmarks/products.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nearstep.precision import multiplies_bfloat16

_SECONDS = 1.0
_TOKENS, _WIDTH, _INNER = 2304, 256, 640
"""Of a teacher's feed-forward layer in the playground."""


def rate(call: Callable[[], object], operations: float) -> float:
    """Operations a second; the fastest of as many calls as fit in a second."""
    call()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return operations / best


def main() -> None:
    """A matrix product and a convolution in time, in both types."""
    torch.set_num_threads(1)
    print(f"one core, {torch.backends.cpu.get_cpu_capability()}; bfloat16 is taken: {multiplies_bfloat16('cpu')}")
    rates: dict[str, list[float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, layer = torch.randn(_TOKENS, _WIDTH, dtype=dtype), torch.nn.Linear(_WIDTH, _INNER, dtype=dtype)
        clip, kernel = torch.randn(4, 24, 5, 34, 34, dtype=dtype), torch.nn.Conv3d(24, 24, 3, dtype=dtype)
        with torch.no_grad():
            made = kernel(clip)
            found = {
                "product": rate(lambda layer=layer, x=x: layer(x), 2 * _TOKENS * _WIDTH * _INNER),
                "convolution": rate(lambda kernel=kernel, clip=clip: kernel(clip), 2 * made.numel() * 24 * 27),
            }
        for what, each in found.items():
            rates.setdefault(what, []).append(each)
    for what, (wide, narrow) in rates.items():
        print(
            f"{what}: {wide / 1e9:.1f} GFLOP/s in float32, {narrow / 1e9:.2f} in bfloat16, "
            f"{wide / narrow:.1f} times as long"
        )


if __name__ == "__main__":
    main()
