"""A model on the Hugging Face hub: which of its versions, and how it comes onto this machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from nearstep.errors import NearstepError

_FILES = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*/*.model"]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Options of diffusers' from_pretrained about where files come from; they say nothing of a folder that is here."""

    revision: str | None = None
    """A branch, a tag or a commit."""
    cache_dir: str | Path | None = None
    """Where files of the hub are kept."""
    token: str | bool | None = None
    """For models that ask for one."""
    local_files_only: bool = False
    """Take what is in the cache, and ask nobody."""

    def check_unused(self, folder: Path) -> None:
        """Refuse options that a folder on this machine has no use for.

        Raises:
            NearstepError: naming the first.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "local_files_only":
                shown = "" if field.name == "token" else f"={value!r}"
                raise NearstepError(f"{field.name}{shown} is about the hub, and {folder} is here; leave it out")


FROM_THE_HUB = Hub()


def download(name: str, hub: Hub) -> Path:
    """The folder of a model owner/name in the hub's cache, fetched if need be.

    Raises:
        NearstepError: if the hub does not have it, or does not give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=_FILES,
                revision=hub.revision,
                cache_dir=hub.cache_dir,
                token=hub.token,
                local_files_only=hub.local_files_only,
            )
        )
    except RevisionNotFoundError as error:
        raise NearstepError(f"{name} has no revision {hub.revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise NearstepError(f"{name} is neither a folder here nor a model on the hub") from error
    except LocalEntryNotFoundError as error:
        if not hub.local_files_only:
            raise NearstepError(f"{name} is no folder here, and the hub cannot be reached: {_first(error)}") from error
        raise NearstepError(f"{name} is not in the cache; without local_files_only=True it is fetched") from error
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise NearstepError(f"{name} is no folder here, and the hub did not give it: {_first(error)}") from error


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
