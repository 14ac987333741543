"""Which device is meant, and where a module runs when an offloading hook and not its weights decides it.

diffusers and accelerate move weights by hooks on ``forward``: a whole model at a time (``enable_model_cpu_offload``) or
each layer alone (``enable_sequential_cpu_offload``). Whoever calls a part of a model, or asks where it is, asks here.
"""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import nn

from nearstep.errors import NearstepError

AUTO = "auto"
"""The fastest device that is here: CUDA, then MPS, then the CPU."""


def find_device(name: torch.device | str) -> torch.device:
    """The device that a name means, which is here; :data:`AUTO` is the fastest.

    Torch's meta device, where nothing is computed, is taken as an object and not by its name.

    Raises:
        NearstepError: for a device that is not here, or no device's name; it lists those that are.
    """
    if not isinstance(name, torch.device | str):
        raise NearstepError(f"a device is a name, such as {AUTO}, or torch's, not {name!r:.60}")
    if isinstance(name, torch.device) and name.type == "meta":
        return name
    here = _here()
    if name == AUTO:
        return torch.device(here[0])
    if str(name) not in (*here, *(f"{kind}:0" for kind in here)):
        missing = "" if str(name).partition(":")[0] not in ("cuda", "mps", "xpu") else f"; {_why_missing(str(name))}"
        raise NearstepError(f"device {str(name)[:60]!r} is not here: use {AUTO}, {' or '.join(here)}{missing}")
    return torch.device(name)


def _here() -> list[str]:
    """Devices that are here, the fastest first."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = ["cuda", *(f"cuda:{index}" for index in range(1, count))] if count else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _why_missing(name: str) -> str:
    if name.startswith("cuda"):
        if torch.version.cuda is None and torch.version.hip is None:
            return f"this torch ({torch.__version__}) is built without CUDA"
        return f"torch sees {torch.cuda.device_count()} CUDA devices"
    return f"this torch ({torch.__version__}) does not see one"


def device_of(module: nn.Module) -> torch.device:
    """Where the module's inputs belong, even while its weights wait elsewhere (on the CPU, or on meta)."""
    return get_module_execution_device(module)


def wake(module: nn.Module) -> None:
    """Bring an offloaded model to its device, as calling its ``forward`` would; nothing for one that is not offloaded.

    For those who call a part of it: the hook is on the whole.
    """
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
