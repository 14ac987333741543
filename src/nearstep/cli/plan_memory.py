"""``nearstep plan-memory``: whether a run fits, before anything is loaded, and which option to turn if it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nearstep.cli.arguments import parsed
from nearstep.cli.memory_options import gib, room_of, text_length_of
from nearstep.cli.text import table
from nearstep.cli.train import configured
from nearstep.errors import NearstepError
from nearstep.files import check_writable, write_json
from nearstep.models.folder import CONFIG, read_json
from nearstep.models.schema import check_component
from nearstep.ranges import check_number

if TYPE_CHECKING:
    from nearstep.cost.advice import Trial
    from nearstep.cost.fake_step import Config
    from nearstep.cost.sizes import Sizes
    from nearstep.precision import Products
    from nearstep.train.lessons import Lesson

_TERA = 1e12
_WAN = "wan."

Size = Literal["1.3B", "14B"]


@dataclass(frozen=True, kw_only=True)
class PlanMemory:
    """Predict memory and time of a recipe from shapes. All other options are the recipe's, as in nearstep train."""

    gpus: int = 1
    """Accelerators, one process each."""
    memory: str = "80G"
    """Memory of each accelerator, in GiB."""
    rate: float = 316.0
    """TFLOP/s in bfloat16: by default 40 % of the 790 that an H200 reaches in large matrix products."""
    rate_float32: float = 27.0
    """TFLOP/s in float32: by default 40 % of the 67 on an H100's data sheet."""
    rate_tf32: float = 198.0
    """TFLOP/s in TensorFloat-32: by default 40 % of the 495 on an H100's data sheet."""
    size: Size | None = None
    """Wan2.1's size of the student (and of a causal run's network) instead of the model folder's."""
    teacher_size: Size | None = None
    """Wan2.1's size of teacher and assistant; by default the student's."""
    json: Path | None = None
    """Write everything here, too."""


def run(arguments: Sequence[str]) -> None:
    """Print the tables, and what is tried until the run fits; of a clip, what it takes."""
    if arguments and arguments[0] == "generate":
        from nearstep.cli import plan_clip

        return plan_clip.run(arguments[1:])
    if not arguments or arguments[0].startswith("-"):
        parsed(PlanMemory, "nearstep plan-memory generate|RECIPE", ["--help"], flags=())
    name, *rest = arguments
    prog = f"nearstep plan-memory {name}"
    options, unknown = parsed(PlanMemory, prog, rest, flags=(), others=True)
    config, room = configured(name, unknown, prog), room_of(options.memory)
    for option in ("rate", "rate_float32", "rate_tf32"):
        check_number(f"--{option.replace('_', '-')}", getattr(options, option), above=0)
    if options.json:
        check_writable(options.json)

    from nearstep.cost.advice import trials
    from nearstep.cost.fake_step import Config
    from nearstep.cost.memory import SHARE

    if not isinstance(config, Config):
        raise NearstepError(f"{name} is no distillation and no causal run, which are what this can plan")
    _check(config, options.gpus)
    sizes, origin = sizes_of(config, options, wan=name.startswith(_WAN))
    print(_header(name, config, options, sizes, origin))
    tried: list[Trial] = []
    for trial in trials(config, sizes, options.gpus, room * SHARE):
        tried.append(trial)
        print(_first(trial, options) if len(tried) == 1 else _next(trial), flush=True)
    print("\n" + _verdict(name, tried, unknown, room))
    if options.json:
        write_json(options.json, [_plain(trial, options, room) for trial in tried])


def _check(config: Config, gpus: int) -> None:
    import torch

    from nearstep.train.lessons import batches
    from nearstep.train.parallel import Ranks

    if gpus < 1:
        raise NearstepError(f"--gpus {gpus}: give at least 1")
    for batch in batches(config.batch, config.lessons):
        share = len(Ranks(0, gpus, torch.device("cpu")).share(batch))
        if config.micro and share % config.micro:
            raise NearstepError(f"micro={config.micro} does not divide the {share} clips of a process")


def sizes_of(config: Config, options: PlanMemory, *, wan: bool) -> tuple[Sizes, str]:
    """Shapes of a run: from its folders' JSON where they are there, else Wan2.1's; and where they are from.

    Raises:
        NearstepError: if the folder is not there and nothing says which size to take.
    """
    from nearstep.cost.sizes import UMT5_XXL, Sizes
    from nearstep.models.wan import SIZES

    model = config.model
    here = (model / config.network / CONFIG).exists() and options.size is None
    if not here and not wan and options.size is None:
        raise NearstepError(f"there is no {model / config.network} yet; name a folder with --model, or a --size")
    student = _network(model / config.network / CONFIG) if here else SIZES[options.size or "1.3B"]
    teacher = SIZES[options.teacher_size] if options.teacher_size else student
    path = model / config.teacher / CONFIG
    if here and options.teacher_size is None and path.exists():
        teacher = _network(path)
    codec = _config(model / "vae")
    clip = _clip(config, codec)
    sizes = Sizes(
        student=student,
        teacher=teacher,
        clip=clip,
        lessons=tuple(_lesson(lesson, clip) for lesson in config.lessons),
        text_length=text_length_of(model / "tokenizer" / "tokenizer_config.json"),
        codec=codec,
        encoder=_config(model / "text_encoder") or UMT5_XXL,
    )
    return sizes, str(model) if here else f"Wan2.1 {options.size or '1.3B'}, as {model} is not read"


def _network(path: Path) -> Mapping[str, Any]:
    config = read_json(path)
    check_component("transformer", config, path)
    return config


def _config(folder: Path) -> Mapping[str, Any]:
    if not (folder / CONFIG).exists():
        return {}
    config = read_json(folder / CONFIG)
    check_component(folder.name, config, folder / CONFIG)
    return config


def _clip(config: Config, codec: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """[F, C, H, W]: the prompts' sizes, the prepared latents', or what the recipe's settings say."""
    from nearstep.data.prompts import PromptsConfig
    from nearstep.data.shards import read_index
    from nearstep.shapes import latent_frames, spatial_stride

    latents = config.latents
    if isinstance(latents, PromptsConfig):
        return latents.frames, latents.channels, latents.height, latents.width
    if index := read_index(latents.folder):
        return index.shape
    settings, stride = config.settings, spatial_stride(codec) if codec else 8
    frames = latent_frames(latents.frames or settings.num_frames)
    return frames, codec.get("z_dim", 16), settings.height // stride, settings.width // stride


def _lesson(lesson: Lesson, clip: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """[F, C, H, W]: the prepared latents', or as many frames of the usual size as will be made."""
    from nearstep.data.shards import read_index
    from nearstep.shapes import latent_frames

    latents = lesson.latents
    if index := read_index(latents.folder):
        return index.shape
    pixel_frames = latents.frames or (latents.world.frames if latents.world else None)
    return (latent_frames(pixel_frames), *clip[1:]) if pixel_frames else clip


def _header(name: str, config: Config, options: PlanMemory, sizes: Sizes, origin: str) -> str:
    from nearstep.cost.sizes import count_network

    share = config.batch // options.gpus
    networks = [count_network(each).all / 1e9 for each in (sizes.student, sizes.teacher)]
    return (
        f"{name} on {options.gpus} x {options.memory}: {share} clips a process, {config.micro or share} at a time\n"
        f"{origin}: student of {networks[0]:.3g} G parameters, teacher of {networks[1]:.3g} G, latents "
        f"{'x'.join(map(str, sizes.clip))}, {sizes.text_length} text tokens"
    )


def _first(trial: Trial, options: PlanMemory) -> str:
    estimate = trial.estimate
    resident = [("held all the time", "GiB"), *((name, gib(size)) for name, size in estimate.resident.items() if size)]
    resident.append(("together", gib(sum(estimate.resident.values()))))
    phases = [("at most in a phase, with what is held", "GiB")]
    phases += [(name, gib(size)) for name, size in estimate.phases.items()]
    seconds = _seconds(trial, options)
    times = [("an update of a process", "TFLOP", "seconds")]
    times += [(name, _short(estimate.flops[name].all / _TERA), _short(spent)) for name, spent in seconds.items()]
    total = sum(flops.all for flops in estimate.flops.values()) / _TERA
    times.append(("together", _short(total), _short(sum(seconds.values()))))
    assumed = (
        f"seconds at {options.rate:g} TFLOP/s in bfloat16, {options.rate_tf32:g} in TF32 and {options.rate_float32:g} "
        "in float32, all assumed (--rate, --rate-tf32, --rate-float32): matrix products and attention alone, a floor "
        "and not a promise"
    )
    return "\n".join(["", *table(resident), "", *table(phases), "", *table(times), assumed, "", _next(trial)])


def _short(value: float) -> str:
    """To a tenth, or to two digits where that would leave nothing of a small network's."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _next(trial: Trial) -> str:
    what = " ".join(trial.words) or "as it is"
    return f"{gib(trial.estimate.peak):>6} GiB ({trial.estimate.worst}) on {trial.processes}: {what}"


def _verdict(name: str, tried: Sequence[Trial], words: Sequence[str], room: float) -> str:
    from nearstep.cost.memory import SHARE

    last = tried[-1]
    usable = f"{gib(room * SHARE)} GiB ({SHARE:.0%} of {gib(room)}; the rest is CUDA's and the allocator's, unmeasured)"
    if last.estimate.peak > room * SHARE:
        least = min(tried, key=lambda trial: trial.estimate.peak)
        return f"does not fit in {usable}: {gib(least.estimate.peak)} GiB is the least; use larger accelerators"
    if len(tried) == 1:
        return f"fits in {usable}"
    command = " ".join([f"train {name}", *words, *last.words])
    launch = "nearstep" if last.processes == 1 else f"torchrun --nproc-per-node {last.processes} -m nearstep.cli.main"
    return f"does not fit in {usable} as it is; this does:\n  {launch} {command}"


def _seconds(trial: Trial, options: PlanMemory) -> dict[str, float]:
    rates: dict[Products, float] = {
        "bfloat16": options.rate * _TERA,
        "TF32": options.rate_tf32 * _TERA,
        "float32": options.rate_float32 * _TERA,
    }
    return {name: flops.seconds(rates) for name, flops in trial.estimate.flops.items()}


def _plain(trial: Trial, options: PlanMemory, room: float) -> dict[str, Any]:
    from nearstep.cost.memory import SHARE

    estimate = trial.estimate
    return {
        "options": trial.words,
        "gpus": trial.processes,
        "fits": estimate.peak <= room * SHARE,
        "peak_bytes": estimate.peak,
        "peak_phase": estimate.worst,
        "resident_bytes": dict(estimate.resident),
        "phase_bytes": dict(estimate.phases),
        "flops": {name: flops.all for name, flops in estimate.flops.items()},
        "seconds": _seconds(trial, options),
    }
