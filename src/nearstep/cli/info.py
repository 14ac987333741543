"""``nearstep info``: what a model is and what its plans cost, from its files alone; no weights are loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

from nearstep.cli.arguments import parsed
from nearstep.cli.options import NO_STUDENT, FlatStudent, ModelArgument
from nearstep.cli.text import short, table
from nearstep.errors import NearstepError
from nearstep.models.configs import Configs, ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder, shift_of
from nearstep.models.student import Student

_EXAMPLE, _EXAMPLES, _EXAMPLES_SEED = "for example", 3, 2
_CLOSED = 5000
"""Words of the largest vocabulary that is shown word by word."""
PLANS = ("1", "4,1x", "2", "4,2x", "4")  # those of the paper: 1, 1*, 2, 2*, 4


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show a model's components, sizes and plans."""

    model: ModelArgument = EMBEDDED
    words: bool = False
    """Show what its prompts may say, for a model of a closed vocabulary."""
    json: bool = False
    """Print JSON."""
    student: FlatStudent = NO_STUDENT
    """A student in a weights file."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and print."""
    options = parsed(Info, "nearstep info", arguments)
    folder = ModelFolder.open(options.model)
    if options.words:
        words = words_of(folder)
        print(json.dumps(words, indent=2) if options.json else _listed(words))
        return
    facts = describe(folder, options.student.chosen)
    print(json.dumps(facts, indent=2) if options.json else _text(facts))


def describe(folder: ModelFolder, student: Student | None = None) -> dict[str, Any]:
    """Everything ``nearstep info`` says, as data; a student's file takes the place of ``transformer``."""
    networks = ["transformer"] if student else folder.networks()
    configs = {name: ModelConfigs.open(folder, name, student) for name in networks}
    components = {name: _component(folder, name) for name in [*networks, "text_encoder", "vae"]}
    if student:
        components["transformer"] = _student(student)
    return {
        "folder": str(folder.path),
        "components": components,
        "settings": asdict(configs["transformer"].settings if student else folder.settings),
        "networks": {name: _network(has) for name, has in configs.items()},
    }


def words_of(folder: ModelFolder) -> dict[str, list[str]]:
    """What prompts may say -> the phrases for it; of a model that is of none of the worlds here, its words alone.

    Raises:
        NearstepError: if the model knows more than whole words, and so any prompt.
    """
    from nearstep.models.prompts import vocabulary
    from nearstep.recipes.worlds import WORLDS

    known = vocabulary(folder)
    if known is None:
        raise NearstepError(f"{folder.path}/tokenizer has no tokenizer.json, which would say the words; try a prompt")
    for world in WORLDS.values():
        if set(world.vocabulary()) == set(known):
            told = {name: [*phrases] for name, phrases in world.words().items()}
            return told | {_EXAMPLE: world.prompts(_EXAMPLES_SEED, range(_EXAMPLES))}
    if len(known) > _CLOSED:
        raise NearstepError(f"{folder.path} reads any prompt: its tokenizer knows {len(known)} pieces of words")
    return {"words": known}


def _listed(words: dict[str, list[str]]) -> str:
    width = max(len(name) for name in words) + 2
    lines = []
    for name, phrases in words.items():
        listed = ("; " if name == _EXAMPLE else ", ").join(phrases)
        lines.append(fill(listed, 100, initial_indent=name.ljust(width), subsequent_indent=" " * width))
    return "\n".join(lines)


def _component(folder: ModelFolder, name: str) -> dict[str, Any]:
    config, tensors = folder.config(name), folder.tensors(name).values()
    return {
        "class": config.get("_class_name") or config["model_type"],
        "parameters": sum(_count(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.bytes for tensor in tensors),
        "dtypes": [dtype for dtype, _ in Counter(tensor.dtype for tensor in tensors).most_common()],
    }


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _student(student: Student) -> dict[str, Any]:
    from nearstep.models.networks import open_network

    tensors = [*open_network(Path(student.path), student.role, usual=student.usual_role).values()]
    return {
        "class": Path(student.path).name,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "dtypes": [str(kind).removeprefix("torch.") for kind, _ in Counter(t.dtype for t in tensors).most_common()],
    }


def _network(has: Configs) -> dict[str, Any]:
    from nearstep.stream.request import plan_clip

    config = has.transformer
    causal = config.get("chunk_frames") is not None
    clips = [plan_clip(has, plan=plan) for plan in (PLANS if causal else [has.settings.teacher_plan])]
    shape = clips[0].shape
    _, rows, columns = config["patch_size"]
    return {
        "causal": causal,
        "latents": [shape.frames, *shape.frame],
        "chunks": list(clips[0].plan.lengths),
        "tokens_per_frame": shape.height // rows * (shape.width // columns),
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "layers": config["num_layers"],
        "shift": shift_of(has.scheduler),
        "plans": {
            str(clip.plan): {"steps": clip.plan.steps, "commits": clip.plan.commits, "calls": clip.plan.calls}
            for clip in clips
        },
    }


def _text(facts: dict[str, Any]) -> str:
    rows = [("component", "class", "parameters", "size", "type")]
    for name, part in facts["components"].items():
        size = f"{short(part['bytes'])}B"
        rows.append((name, part["class"], short(part["parameters"]), size, ", ".join(part["dtypes"])))
    lines = [facts["folder"], "", *table(rows), ""]
    settings = facts["settings"]
    lines.append("clip      {num_frames} frames of {width}x{height} at {fps:g} fps".format(**settings))
    for name, network in facts["networks"].items():
        lines += ["", *_network_text(name, network)]
    return "\n".join(lines)


def _network_text(name: str, network: dict[str, Any]) -> list[str]:
    frames, *frame = network["latents"]
    chunks = " + ".join(f"{len([*same])} x {length}" for length, same in groupby(network["chunks"]))
    kind = f"causal, in chunks of {chunks} latent frames" if network["causal"] else "bidirectional, all frames at once"
    lines = [
        f"{name}: {kind}",
        f"  latents {frames} frames of {'x'.join(map(str, frame))}, {network['tokens_per_frame']} tokens each; "
        f"width {network['width']}, {network['layers']} layers; shift {network['shift']:g}",
    ]
    rows = [("plan", "steps", "commits", "calls")]
    rows += [(plan, *(str(cost[key]) for key in rows[0][1:])) for plan, cost in network["plans"].items()]
    return lines + [f"  {line}" for line in table(rows)]
