"""Files that are there already: kept where they show what is asked for, refused where they show anything else."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.stream.output import read_comment

_ABSENT = (
    "loras",
    "student",
    "tiny_decoder",
    "fp8",
    "starting_noise",
    "prompt_embeds",
    "negative_prompt_embeds",
    "text_length",
)
"""What a file says of itself only where it is not as usual."""
_SHOWN = 60  # characters of a value in an error


def is_made(path: Path, wanted: Mapping[str, Any], *, ignoring: Collection[str] = ()) -> bool:
    """Whether a file is there that was made by this request.

    Args:
        path: the file.
        wanted: what a new file would say of itself.
        ignoring: what was not asked for, so that any value will do.

    Raises:
        NearstepError: if a file is there that was made by another request, or by something else.
    """
    if not path.is_file():
        return False
    found = read_comment(path)
    if found is None:
        raise NearstepError(f"{path} is there and does not say what it shows; --overwrite replaces it")
    unasked = {name: None for name in _ABSENT if name in found}
    for name, value in json.loads(json.dumps({**unasked, **wanted})).items():
        if name not in ignoring and found.get(name) != value:
            raise NearstepError(
                f"{path} is there and shows something else ({name.replace('_', ' ')} {_short(found.get(name))} there, "
                f"{_short(value)} asked for); --overwrite replaces it, or name another file"
            )
    return True


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
