"""Arguments of other pipelines that ours do not have: refused by name, with the nearest one and why, never ignored."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from nearstep.errors import NearstepError


class UnknownArgumentError(NearstepError, TypeError):
    """An argument that a function does not take: one line, and a TypeError as Python's own would be."""


P = ParamSpec("P")
R = TypeVar("R")

CALL = {
    "attention_kwargs": "a LoRA's strength is from_pretrained(lora='FILE:0.8'); nothing else is read from it",
    "guidance_scale_2": "it belongs to Wan2.2's second network",
    "callback": "it is callback_on_step_end now, in diffusers too",
    "callback_steps": "callback_on_step_end is called after every step",
    "eta": "the noise between steps is the student's own",
    "timesteps": "times follow from the plan and the scheduler's shift",
    "sigmas": "times follow from the plan and the scheduler's shift",
    "image": "pipe.open(prompt, image=...) goes on from a picture",
    "video": "pipe.open(prompt, video=...) goes on from a clip",
}
LOADING_NAMES = {
    "device_map": "device= and text_device= say where its parts go",
    "use_safetensors": "nothing but safetensors is loaded",
    "low_cpu_mem_usage": "weights are never held twice",
    "trust_remote_code": "no code of a model folder is run",
    "custom_pipeline": "no code of a model folder is run",
    "subfolder": "transformer= names the network's sub-folder",
    "force_download": "files of the hub are checked by their hashes; delete them from the cache",
    "local_dir": "cache_dir= says where files of the hub are kept",
    "quantization_config": "fp8= keeps linear layers in eight bits; other kinds there are none",
    "use_auth_token": "it is token= now, in diffusers too",
    "vae": "a component is put in afterwards: pipe.vae = ...",
    "text_encoder": "a component is put in afterwards; prompt_embeds do without one",
    "scheduler": "its shift is all that is used of it",
}
"""Argument of diffusers -> what does its work here, or why nothing does."""


def naming(reasons: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse arguments that a function does not take in one line, before it is called."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

        @functools.wraps(function)
        def checked(*arguments: P.args, **named: P.kwargs) -> R:
            for name in named:
                if name not in known:
                    raise UnknownArgumentError(_refusal(function.__name__, name, known, reasons))
            return function(*arguments, **named)

        return checked

    return decorate


def _refusal(function: str, name: str, known: list[str], reasons: Mapping[str, str]) -> str:
    called = "the pipeline" if function == "__call__" else function
    refused = f"{called} got an unexpected keyword argument {name!r}"
    if name in reasons:
        return f"{refused}: {reasons[name]}"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? It" if near else "it"
    return f"{refused}; {hint} takes {', '.join(known)}"
