"""Where a module runs, when an offloading hook and not its weights decides it.

diffusers and accelerate move weights by hooks on ``forward``: a whole model at a time (``enable_model_cpu_offload``) or
each layer alone (``enable_sequential_cpu_offload``). Whoever calls a part of a model, or asks where it is, asks here.
"""

from __future__ import annotations

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import nn


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
