"""Everything that wants an accelerator, in one run: numerics, a training step, and inference by stage; JSON out.

    python benchmarks/gpu.py                       # on a GPU, at Wan2.1-1.3B's shapes with random weights
    python benchmarks/gpu.py --only infer --skip text --json infer.json
    python benchmarks/gpu.py --size tiny           # anywhere, in seconds: that the script itself works

numerics  the network and the decoder against the CPU in float32 (on a CPU: float64), chunk by chunk against one masked
          call, fused commits against separate ones, bfloat16 against float32; TensorFloat-32 is off. A check that
          fails is named, and the exit code is 1.
train     one update of wan.distill for each n, with few clips: seconds by part, peak memory, FLOPs as torch counts them
          (those of recomputed blocks included) and their share of the floor.
infer     nearstep bench's measurement of plans 4, 4,2x, 4,1x and 1, as it is and with blocks compiled, all in bfloat16;
          the tiny decoder makes the pixels and the codec decodes beside it. The text encoder has UMT5-xxl's size unless
          text is skipped.

Time, memory and FLOPs do not depend on what the weights are. The floor is measured here: the fastest product of square
matrices in the same dtype (cost/clock.py).
"""

from __future__ import annotations

import gc
import json as jsons
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel
from transformers.utils.logging import disable_progress_bar

from nearstep.cost.bench import floors, measure
from nearstep.cost.clock import Clock, Span, machine, matmul_floor, peak_memory
from nearstep.cost.flops import counter
from nearstep.data.prompts import PromptsConfig
from nearstep.files import replacing
from nearstep.models.folder import Settings
from nearstep.models.wan import SIZES as WAN
from nearstep.nets.codec import VideoCodec
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import teacher_forcing
from nearstep.nets.text import PromptEncoder, build_tokenizer
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.recipes import wan
from nearstep.shapes import latent_frames
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import step_plan
from nearstep.train.export import export_model
from nearstep.train.loop import LoopConfig
from nearstep.train.parallel import ranks

Section = Literal["numerics", "train", "infer"]
WORDS = "a small red ball slides left on the snow and stops".split()
PARTS = (
    "rollouts",
    "student: gradients at the sample, backward",
    "student: adversarial gradient",
    "assistant",
    "discriminator",
    "optimizers",
)
"""What an update is made of; each without those inside it."""
ELSE = "all else"


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is built."""

    network: Mapping[str, Any]
    codec: Mapping[str, Any]
    text: Mapping[str, Any]
    """UMT5's encoder, for inference."""
    tiny: Mapping[str, Any]
    chunk: int
    frames: int
    """Pixel frames."""
    height: int
    width: int
    prompt: int
    """Words of the prompt."""
    small: tuple[int, int]
    """Latent rows and columns of the numerics, which a CPU computes as well."""
    ratio: int


SIZES = {
    "1.3B": Size(
        network=WAN["1.3B"], codec={}, tiny={}, chunk=3, frames=81, height=480, width=832, prompt=120, small=(16, 26),
        text=dict(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64), ratio=5,
    ),
    "tiny": Size(
        network=dict(num_attention_heads=2, attention_head_dim=24, text_dim=24, freq_dim=32, ffn_dim=40, num_layers=2),
        codec=dict(base_dim=4), tiny=dict(widths=(8, 8, 8, 8)), chunk=2, frames=13, height=32, width=32, prompt=8,
        text=dict(vocab_size=32, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_heads=3), small=(4, 6), ratio=1,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["1.3B", "tiny"] = "1.3B"
    only: tuple[Section, ...] = ("numerics", "train", "infer")
    skip: tuple[Literal["text", "compile"], ...] = ()
    """text: keep a small text encoder in the place of UMT5-xxl's size. compile: measure blocks as they are alone."""
    plans: tuple[str, ...] = ("4", "4,2x", "4,1x", "1")
    repeats: int = 5
    """Timed clips of each plan and way to commit."""
    batch: int = 1
    """Clips of a training update."""
    micro: int = 1
    """Clips at a time."""
    device: str | None = None
    """A GPU, if there is one."""
    json: Path = Path("gpu.json")


def main(options: Options) -> int:
    """Measure, write, and say where; 1 where a numerical check failed."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and options.size != "tiny":
        print("there is no GPU here: --size tiny tries this script on a CPU", file=sys.stderr)
        return 2
    size = SIZES[options.size]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    command = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    found: dict[str, Any] = {"machine": machine(device), "size": options.size, "command": command}
    disable_progress_bar()
    sections: dict[str, Callable[[Path], Any]] = {
        "numerics": lambda _: numerics(size, device),
        "train": lambda folder: train(size, options, folder),
        "infer": lambda folder: infer(size, options, folder, device),
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        if set(options.only) & {"train", "infer"}:
            write_model(size, model, device, teacher="train" in options.only)
        for name in options.only:
            print(f"{name} ...", flush=True)
            found[name] = _within_memory(sections[name], model)
            # What was measured stays, whatever becomes of the next section.
            with replacing(options.json) as part:
                part.write_text(jsons.dumps(found, indent=2) + "\n")
    print("\n".join(told(found)))
    print(options.json)
    return int(any(not check["passed"] for check in found.get("numerics", {}).get("checks", [])))


def _within_memory(section: Callable[[Path], Any], model: Path) -> Any:
    try:
        return section(model)
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {str(error).splitlines()[0]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_model(size: Size, folder: Path, device: torch.device, *, teacher: bool) -> None:
    """A whole model folder of random weights, its text encoder as wide as the network reads and of one small layer."""
    torch.manual_seed(0)
    width = size.text["d_model"]
    small = UMT5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=8, num_layers=1, num_heads=1, dropout_rate=0.0)
    with device:
        networks = {"transformer": VideoTransformer(**size.network, chunk_frames=size.chunk)}
        if teacher:
            networks["teacher"] = VideoTransformer(**size.network)
        encoder = PromptEncoder(build_tokenizer(WORDS, length=512), UMT5EncoderModel(small))
        codec = VideoCodec(AutoencoderKLWan(**size.codec))
    settings = Settings(num_frames=size.frames, height=size.height, width=size.width, fps=16)
    export_model(folder, networks=networks, text=encoder, codec=codec, shift=5.0, settings=settings)


# --- numerics ------------------------------------------------------------------------------------------------------


def numerics(size: Size, device: torch.device) -> dict[str, Any]:
    """Every check: relative error (of the norms), what is allowed, and whether it passed."""
    exact = torch.float64 if device.type == "cpu" else torch.float32
    torch.manual_seed(0)
    net = VideoTransformer(**size.network, chunk_frames=size.chunk).eval().requires_grad_(False)
    net.enable_gradient_checkpointing()  # 30 layers of float32 would be more than most CPUs hold
    codec = VideoCodec(AutoencoderKLWan(**size.codec)).eval().requires_grad_(False)
    lengths = (size.chunk,) * 3
    clean, x = torch.randn(2, 1, sum(lengths), net.config["in_channels"], *size.small)
    text, t = torch.randn(1, 16, net.config["text_dim"]), torch.rand(1, sum(lengths))

    def velocity(to: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """One masked call on [clean | noisy], as teacher forcing makes it, and a gradient through it."""
        noisy = x.to(to, dtype).requires_grad_()
        both = torch.cat([clean.to(to, dtype), noisy], dim=1)
        times = torch.cat([torch.zeros_like(t), t], dim=1).to(to)
        made = placed(net, to, dtype)(both, times, text.to(to, dtype), visibility=teacher_forcing(lengths))
        made = made[:, x.shape[1] :]
        (gradient,) = torch.autograd.grad(made.double().square().mean(), noisy)
        return made.detach(), gradient

    def decoded(to: torch.device | str, dtype: torch.dtype) -> Tensor:
        with torch.no_grad():
            # Unclamped, as random weights leave the picture's range.
            return codec.to(to, dtype).stream().decode(x[:, :2].to(to, dtype), clamp=False)

    reference, steep = velocity("cpu", exact)
    pictures = decoded("cpu", exact)
    made, gradient = velocity(device, torch.float32)
    shown = decoded(device, torch.float32)
    cached, fused = by_chunks(net, *(part.to(device) for part in (clean, x, t, text)), lengths)
    narrow, narrow_gradient = velocity(device, torch.bfloat16)
    checks = [
        check("network, float32, against the CPU", made, reference, 1e-4),
        check("gradient, float32, against the CPU", gradient, steep, 1e-4),
        check("chunk by chunk against one masked call, float32", cached, made, 3e-5),
        check("fused commits against separate ones, float32", fused, cached, 3e-5),
        check("decoder, float32, against the CPU", shown, pictures, 1e-4),
        check("network, bfloat16, against float32", narrow, made, 0.1),
        check("gradient, bfloat16, against float32", narrow_gradient, gradient, 0.2),
        check("decoder, bfloat16, against float32", decoded(device, torch.bfloat16), shown, 0.1),
    ]
    return {"reference": str(exact).removeprefix("torch."), "checks": checks}


@torch.no_grad()
def by_chunks(
    net: VideoTransformer, clean: Tensor, x: Tensor, t: Tensor, text: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Velocities of x through a cache of clean chunks: with commits of their own, and fused."""
    denoiser = TextDenoiser(net, text)
    made: dict[bool, list[Tensor]] = {False: [], True: []}
    for fused, parts in made.items():
        cache, before = denoiser.new_cache(1, sum(lengths), *x.shape[-2:]), None
        for chunk, times, done in zip(x.split(lengths, 1), t.split(lengths, 1), clean.split(lengths, 1), strict=True):
            start = cache.end + (0 if before is None else before.shape[1])
            if before is not None and fused:
                parts.append(denoiser.commit_then(before, chunk, times, cache=cache, start=start))
            else:
                if before is not None:
                    denoiser.commit(before, cache=cache, start=cache.end)
                parts.append(denoiser(chunk, times, cache=cache, start=start))
            before = done
    return torch.cat(made[False], dim=1), torch.cat(made[True], dim=1)


def placed(net: VideoTransformer, to: torch.device | str, dtype: torch.dtype) -> VideoTransformer:
    """The network there, in this dtype but for what ``from_pretrained`` keeps in float32."""
    wide = net._keep_in_fp32_modules or []
    for name, parameter in net.named_parameters():
        kept = dtype.itemsize < torch.float32.itemsize and set(name.split(".")) & set(wide)
        parameter.data = parameter.data.to(to, torch.float32 if kept else dtype)
    return net


def check(name: str, made: Tensor, reference: Tensor, allowed: float) -> dict[str, Any]:
    """The relative error, and whether it is allowed; one that is no number is not."""
    expected = reference.double().cpu()
    error = ((made.double().cpu() - expected).norm() / expected.norm()).item()
    return {"name": name, "error": error, "allowed": allowed, "passed": error <= allowed}


# --- training ------------------------------------------------------------------------------------------------------


def train(size: Size, options: Options, model: Path) -> dict[str, Any]:
    """An update of wan.distill for each n: first counted, which also warms up, then timed."""
    folder = model.parent
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(prompt(size.prompt - index) for index in range(4)) + "\n")
    frames, stride = latent_frames(size.frames), 8
    recipe = wan.distill()
    config = replace(
        recipe, loop=LoopConfig(folder=folder / "run", steps=recipe.loop.steps), model=model,
        latents=PromptsConfig(files=(prompts,), frames=frames, channels=16, height=size.height // stride,
                              width=size.width // stride),
        text_cache=folder / "text", batch=options.batch, micro=options.micro, chunk_frames=size.chunk, warmup=0,
        adversary_delay=0, ratio=size.ratio,
    )  # fmt: skip
    device = ranks().device
    clock = Clock(device)
    floor = matmul_floor(torch.bfloat16, device)
    with peak_memory(device) as held:
        stage = DistillStage(config)
    for owner, method, part in timed_methods(stage):
        setattr(owner, method, clock.timed(part, getattr(owner, method)))
    updates = []
    for steps in config.step_counts:
        index = first_of(steps, config)
        with counter() as counted:
            stage.step(index)
        clock.take()
        with peak_memory(device) as memory, clock.stage(ELSE):
            stage.step(index)
        cost = update(clock.take(), counted.get_total_flops(), floor.rate)
        updates.append({"n": steps, **cost, "peak_bytes": memory[0].peak, "peak_by": memory[0].by})
    return {
        "recipe": "wan.distill", "batch": options.batch, "micro": options.micro, "ratio": config.ratio,
        "autocast": config.autocast, "checkpointing": config.checkpointing, "latent_frames": frames,
        "loading_peak_bytes": held[0].peak, "floor": floor._asdict(), "updates": updates,
    }  # fmt: skip


def timed_methods(stage: DistillStage) -> list[tuple[Any, str, str]]:
    """(object, its method, which part of an update that is)."""
    update, adversary = stage.update, stage.update.networks.adversary
    rollouts, student, adversarial, assistant, discriminator, optimizers = PARTS
    methods: list[tuple[Any, str, str]] = [
        (update, "rollout", rollouts), (update, "student", student), (update, "assistant", assistant),
        (update, "discriminator", discriminator), (adversary, "student_gradient", adversarial),
    ]  # fmt: skip
    return [*methods, *((optimizer, "apply", optimizers) for optimizer in stage.optimizers.values())]


def first_of(steps: int, config: DistillConfig) -> int:
    """The first step of the run that draws n = steps."""
    counts = config.step_counts
    return next(i for i in count() if step_plan(i, seed=config.seed, step_counts=counts, warmup=0).steps == steps)


def update(spans: Sequence[Span], flops: int, rate: float) -> dict[str, Any]:
    """Seconds by part, FLOPs, and the part of the time in which they would be done at this rate."""
    parts = {part: sum(span.seconds for span in spans if span.stage == part) for part in (*PARTS, ELSE)}
    seconds = sum(parts.values())
    return {"seconds": seconds, "parts": parts, "flops": flops, "share_of_floor": flops / rate / seconds}


def prompt(words: int) -> str:
    """A prompt of so many words."""
    return " ".join(WORDS[index % len(WORDS)] for index in range(words))


# --- inference -----------------------------------------------------------------------------------------------------


def infer(size: Size, options: Options, model: Path, device: torch.device) -> dict[str, Any]:
    """nearstep bench's measurement of every plan, as it is and compiled."""
    narrow = torch.bfloat16
    pipe = CausalVideoPipeline.from_pretrained(model, torch_dtype=narrow, vae_dtype=narrow, device=device)
    pipe.tiny_decoder = TinyDecoder(**size.tiny).to(narrow).eval().requires_grad_(False)
    if "text" not in options.skip:
        with device:
            default = torch.get_default_dtype()
            torch.set_default_dtype(narrow)
            try:
                encoder = UMT5EncoderModel(UMT5Config(**size.text, dropout_rate=0.0))
            finally:
                torch.set_default_dtype(default)
        pipe.register_modules(text_encoder=encoder.eval().requires_grad_(False))
    known = floors(pipe)
    made: dict[str, Any] = {
        "floor": {str(dtype).removeprefix("torch."): floor._asdict() for dtype, floor in known.items()},
        "dtype": str(narrow).removeprefix("torch."),
        "text": "small" if "text" in options.skip else dict(size.text),
    }
    for compiled in (False, True)[: 1 if "compile" in options.skip else 2]:
        if compiled:
            compile_blocks(pipe.transformer)
        requests = [pipe.request(prompt(size.prompt), plan, seed=0) for plan in options.plans]
        made["compiled" if compiled else "as it is"] = [
            measure(pipe, request, repeats=options.repeats, floors=known) for request in requests
        ]
    return made


# --- report --------------------------------------------------------------------------------------------------------


def told(found: Mapping[str, Any]) -> list[str]:
    """The main figures, a line each."""
    lines = [f"{found['machine']['name']}, torch {found['machine']['torch']}, size {found['size']}"]
    for section in ("numerics", "train", "infer"):
        if error := found.get(section, {}).get("error"):
            lines.append(f"{section}: {error}")
    for one in found.get("numerics", {}).get("checks", []):
        verdict = "ok" if one["passed"] else "FAILED"
        lines.append(f"{verdict:6} {one['name']}: {one['error']:.1e} of {one['allowed']:.0e} allowed")
    for one in found.get("train", {}).get("updates", []):
        lines.append(
            f"update of n={one['n']}: {one['seconds']:.3g} s, {one['peak_bytes'] / 2**30:.3g} GiB, "
            f"{one['flops'] / 1e12:.3g} TFLOP, {one['share_of_floor']:.1%} of the floor"
        )
    for kind in ("as it is", "compiled"):
        for one in found.get("infer", {}).get(kind, []):
            fps = ", ".join(f"{rate['name']} {rate['fps']:.3g}" for rate in one["fps"])
            lines.append(f"plan {one['plan']}, {kind}: {fps} FPS; {one['memory']['peak_bytes'] / 2**30:.3g} GiB")
    return lines


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
