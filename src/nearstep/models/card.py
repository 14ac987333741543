"""What a model folder says about itself: model_index.json, and the model card that a hub shows (README.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearstep.json_files import NUMBER, OBJECT, check_fields, count, map_of, object_of, optional, read_object
from nearstep.version import __version__

CARD = "README.md"
LIBRARIES = {
    "vae": ("diffusers", "AutoencoderKLWan"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
"""Component of a folder -> the library and class that loads it."""

_PLANS = ("1", "4,1x", "2", "4")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card cannot find in the folder."""

    title: str = "A video model in nearstep's layout"
    licence: str = "apache-2.0"
    """As the hub names it; the weights', not the code's."""
    base_model: str | None = None
    """Hub id of the model that this one was made from."""
    recipe: Mapping[str, Any] | None = None
    """How it was trained or converted."""
    results: Path | None = None
    """A JSON file of `nearstep evaluate`."""


def model_index(networks: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The model_index.json of a folder in our layout."""
    return {
        "_class_name": "CausalVideoPipeline",
        "_nearstep_version": __version__,
        **{name: ("nearstep", "VideoTransformer") for name in networks},
        **LIBRARIES,
        "nearstep": dict(settings),
    }


def write_card(folder: Path, card: Card, *, config: Mapping[str, Any], plan: str | None, library: str) -> None:
    """README.md in a model folder.

    Args:
        folder: the model's.
        card: what the folder does not say.
        config: of the network.
        plan: the student's own; None for a bidirectional network.
        library: ``nearstep`` or ``diffusers``, whose pipeline the index names, or ``wan`` for a network alone.
    """
    (folder / CARD).write_text(model_card(card, config=config, plan=plan, library=library), encoding="utf-8")


def model_card(card: Card, *, config: Mapping[str, Any], plan: str | None, library: str) -> str:
    """The card's text: YAML for the hub, then what the model is, how to run it, how it was made, and its licence."""
    shown = "nearstep" if library == "wan" else library
    front = {"license": card.licence, "library_name": shown, "pipeline_tag": "text-to-video"}
    if card.base_model:
        front["base_model"] = card.base_model
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---"]),
        f"# {card.title}",
        _what(config),
        _use(config, plan, library),
    ]
    if card.recipe:
        parts.append(f"## Recipe\n\n```json\n{json.dumps(dict(card.recipe), indent=2, default=str)}\n```")
    if card.results:
        parts.append(f"## Results\n\n{results_table(card.results)}")
    terms = f" Made from {card.base_model}, whose terms hold too." if card.base_model else ""
    parts.append(f"## Licence\n\nThe weights: {card.licence}.{terms}")
    return "\n\n".join(parts) + "\n"


def _what(config: Mapping[str, Any]) -> str:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    size = f"Wan2.1's architecture, {config['num_layers']} layers {width} wide"
    if (chunk := config.get("chunk_frames")) is None:
        return f"A bidirectional text-to-video network: {size}."
    window = config.get("window_frames")
    seen = "all earlier frames" if window is None else f"the newest {window} frames"
    sink = f" and the first {config['sink_frames']}" if window is not None and config.get("sink_frames") else ""
    return f"A causal text-to-video network: {size}. It makes {chunk} latent frames at a time and sees {seen}{sink}."


def _use(config: Mapping[str, Any], plan: str | None, library: str) -> str:
    text = f"## Use\n\n```python\n{_code(config, plan, library)}\n```"
    if plan and library == "nearstep":
        known = ", ".join(f"`{name}`" for name in dict.fromkeys([plan, *_PLANS]))
        text += (
            f"\n\nA plan is the steps of each chunk (`4,1x`: 4 for the first, then 1). Its own, and others: {known}."
        )
    return text


def _code(config: Mapping[str, Any], plan: str | None, library: str) -> str:
    if library == "diffusers":
        return 'from diffusers import WanPipeline\n\npipe = WanPipeline.from_pretrained("PATH")'
    if library == "wan":  # a network alone
        if (chunk := config.get("chunk_frames")) is None:
            return "# a network alone; give it codec and text encoder: nearstep convert PATH FOLDER --base MODEL"
        student = f'Student(path="PATH", chunk_frames={chunk})'
        names, load = "CausalVideoPipeline, Student", f'"MODEL", student={student}'
    else:
        names, load = "CausalVideoPipeline", '"PATH"'
    call = f'"a prompt", plan="{plan}", seed=7' if plan else '"a prompt", seed=7'
    return (
        f"from nearstep import {names}\n\n"
        f"pipe = CausalVideoPipeline.from_pretrained({load})\n"
        f"clip = pipe({call}).frames[0]"
    )


def results_table(file: Path) -> str:
    """The plans of a results file as a table.

    Raises:
        NearstepError: if it holds no results.
    """
    content = read_object(file, "name a file of nearstep evaluate")
    check_fields(content, {"plans": map_of(OBJECT)}, file)
    value = object_of({"value": NUMBER})
    rows = []
    for plan, found in content["plans"].items():
        check_fields(
            found, {"calls": optional(count(least=0)), **dict.fromkeys(_MEASURES, value)}, f"{file}, plan {plan}"
        )
        values = " | ".join(f"{100 * found[key]['value']:.1f}" for key in _MEASURES)
        rows.append(f"| {plan} | {'-' if found['calls'] is None else found['calls']} | {values}")
    head = f"| plan | calls | {' | '.join(_MEASURES)} |"
    return "\n".join([head, "|---" * (2 + len(_MEASURES)) + "|", *(f"{row} |" for row in rows)])


_MEASURES = ("total", "quality", "semantic")
