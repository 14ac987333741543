"""A model on disk: which files it must hold, what they say, and one clear line when something is wrong with them.

A model is a diffusers folder (model_index.json, transformer/, vae/, text_encoder/, tokenizer/, scheduler/); ours may
hold a second network beside ``transformer/`` (the bidirectional ``teacher/``), and its model_index.json may hold
``"nearstep"``: the :class:`Settings` it was made for. Reading files needs neither torch nor diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from nearstep.contents import parts_name
from nearstep.errors import NearstepError, hint
from nearstep.files import check_regular, path_of
from nearstep.json_files import parsed, read_object, shown
from nearstep.models.hub import FROM_THE_HUB, Hub, download
from nearstep.models.schema import check_component
from nearstep.shapes import latent_frames

EMBEDDED = "playground"
"""The model inside this package, by name."""

INDEX, CONFIG, SCHEDULER_CONFIG = "model_index.json", "config.json", "scheduler_config.json"
_PARTS = ("vae", "text_encoder", "scheduler")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPE_NAMES: dict[str, str] = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8", "I64": "int64"},
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a model was made for, checked when it is made; the defaults are Wan's at 480p, and stand nowhere else."""

    fps: float = 16
    """Pixel frames a second."""
    num_frames: int = 81
    """Pixel frames of a clip, 4n+1."""
    height: int = 480
    width: int = 832
    grid: int = 4
    """Steps of the grid the student was distilled on."""
    default_plan: str = "4"
    """The student's plan unless another is asked for."""
    teacher_plan: str = "50"
    """A bidirectional network's."""
    guidance_scale: float = 5.0
    """A bidirectional network's guidance w, v = u + w (c - u); the student is distilled without."""
    teacher_renoise: Literal["implied", "fresh"] = "implied"
    """Where a bidirectional network's noise between steps comes from: ``implied`` by its prediction (Euler's steps), or
    ``fresh``, drawn anew (what diffusers' flow-matching scheduler calls stochastic sampling)."""
    recommit: bool = True
    """Whether a new prompt has a stream commit the frames in sight anew, as if made under it (LongLive's KV-recache). A
    network that learnt from scenes that change on the way knows its past under the prompt that it was made under."""
    agreement: tuple[tuple[float, ...], ...] = ()
    """Cosines at which an adaptive plan stops, by chunk and step; the last of each repeats (nearstep calibrate)."""

    def __post_init__(self) -> None:
        _check({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def of(cls, stated: Mapping[str, Any] | None) -> Settings:
        """The settings in a model_index.json; what is absent keeps its default."""
        stated, known = stated or {}, [field.name for field in fields(cls)]
        if unknown := sorted(set(stated) - set(known)):
            told = hint(unknown[0], known, "known are")
            raise NearstepError(f'unknown setting {unknown[0]!r} under "nearstep" in {INDEX}: {told}')
        _check(stated)
        return cls(**{**stated, "agreement": _levels(stated.get("agreement", ()))})

    def stated(self) -> dict[str, Any]:
        """What a model_index.json says: a clip's size always, all else where it is not Wan's.

        Plans and guidance are read together, so one that differs brings the others.
        """
        values, own = asdict(self), Settings()
        names = {*_SIZE, *(name for name in values if values[name] != getattr(own, name))}
        if names & {*_SAMPLING}:
            names |= {*_SAMPLING}
        return {name: value for name, value in values.items() if name in names}


_SIZE = ("fps", "num_frames", "height", "width")
_SAMPLING = ("default_plan", "teacher_plan", "guidance_scale")
_RENOISE = ("implied", "fresh")


def _check(values: Mapping[str, Any]) -> None:
    """Refuse what no model can be made for, whatever types it comes in: from JSON, a recipe or the command line."""
    for name, value in values.items():
        if name == "fps":
            _check_number(name, value, "above 0", lambda fps: fps > 0)
        elif name == "guidance_scale":
            _check_number(name, value, "0 or above", lambda weight: weight >= 0)
        elif name in ("default_plan", "teacher_plan"):
            _check_plan(name, value)
        elif name == "teacher_renoise":
            if value not in _RENOISE:
                raise NearstepError(f"{name}={shown(value)} is no noise between steps; give {' or '.join(_RENOISE)}")
        elif name == "recommit":
            if not isinstance(value, bool):
                raise NearstepError(f"{name}={shown(value)} says neither yes nor no; give true or false")
        elif name == "agreement":
            _levels(value)
        else:
            _check_whole(name, value)
    if "num_frames" in values:
        latent_frames(values["num_frames"])


def _check_number(name: str, value: object, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and is_allowed(value)):
        raise NearstepError(f"{name}={value!r} is no setting that a model can have; give a number {allowed}")


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise NearstepError(f"{name}={value!r} is no setting that a model can have; give a whole number above 0")


def _check_plan(name: str, plan: object) -> None:
    from nearstep.flow.plan import parse_steps  # which needs torch, and most of a folder is read without

    if not isinstance(plan, str):
        raise NearstepError(f"{name}={shown(plan)} is no plan; write one as a string, such as {name}='4'")
    try:
        parse_steps(plan, plan.count(",") + 1)
    except NearstepError as error:
        raise NearstepError(f"{name}={shown(plan)}: {error}") from None


def _levels(agreement: object) -> tuple[tuple[float, ...], ...]:
    # JSON has lists, and whole numbers among them.
    try:
        levels = tuple(tuple(float(level) for level in chunk) for chunk in agreement)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        levels = ((),)
    if not all(levels) or not all(isfinite(level) for chunk in levels for level in chunk):
        raise NearstepError(
            f"agreement={agreement!r}; give a list of cosines for each chunk, as nearstep calibrate does"
        )
    return levels


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose index has been read."""

    path: Path
    index: Mapping[str, Any]
    """model_index.json."""
    variant: str | None = None
    """Weights are read from files of this variant, such as fp16, where a component has them."""

    @classmethod
    def open(cls, name: str | Path, *, hub: Hub = FROM_THE_HUB, variant: str | None = None) -> ModelFolder:
        """The model called ``name``: ``"playground"``, a folder, or a hub id ``owner/model`` (downloaded once).

        Raises:
            NearstepError: naming the file that is missing or wrong, or a variant that no component has.
        """
        path = _locate(name, hub)
        if variant is not None and not [*path.glob(f"*/*.{variant}*.safetensors")]:
            raise NearstepError(
                f"{path} has no files of variant {variant!r}, such as transformer/*.{variant}.safetensors"
            )
        return cls(path, read_json(path / INDEX), variant)

    @cached_property
    def settings(self) -> Settings:
        """The model's own defaults."""
        stated = self.index.get("nearstep")
        if not isinstance(stated, Mapping | None):
            raise NearstepError(f'"nearstep" in {self.path / INDEX} is {shown(stated)}, not an object of settings')
        return Settings.of(stated)

    def networks(self) -> list[str]:
        """Sub-folders that hold a video transformer, ``transformer`` first."""
        names = [entry.parent.name for entry in self.path.glob(f"*/{CONFIG}") if _is_network(read_json(entry))]
        return sorted(names, key=lambda name: (name != "transformer", name))

    def content(self, network: str) -> str:
        """Names what its clips depend on: the files of ``network`` and of the parts around it, and the settings.

        Not ``agreement``, which streams alone go by.
        """
        parts = [self.path / part for part in (network, *_PARTS, "tokenizer")]
        files = [file for part in parts if part.is_dir() for file in sorted(part.iterdir()) if file.is_file()]
        return parts_name([repr(replace(self.settings, agreement=()))], files)

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component, ``scheduler`` included."""
        if not isinstance(component, str):
            raise NearstepError(f"a part of a model is named by its sub-folder, a string, not {component!r}")
        if not (self.path / component).is_dir():
            held = ", ".join(sorted(f"{entry.name}/" for entry in self.path.iterdir() if entry.is_dir()))
            raise NearstepError(f"{self.path} has no {component}/; it holds {held or 'nothing'}")
        file = self.path / component / (SCHEDULER_CONFIG if component == "scheduler" else CONFIG)
        config = read_json(file)
        if component in _PARTS or _is_network(config) or "_class_name" not in config:
            check_component(component, config, file)
        return config

    def check_class(self, component: str, *allowed: str) -> None:
        """Refuse a component that is some other kind of model."""
        config = self.config(component)
        kind = config.get("_class_name") or config.get("model_type")
        if kind not in allowed:
            raise NearstepError(f"{self.path / component / CONFIG} is a {kind}, not a {' or '.join(allowed)}")

    def tensors(self, component: str) -> dict[str, TensorInfo]:
        """Names, shapes and types of a component's weights; every file is checked to be whole."""
        found: dict[str, TensorInfo] = {}
        for file in weight_files(self.path / component, self.variant_of(component)):
            found |= read_header(file)
        return found

    def variant_of(self, component: str) -> str | None:
        """The variant, where a component has files of it; diffusers' ``variant=`` for it."""
        there = self.variant and [*(self.path / component).glob(f"*.{self.variant}*.safetensors")]
        return self.variant if there else None


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or one line about what is wrong with it."""
    if not path.exists():
        raise NearstepError(f"{path} is missing: is {path.parent} a complete model folder?")
    return read_object(path)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, sharded or not; of a variant, such as fp16, where one is named."""
    end = "" if variant is None else f".{variant}"
    sharded = sorted(folder.glob(f"*.safetensors.index{end}.json"))
    files = [folder / name for name in _shards(sharded[0])] if sharded else sorted(folder.glob(f"*{end}.safetensors"))
    if variant is None:  # beside x.safetensors, x.fp16.safetensors is a variant of it
        stems = {file.stem for file in files}
        files = [file for file in files if file.stem.rpartition(".")[0] not in stems]
    if files:
        _check_once(folder, files, [file for file in folder.glob("*.safetensors") if "." not in file.stem])
        return files
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise NearstepError(f"{folder / pickles[0]} is a pickle, which can run code: convert it to .safetensors first")
    raise NearstepError(f"{folder} holds no .safetensors weights: is the model folder complete?")


def _check_once(folder: Path, files: Sequence[Path], beside: Sequence[Path]) -> None:
    """Refuse a folder that holds a weight twice: two networks, or one with what is left of another."""
    if len({*files, *beside}) == 1:
        return
    homes: dict[str, Path] = {}
    for file in dict.fromkeys((*files, *(path for path in beside if path not in files))):
        if file in files and not file.exists():
            continue  # which is said where it is read
        for name in read_header(file):
            if (first := homes.setdefault(name, file)) is not file:
                raise NearstepError(
                    f"{folder} holds {name} twice, in {first.name} and in {file.name}: two networks, or one and "
                    "what is left of another; keep the files of one"
                )


def _shards(index: Path) -> list[str]:
    """The files that an index of shards names, all of them in its own folder."""
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict) or not homes or not all(isinstance(name, str) for name in homes.values()):
        raise NearstepError(f"{index} has no weight_map of weights to files: it is damaged; fetch it again")
    names = sorted(set(homes.values()))
    if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise NearstepError(f"{index} names {outside[0]!r}, which is no .safetensors file beside it: it is damaged")
    return names


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Names and shapes in a safetensors file: 8 bytes of length, a JSON header, then the data it measures out."""
    check_regular(file)
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            header = stream.read(length) if 0 < length <= size else b""
    except FileNotFoundError:
        raise NearstepError(f"{file} is missing: is the model folder complete?") from None
    except OSError as error:
        raise NearstepError(f"cannot read {file}: {error.strerror}") from error
    try:
        content = parsed(header.decode())
        _metadata(content)
        entries = {name: entry for name, entry in content.items() if name != "__metadata__"}
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise NearstepError(f"{file} is {_what_else(start, size)}") from None
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise NearstepError(f"{file} is {state}: {size} bytes, its header says {expected}; fetch or export it again")
    return tensors


def _what_else(start: bytes, size: int) -> str:
    """What a file that is no safetensors file looks like, and what to do."""
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "a pickle under a safetensors name: convert it, do not rename it"
    if start == b"version ":
        return "a Git LFS pointer, not the weights: run git lfs pull"
    return f"no whole safetensors file ({size} bytes): fetch or export it again"


def _metadata(header: Mapping[str, Any]) -> None:
    stated = header.get("__metadata__", {})
    if not all(isinstance(value, str) for value in stated.values()):
        raise ValueError("its metadata holds more than texts")


def _tensor(entry: Mapping[str, Any]) -> TensorInfo:
    (first, last), dtype = entry["data_offsets"], str(entry["dtype"])
    return TensorInfo(tuple(entry["shape"]), _DTYPE_NAMES.get(dtype, dtype), last - first)


def _is_network(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") in ("VideoTransformer", "WanTransformer3DModel")


def _locate(name: str | Path, hub: Hub) -> Path:
    if str(name) == EMBEDDED:
        embedded = Path(str(resources.files("nearstep"))) / "assets" / EMBEDDED
        if not embedded.is_dir():
            raise NearstepError(f"this installation lacks the embedded model ({embedded}); name a model folder instead")
        hub.check_unused(embedded)
        return embedded
    if not isinstance(name, str | Path) or not str(name).strip():
        raise NearstepError(f"a model is {EMBEDDED!r}, a folder, or a hub id owner/name, not {name!r:.60}")
    path = path_of(name)
    if path.is_dir():
        hub.check_unused(path)
        if not (path / INDEX).exists() and any(path.glob("*.safetensors")):
            raise NearstepError(f"{path} holds weights and no {INDEX}: nearstep convert {path} NEW makes a model of it")
        return path
    if path.exists():
        raise NearstepError(f"{path} is a file; a model is a folder with {INDEX} (a student's file: --student {path})")
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        return download(name, hub)
    raise NearstepError(f"there is no folder {path}; a model is {EMBEDDED!r}, a folder, or a hub id owner/name")


def local_folder(name: str | Path) -> Path | None:
    """The folder of this name; None where there is none, or the name is that of the embedded model."""
    path = path_of(name)
    return path if str(name) != EMBEDDED and path.is_dir() else None


def shift_of(scheduler: Mapping[str, Any]) -> float:
    """The shift k of a saved scheduler: FlowMatchEuler calls it ``shift``, Wan's UniPC ``flow_shift``."""
    for name in ("flow_shift", "shift"):
        if scheduler.get(name) is not None:
            return float(scheduler[name])
    raise NearstepError("the scheduler's config has neither shift nor flow_shift; a flow-matching scheduler is needed")
