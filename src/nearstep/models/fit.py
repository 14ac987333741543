"""Whether a network works on what its codec and text encoder give: channels of latents, width of text features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError

Config = Mapping[str, Any]


def check_network(network: Config, source: Path | str) -> None:
    """Refuse a network whose input is more than noisy latents.

    Raises:
        NearstepError: for image-to-video, VACE and the like, with the reason.
    """
    taken, given = network.get("in_channels"), network.get("out_channels")
    if taken is not None and given is not None and taken != given:
        raise NearstepError(
            f"{source} takes {taken} channels and gives {given}: it sees a picture or a control beside the latents "
            "(image-to-video, VACE); text-to-video networks alone run here, which take what they give"
        )


def check_parts(network: Config, codec: Config | None, text: Config | None, source: Path | str) -> None:
    """Refuse a network that is not made for the codec and the text encoder beside it; what they leave out is unchecked.

    Raises:
        NearstepError: with both numbers.
    """
    check_network(network, source)
    channels = network.get("in_channels"), (codec or {}).get("z_dim")
    width = network.get("text_dim"), (text or {}).get("d_model")
    if None not in channels and channels[0] != channels[1]:
        raise NearstepError(
            f"{source} works on latents of {channels[0]} channels, the codec's have {channels[1]}; "
            "take the codec it was trained with"
        )
    if None not in width and width[0] != width[1]:
        raise NearstepError(
            f"{source} reads text features {width[0]} wide, the text encoder's are {width[1]}; "
            "take the encoder it was trained with"
        )
