"""A server put together: a loaded model, where things are kept, who is let in, and how much is taken."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn

from nearstep.data.videos import ClipSize
from nearstep.nets.prompts import words_of
from nearstep.server.app import Api, ModelFacts, make_app
from nearstep.server.guard import Door, Guard, door_of
from nearstep.server.jobs import Jobs
from nearstep.server.listen import server_of
from nearstep.server.logs import Events
from nearstep.server.making import Maker
from nearstep.server.metrics import Metrics
from nearstep.server.protocol import Json
from nearstep.server.studio import Limits, Studio
from nearstep.server.uploads import LARGEST, Uploads
from nearstep.server.videos import Videos, job_folder
from nearstep.server.worker import Worker
from nearstep.shapes import TEMPORAL_STRIDE

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline

MOST_WORDS = 500
"""Of a tokenizer that knows words and not pieces of them."""
EXAMPLES = (
    "a large red apple slides left slowly on snow",
    "a small yellow banana bounces sideways at night",
    "a medium orange basketball drifts up quickly in the sky",
    "a big pink cupcake rests on wood",
)
"""Prompts of the embedded world."""
_UNDO_BYTES, _MOST_UNDO = 256 * 2**20, 4


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server is to be."""

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    """None: whoever reaches it may use it."""
    hosts: tuple[str, ...] = ()
    """Further names that it is reached under, of a proxy."""
    state: Path
    """The folder of what is kept."""
    limits: Limits = field(default_factory=Limits)
    replica: int | None = None
    """The rank of this server among several behind one address; None: it is the only one."""
    undo_depth: int | None = None
    """None: as many caches as a quarter of a GiB holds, and 4 at most."""
    log_prompts: bool = False

    @property
    def connections(self) -> int:
        """That there may be at once."""
        return 2 * self.limits.viewers + 4 * self.limits.sessions + 64

    def door(self, port: int) -> Door:
        """Who is let in at this port."""
        return replace(door_of(self.host, port, self.token, self.hosts), uploads=LARGEST)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that can be run."""

    app: Guard
    studio: Studio
    uvicorn: uvicorn.Server

    def run(self, listener: socket.socket) -> None:
        """Serve until it is told to end."""
        self.uvicorn.run(sockets=[listener])


def assembled(pipe: CausalVideoPipeline, name: str, serving: Serving, port: int) -> Server:
    """All of a server, with nothing begun.

    Args:
        pipe: the model, loaded.
        name: what it is called.
        serving: how the server is to be.
        port: where it listens.
    """
    events, metrics, worker = Events(prompts=serving.log_prompts), Metrics(), Worker()

    def told(event: str, facts: Json) -> None:
        events(event, facts)
        metrics(event, facts)

    depth = usual_undo(pipe) if serving.undo_depth is None else serving.undo_depth
    limits, replica = serving.limits, serving.replica
    studio = Studio(pipe, worker, serving.state / "takes", limits, undo_depth=depth, told=told, replica=replica)
    settings = pipe.settings
    size = ClipSize(frames=settings.num_frames, height=settings.height, width=settings.width, fps=settings.fps)
    door = serving.door(port)
    uploads, facts = Uploads(serving.state / "uploads", size, replica), model_facts(pipe, name)
    jobs = Jobs(serving.state / "videos.sqlite")
    maker = Maker(pipe, worker, jobs, job_folder(serving.state), told)
    videos = Videos(pipe, worker, facts, jobs, maker, uploads, limits, replica)
    app = make_app(Api(studio, facts, door, metrics, uploads), door, jobs, videos.routes())
    jobs.begin_again()
    worker.join(maker)
    return Server(app=app, studio=studio, uvicorn=server_of(app, connections=serving.connections))


def model_facts(pipe: CausalVideoPipeline, name: str) -> ModelFacts:
    """What the page is told of a model."""
    settings, tokenizer = pipe.settings, pipe.tokenizer
    words = words_of(tokenizer.get_vocab(), tokenizer.all_special_tokens)
    known = tuple(words) if len(words) <= MOST_WORDS else ()
    fits = tuple(text for text in EXAMPLES if not known or set(text.split()) <= set(known))
    return ModelFacts(
        name=name,
        fps=settings.fps,
        height=settings.height,
        width=settings.width,
        chunk=TEMPORAL_STRIDE * pipe.chunk_frames,
        plan=settings.default_plan,
        words=tuple(word for word in known if word.isalpha()),
        prompts=fits,
    )


def usual_undo(pipe: CausalVideoPipeline) -> int:
    """Chunks that can be taken back at once: as many as a quarter of a GiB holds copies of the cache."""
    config, settings = cast(Json, pipe.transformer.config), pipe.settings
    clip = pipe.codec.latent_shape(settings.num_frames, settings.height, settings.width)
    tokens = clip.frames * clip.height * clip.width // math.prod(config["patch_size"])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return min(_MOST_UNDO, _UNDO_BYTES // (2 * config["num_layers"] * tokens * width * 4))
