"""What the two memory planners, of training and of clips, read alike."""

from __future__ import annotations

import re
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.json_files import shown
from nearstep.models.folder import read_json

GIB = 2.0**30
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:G|GB|GiB)?", re.IGNORECASE)


def room_of(memory: str) -> float:
    """Bytes of one accelerator, as --memory says."""
    match = _MEMORY.fullmatch(memory.strip())
    if not match or not float(match[1]):
        raise NearstepError(f"--memory {memory}: give GiB of one accelerator, like 80G or 24G")
    return float(match[1]) * GIB


def text_length_of(path: Path) -> int:
    """Text tokens that a tokenizer's settings name, or Wan's."""
    from transformers.tokenization_utils_base import LARGE_INTEGER

    from nearstep.nets.text import WAN_TEXT_LENGTH

    stated = read_json(path).get("model_max_length", LARGE_INTEGER) if path.exists() else LARGE_INTEGER
    if isinstance(stated, bool) or not isinstance(stated, int | float) or stated < 1:
        raise NearstepError(f"{path} is damaged: its 'model_max_length' is {shown(stated)}, not a number of tokens")
    return int(stated) if stated < LARGE_INTEGER else WAN_TEXT_LENGTH
