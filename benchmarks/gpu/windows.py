"""Memory of a clip by how far back its chunks look: at plan 1, by either decoder, in bfloat16."""

from __future__ import annotations

import torch

from benchmarks.gpu.sizes import SIZES, pipeline, prompt, tiny_decoder
from benchmarks.gpu.task import NARROW, Task
from nearstep.cost.clock import peak_memory, synchronise
from nearstep.reach import Reach


@torch.no_grad()
def run(task: Task) -> None:
    """Each window with the tiny decoder, then with the codec."""
    size = SIZES[task.size]
    pipe = pipeline(size, task.device, NARROW)
    tiny = tiny_decoder(size, task.device, NARROW)
    words = prompt(size.prompt)
    for name, decoder in (("tiny decoder", tiny), ("codec", None)):
        pipe.tiny_decoder = decoder
        for window in size.windows:
            pipe.transformer.register_to_config(window_frames=window)
            asked = pipe.request(words, "1", seed=0)
            what = f"window {window}, {name}"
            with task.record.trying(what):
                for _ in pipe.play(asked):  # the first takes workspaces
                    break
                with peak_memory(task.device) as memory:
                    for _ in pipe.play(asked):
                        synchronise(task.device)
                cache = pipe.transformer.new_cache(1, size.latents, *size.grid, reach=Reach(window=window))
                held = sum(buffer.nbytes for buffer in (*cache.keys, *cache.values))
                del cache
                task.record(what, peak_bytes=memory[0].peak, before_bytes=memory[0].before, cache_bytes=held,
                            by=memory[0].by)  # fmt: skip
