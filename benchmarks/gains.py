"""What each thing that makes calls fewer or cheaper is worth by itself, and what some that are not built would be.

    python benchmarks/gains.py                 # a small Wan on one CPU thread, and the playground's streams
    python benchmarks/gains.py --size playground
    python benchmarks/gains.py --size tiny     # in seconds: that the script itself works

Of the network at hand (sizes as in peers.py) the rollout as it is makes a clip without decoding; then the same with one
thing taken away ("without"), with one switched on that is off by itself ("on"), or with one that is not in the package
("tried"). Outputs are compared first, rounds go through everything in turn, and a ratio of times is one of medians with
a bootstrap interval over rounds: 1.05 in a row "without" says that the thing saves 5 %.
"""

from __future__ import annotations

import copy
import itertools
import json as jsons
import math
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import tyro
from loops import SHIFT, SIZES, Given, Run, build, ours, ratio
from torch import Tensor, nn
from torch.nn.functional import linear

from nearstep import CausalVideoPipeline
from nearstep.cost.clock import machine, synchronise
from nearstep.evaluate.tables import markdown
from nearstep.files import replacing
from nearstep.flow.plan import ChunkPlan, make_plan
from nearstep.nets import blocks, denoiser, rope
from nearstep.nets.attention import SelfAttention, joined
from nearstep.nets.blocks import TransformerBlock
from nearstep.nets.cache import KVCache, Past
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.transformer import VideoTransformer
from nearstep.rollout.rollout import generate

PROMPT = "a large red apple slides left slowly on snow"
BASE = "as it is"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["small", "playground", "tiny"] = "small"
    plans: tuple[str, ...] = ("4", "4,1x")
    rounds: int = 7
    compile: bool = True
    """Also blocks compiled, which takes minutes first."""
    stream_plans: tuple[str, ...] = ("1", "4")
    """Of the playground's streams."""
    stream_chunks: int = 30
    threads: int = 1
    """Of torch."""
    device: str | None = None
    json: Path = Path("gains.json")


@dataclass(frozen=True)
class Variant:
    """One thing changed."""

    kind: Literal["", "without", "on", "tried"]
    name: str
    run: Run
    allowed: float
    """Largest difference of outputs, in the largest value."""


# --- what is taken away ----------------------------------------------------------------------------------------------


def under(change: Callable[[], AbstractContextManager[Any]], run: Run) -> Run:
    """The same inside ``change()``."""

    def changed(plan: ChunkPlan) -> Tensor:
        with change():
            return run(plan)

    return changed


@contextmanager
def text_anew(text: Tensor) -> Iterator[None]:
    """Keys and values of the text are made in every call."""
    forward = VideoTransformer.forward

    def anew(self: VideoTransformer, x: Tensor, t: Tensor, _: Any, **options: Any) -> Any:
        return forward(self, x, t, self.text_keys(text), **options)

    with patch.object(VideoTransformer, "forward", anew):
        yield


@contextmanager
def past_copied() -> Iterator[None]:
    """What a call reads is joined to its own keys and values in a new tensor."""
    read = KVCache.read

    def copied(self: KVCache, layer: int, slots: Sequence[slice], *, frames: int) -> Past | None:
        with torch.enable_grad():  # where the cache never lends its free space
            return read(self, layer, slots, frames=frames)

    with patch.object(KVCache, "read", copied):
        yield


@contextmanager
def tables_anew() -> Iterator[None]:
    """Rotary tables are made in every call."""
    forward = VideoTransformer.forward

    def anew(self: VideoTransformer, *arguments: Any, **options: Any) -> Any:
        rope.forget_tables()
        return forward(self, *arguments, **options)

    with patch.object(VideoTransformer, "forward", anew):
        yield


def fused_at_any_size() -> AbstractContextManager[Any]:
    """Also where two calls are faster."""
    return patch.object(denoiser, "LARGEST_FUSED", sys.maxsize)


@contextmanager
def last_block_whole() -> Iterator[None]:
    """A commit goes through the last block, too, for an output that nobody reads."""
    forward = TransformerBlock.forward

    def whole(self: TransformerBlock, *arguments: Any) -> Any:
        *rest, keys_only, turns = arguments  # no turns: one prompt holds
        call: Any = forward
        out, own = call(self, *rest, 0, turns)
        return out[:, keys_only:], own

    with patch.object(TransformerBlock, "forward", whole):
        yield


def last_committed(given: Given) -> Run:
    """The last chunk gets a commit, which nobody reads."""

    def run(plan: ChunkPlan) -> Tensor:
        bound = TextDenoiser(given.net, given.text)
        cache = bound.new_cache(1, plan.frames + given.size.chunk, *given.shape[1:])
        latents = generate(
            bound, plan, shape=given.shape, seed=7, samples=[0], device=given.device, fused=True, cache=cache
        )
        bound.commit(latents[:, -given.size.chunk :], cache=cache, start=cache.end)
        return latents

    return run


# --- what is tried ---------------------------------------------------------------------------------------------------


@contextmanager
def one_product(net: VideoTransformer) -> Iterator[None]:
    """Queries, keys and values of self-attention by one matrix product."""
    layers = [module for module in net.modules() if isinstance(module, SelfAttention)]

    def joined_up(layer: SelfAttention, part: str) -> Tensor:
        return torch.cat([getattr(product, part) for product in (layer.to_q, layer.to_k, layer.to_v)])

    joint = {id(layer): [joined_up(layer, part) for part in ("weight", "bias")] for layer in layers}
    forward = SelfAttention.forward

    def fused(self: SelfAttention, x: Tensor, table: Any, groups: Any = (), past: Any = None, left: int = 0) -> Any:
        if left:
            return forward(self, x, table, groups, past, left)
        q, k, v = linear(x, *joint[id(self)]).chunk(3, dim=-1)
        queries, keys = (rope.rotate(self._heads(n(y)), table) for n, y in ((self.norm_q, q), (self.norm_k, k)))
        values = self._heads(v)
        return self.attend(queries, *joined(past, keys, values), groups), (keys, values)

    with patch.object(SelfAttention, "forward", fused):
        yield


@contextmanager
def gelu_by_sigmoid() -> Iterator[None]:
    """x sigmoid(2u) in the place of x (1 + tanh u) / 2: the same number, without torch's slow tanh."""
    scale = 2 * math.sqrt(2 / math.pi)

    def by_sigmoid(x: Tensor, approximate: str) -> Tensor:
        return (x * x).mul_(0.044715 * scale).add_(scale).mul_(x).sigmoid_().mul_(x)

    with patch.object(blocks, "gelu", by_sigmoid):
        yield


def in_bfloat16(given: Given) -> Given:
    """Weights and calls in bfloat16."""
    net: Any = copy.deepcopy(given.net)  # diffusers' own to() is not typed
    return replace(given, net=net.to(torch.bfloat16), text=given.text.to(torch.bfloat16))


def in_int8(given: Given) -> Given:
    """Products of the blocks in int8: weights by tensor, inputs as they come."""
    from torch.ao.quantization import quantize_dynamic

    net = copy.deepcopy(given.net)
    with warnings.catch_warnings(
        action="ignore"
    ):  # deprecated: torchao takes its place, and was slower here when tried
        net.blocks = quantize_dynamic(net.blocks, {nn.Linear}, dtype=torch.qint8)
    return replace(given, net=net)


def variants(given: Given, options: Options) -> list[Variant]:
    """All of them; the first is what others are compared with."""
    fused = ours(given, fused=True)
    found = [
        Variant("", BASE, fused, 0.0),
        Variant("without", "fused commits", ours(given, fused=False), 1e-5),
        Variant("tried", "commits fused at any size", under(fused_at_any_size, fused), 1e-5),
        Variant("without", "the last commit left out", last_committed(given), 1e-5),
        Variant("without", "a commit's last block cut short", under(last_block_whole, fused), 1e-5),
        Variant("without", "text keys kept", under(lambda: text_anew(given.text), fused), 1e-5),
        Variant("without", "a cache read in place", under(past_copied, fused), 1e-5),
        Variant("without", "rotary tables kept", under(tables_anew, fused), 1e-5),
        Variant("tried", "one product for queries, keys, values", under(lambda: one_product(given.net), fused), 1e-4),
        Variant("tried", "GELU by a sigmoid", under(gelu_by_sigmoid, fused), 1e-4),
        Variant("on", "bfloat16", ours(in_bfloat16(given), fused=True), 0.2),
    ]
    if given.device.type == "cpu":
        found.append(Variant("tried", "int8 products", ours(in_int8(given), fused=True), 0.5))
    if options.compile:
        net = copy.deepcopy(given.net)
        compile_blocks(net)
        found.append(Variant("on", "blocks compiled", ours(replace(given, net=net), fused=True), 1e-4))
    return found


# --- times -----------------------------------------------------------------------------------------------------------


def clips(options: Options, device: torch.device) -> list[dict[str, Any]]:
    """Rows of every plan and variant of the rollout."""
    size = SIZES[options.size]
    given, rows = build(size, size.grid, device), []
    with torch.inference_mode():
        found = variants(given, options)
        for text in options.plans:
            plan = make_plan(text, frames=size.chunk * size.chunks, chunk_frames=size.chunk, shift=SHIFT)
            expected = found[0].run(plan)
            errors = [float((one.run(plan) - expected).abs().max() / expected.abs().max()) for one in found]
            seconds = in_turn([partial(one.run, plan) for one in found], options.rounds, device)
            rows += [
                {
                    "plan": text,
                    "kind": one.kind,
                    "name": one.name,
                    "error": error,
                    "allowed": one.allowed,
                    "seconds": own,
                    "ratio": ratio(own, seconds[0]),
                }
                for one, error, own in zip(found, errors, seconds, strict=True)
            ]
    return rows


def streams(options: Options) -> list[dict[str, Any]]:
    """Rows of the playground's streams, decoding included; they end alike (tests/stream/test_prefetch.py)."""
    pipe, rows = CausalVideoPipeline.from_pretrained("playground"), []

    def play(plan: str, ahead: bool) -> None:
        with pipe.open(PROMPT, plan, seed=7, prefetch=ahead) as session:
            for _ in itertools.islice(session, options.stream_chunks):
                pass

    for plan in options.stream_plans:
        runs = [partial(play, plan, ahead) for ahead in (False, True)]
        for run in runs:
            run()
        plain, ahead = in_turn(runs, options.rounds, torch.device("cpu"))
        rows.append({"plan": plan, "seconds": [plain, ahead], "ratio": ratio(ahead, plain)})
    return rows


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each, round by round."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, own in zip(runs, seconds, strict=True):
            synchronise(device)
            began = time.perf_counter()
            run()
            synchronise(device)
            own.append(time.perf_counter() - began)
    return seconds


def main(options: Options) -> int:
    """Measure, print, write; 1 where outputs differ by more than a variant may."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = {
        "machine": machine(device),
        "command": shlex.join(["python", "benchmarks/gains.py", *sys.argv[1:]]),
        "clips": clips(options, device),
        "streams": streams(options) if device.type == "cpu" else [],
    }
    with replacing(options.json) as part:
        part.write_text(jsons.dumps(found, indent=1) + "\n")
    rows = [
        [one["plan"], one["kind"], one["name"], f"{one['error']:.0e}", "{:.3f} [{:.3f}, {:.3f}]".format(*one["ratio"])]
        for one in found["clips"]
    ]
    rows += [
        [one["plan"], "on", "playground: decoding beside", "0", "{:.3f} [{:.3f}, {:.3f}]".format(*one["ratio"])]
        for one in found["streams"]
    ]
    print(markdown(["plan", "", "", "error", "times as it is"], rows), options.json, sep="\n")
    return int(any(one["error"] > one["allowed"] for one in found["clips"]))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
