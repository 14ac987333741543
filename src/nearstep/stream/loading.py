"""Load one component of a model folder, or say in one line which file is wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nearstep.errors import NearstepError
from nearstep.stream.folder import CONFIG, ModelFolder

Model = TypeVar("Model")


def load_component(
    folder: ModelFolder, name: str, kind: type[Model], allowed: tuple[str, ...], **options: Any
) -> Model:
    """The network in sub-folder ``name``, ready to run, without gradients.

    Args:
        folder: the model.
        name: the component's sub-folder.
        kind: a diffusers or transformers model class.
        allowed: the class names that its config.json may state.
        options: for ``kind.from_pretrained``.

    Raises:
        NearstepError: if a file is missing, damaged, a pickle, of another class, or if config and weights disagree.
    """
    folder.check_class(name, *allowed)
    folder.tensors(name)  # every weight file is there and whole
    path = folder.path / name
    try:
        model, report = kind.from_pretrained(path, output_loading_info=True, **options)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise NearstepError(f"{path / CONFIG} does not fit its weights: {_first_line(error)}") from error
    for problem in ("missing", "unexpected", "mismatched"):
        if found := sorted(map(str, report.get(f"{problem}_keys", ()))):
            what = f"{len(found)} {problem} tensors ({found[0]}, ...)"
            raise NearstepError(f"{path / CONFIG} does not fit its weights: {what}")
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: ModelFolder) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    path = folder.path / "tokenizer"
    if not path.is_dir():
        raise NearstepError(f"{path} is missing: is the model folder complete?")
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # damaged JSON surfaces as almost any type, the Rust tokenizer's own included
        raise NearstepError(f"{path} holds no tokenizer that can be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
