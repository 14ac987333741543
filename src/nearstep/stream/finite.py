"""Numbers that a clip cannot be made of: found where they first show, said in one line."""

from __future__ import annotations

from torch import Tensor, nn

from nearstep.errors import NearstepError


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values, where all of them are finite.

    Raises:
        NearstepError: that ``what`` holds NaN or infinity, and where that comes from.
    """
    if not _finite(values):
        raise NearstepError(
            f"{what}: NaN or infinity among the numbers, which are not finite; the weights hold such, or overflow in "
            f"half precision (then load them as float32), or the guidance is too high"
        )
    return values


def check_weights(network: nn.Module, source: str) -> None:
    """Refuse a network with weights that are not finite: what attention makes of them may look like numbers.

    Raises:
        NearstepError: naming the ``source`` and the first such tensor.
    """
    for name, weight in network.state_dict().items():
        if not _finite(weight):
            raise NearstepError(f"{source}: {name} holds NaN or infinity, which are not finite; it is damaged")


def _finite(values: Tensor) -> bool:
    # On meta there are no numbers, and so none that are wrong.
    if values.is_floating_point() and values.itemsize == 1:  # of which torch does not say it
        values = values.float()
    return values.is_meta or bool(values.isfinite().all())
