"""What a distillation is asked: every option, with its reason, and all of it checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.errors import NearstepError
from nearstep.flow.plan import GRID
from nearstep.models.folder import Settings
from nearstep.ranges import check_count
from nearstep.train.adapters import LoraFields
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.steps import ScheduleKind
from nearstep.train.export import check_settings
from nearstep.train.lessons import Lesson, batches, lessons_of
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.stages.shared import check_batch, check_schedule, located


@dataclass(frozen=True, kw_only=True)
class DistillFields(LoraFields):
    """The options of a distillation; ``DistillConfig`` (stage.py) is what runs them."""

    loop: LoopConfig
    model: Path
    """Model folder to start from, or "playground", the embedded one."""
    network: str = "transformer"
    """Sub-folder of the network that the student starts as."""
    teacher: str = "teacher"
    """Sub-folder of the teacher, which is also what the assistant starts as. A causal one scores each chunk of a sample
    given the sample's own earlier chunks (distill/scores.py)."""
    latents: LatentsConfig | PromptsConfig
    """Captions, with clips or without; clips serve the data references alone."""
    lessons: tuple[Lesson, ...] = ()
    """Clips of other kinds, for now and then a step; a first chunk of another length is given, as a picture is, and
    not generated."""
    lesson_every: int = 3
    """Steps of which one takes a lesson; 0: none does."""
    excerpt_frames: int | None = None
    """Latent frames of a longer sample that teacher, assistant and discriminator see, from anywhere on
    (distill/excerpt.py): as many as the teacher's clips have. None: all."""
    text_cache: Path | None = None
    """A folder for the features of prompts: the text encoder is loaded for new ones only."""
    student: OptimConfig
    assistant: OptimConfig
    discriminator: OptimConfig
    adversary: AdversaryConfig | None = None
    """None: distribution matching alone (Self Forcing)."""
    step_counts: tuple[int, ...] = (1, 2, 3, 4)
    """Step counts n to draw from; one that is named twice comes up twice as often."""
    schedule: ScheduleKind = "prefix"
    first_steps: int | None = None
    """Steps of the chunk where a scene begins, where that has its own list while training."""
    sampling: Literal["rollout", "data"] = "rollout"
    """``data``: samples come from one call on noised clips in place of a rollout (CausVid)."""
    dmd_on: Literal["every", "largest"] = "every"
    """Which n distribution matching acts on."""
    ratio: int = 5
    """Updates of assistant and discriminator per student update."""
    fresh: bool = False
    """New samples, of other captions, for each of those updates (Self-Forcing), in place of the student's own: a
    rollout more for each."""
    warmup: int = 0
    """Steps before the discriminator starts."""
    adversary_delay: int = 0
    """Steps after that in which the discriminator learns and the student does not listen to it yet."""
    guidance: float = 2.0
    """w of the teacher in v = u + w (c - u)."""
    negative: str = ""
    """The prompt of u."""
    batch: int = 16
    """Clips of an update, over all processes."""
    micro: int | None = None
    """Clips at a time in one process; gradients add up to those of the whole batch."""
    chunk_frames: int = 3
    shift: float = 3.0
    t_min: float = 0.02
    t_max: float = 0.98
    """Bounds of the times at which samples are noised."""
    ema: float = 0.98
    seed: int = 0
    autocast: bool = False
    """Products in bfloat16, where the device has them; weights stay in float32."""
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights: the teacher's, and those that adapters stand on."""
    lora_only: Literal["student", "assistant"] | None = None
    """Which of the two has an adapter and trains it alone, if not both. The assistant's stands on the teacher's own
    weights, and the student's too where ``network`` is the teacher."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""
    replay: bool = False
    """Make rollouts without a graph, and each chunk's last call again for its backward pass (distill/replay.py): the
    memory of one chunk, and a call a chunk more."""
    compile: bool = False
    settings: Settings = field(default_factory=Settings)
    """What the student is made for, written into its folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "lessons", lessons_of(self.lessons, self.lesson_every, rollouts=True))
        object.__setattr__(self, "model", located(self.model))
        if self.lora_only and self.lora_rank is None:
            raise NearstepError(f"lora_only={self.lora_only} needs a lora_rank")
        if self.lora_start and "student" not in self.adapted:
            raise NearstepError("lora_start is where the student's adapter starts; lora_only=assistant gives it none")
        for batch in batches(self.batch, self.lessons):
            check_batch(batch, self.micro)
        check_schedule(
            chunk_frames=self.chunk_frames,
            shift=self.shift,
            ema=self.ema,
            guidance=self.guidance,
            negative=self.negative,
        )
        for name in ("warmup", "adversary_delay"):
            check_count(name, getattr(self, name), least=0)
        for steps in (self.first_steps, *(lesson.first_steps for lesson in self.lessons)):
            check_count("first_steps", steps, most=GRID)
        check_count("excerpt_frames", self.excerpt_frames, least=2)
        if not self.step_counts or not set(self.step_counts) <= set(range(1, GRID + 1)):
            raise NearstepError(f"step_counts={self.step_counts}; give step counts from 1 to {GRID}")
        if self.ratio < 1:
            raise NearstepError(f"ratio={self.ratio}; the assistant needs at least one update per student update")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise NearstepError(f"t_min={self.t_min}, t_max={self.t_max}; give bounds in [0, 1], the first one smaller")
        check_settings(self.settings)
        if self.lessons and self.sampling == "data":
            raise NearstepError("sampling=data makes no rollouts, which lessons are; leave one of the two out")
        if self.excerpt_frames and self.sampling == "data":
            raise NearstepError("sampling=data makes no rollouts of which there are excerpts; leave one of the two out")
        if self.replay and self.sampling == "data":
            raise NearstepError("sampling=data makes no rollouts that could be replayed; leave one of the two out")
        reads_data = self.sampling == "data" or (self.adversary and self.adversary.reference != "adjacent")
        if reads_data and isinstance(self.latents, PromptsConfig):
            raise NearstepError("prompts alone give no clips to sample from or to hold samples against; give latents")
        reads_wide = self.adversary is not None and self.adversary.wide_role == "teacher"
        if reads_wide and self.teacher_dtype != "float32" and not self.on_teacher:  # a base computes in float32
            raise NearstepError(
                "the discriminator's penalty needs a teacher in float32; set teacher_dtype=float32, "
                "or penalty_products=bfloat16"
            )

    @property
    def kinds(self) -> tuple[Lesson | None, ...]:
        """The kinds of clips that updates take: the usual ones, then those of lessons, each once."""
        return tuple(dict.fromkeys((None, *self.lessons)))

    @property
    def slices(self) -> bool:
        """Whether each of several processes holds a slice of every weight; Muon works on whole matrices."""
        return not any(optim.muon for optim in (self.student, self.assistant, self.discriminator))

    @property
    def adapted(self) -> tuple[str, ...]:
        """Who has an adapter."""
        if self.lora_rank is None:
            return ()
        return (self.lora_only,) if self.lora_only else ("student", "assistant")

    @property
    def on_teacher(self) -> tuple[str, ...]:
        """Whose adapter stands on the teacher's weights."""
        return tuple(role for role in self.adapted if role == "assistant" or self.network == self.teacher)
