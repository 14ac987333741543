"""A model that is checked, not loaded: what its files say decides which clips it can make. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.models.fit import check_parts
from nearstep.models.folder import CONFIG, ModelFolder, Settings, read_json
from nearstep.models.lora_choice import LoraFile
from nearstep.models.student import Student


@dataclass(frozen=True, kw_only=True)
class Configs:
    """What decides the clips that a model can make."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class ModelConfigs(Configs):
    """The configurations of one network of a model folder: opened once, then planned with, and loaded."""

    folder: ModelFolder
    network: str
    """Sub-folder of the network."""
    student: Student | None = None
    """What takes the network's place, where one does."""
    loras: tuple[LoraFile, ...] = ()
    """Adapters that are merged into the network when it is loaded."""

    @classmethod
    def open(
        cls,
        name: str | Path | ModelFolder,
        network: str = "transformer",
        student: Student | str | Path | None = None,
        loras: Sequence[LoraFile] = (),
    ) -> ModelConfigs:
        """Read a folder's configurations, with a student's causality, shift and settings where one is named.

        Args:
            name: ``"playground"`` (inside this package), a folder, or a hub id.
            network: the sub-folder of the network.
            student: a weights file whose network takes the place of ``transformer/``.
            loras: adapters to merge into the network.

        Raises:
            NearstepError: naming the file that is missing or wrong.
        """
        folder = name if isinstance(name, ModelFolder) else ModelFolder.open(name)
        own = cls(
            transformer=folder.config(network),
            vae=folder.config("vae"),
            scheduler=folder.config("scheduler"),
            settings=folder.settings,
            folder=folder,
            network=network,
            loras=tuple(loras),
        )
        text = folder.path / "text_encoder" / CONFIG
        check_parts(own.transformer, own.vae, read_json(text) if text.exists() else None, folder.path / network)
        if student is None:
            return own
        if network != "transformer":
            raise NearstepError(
                f"a student takes the place of transformer/, so {network}/ would go unused; ask for one"
            )
        student = Student.of(student)
        return replace(
            own,
            transformer={**own.transformer, **student.network},
            scheduler={"shift": student.shift},
            settings=replace(own.settings, **student.settings),
            student=student,
        )

    @property
    def index_settings(self) -> dict[str, Any]:
        """What the folder's index says under "nearstep", and a student's on top."""
        own = dict(self.folder.index.get("nearstep") or {})
        return {**own, **self.student.settings} if self.student else own

    @property
    def origin(self) -> dict[str, Any]:
        """What to keep beside a clip about the network that made it."""
        student = {"student": {**asdict(self.student), "path": str(self.student.path)}} if self.student else {}
        loras = [{**asdict(lora), "path": str(lora.path)} for lora in self.loras]
        return {"network": self.network, **student, **({"loras": loras} if loras else {})}
