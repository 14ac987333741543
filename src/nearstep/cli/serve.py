"""``nearstep serve``: a page to stream to, and videos by HTTP."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import (
    AS_IT_IS,
    NO_CLUSTER,
    FlatCluster,
    FlatLoading,
    ModelArgument,
    optional,
    place,
)
from nearstep.cli.text import note
from nearstep.cluster import HERE
from nearstep.errors import NearstepError
from nearstep.files import path_of
from nearstep.lock import SERVING, held
from nearstep.models.folder import EMBEDDED, ModelFolder, local_folder
from nearstep.server.names import MOST_REPLICAS

if TYPE_CHECKING:
    from nearstep.cluster import Cluster
    from nearstep.models.configs import ModelConfigs
    from nearstep.server.guard import Guard
    from nearstep.server.serving import Serving
    from nearstep.stream.pipeline import CausalVideoPipeline

NEEDED = ("starlette", "uvicorn", "websockets", "prometheus_client", "python_multipart")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNITS = {"s": 1, "m": 60, "h": 3600}
_KEPT = ExitStack()
"""What a replica holds until its process ends."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """A page on which streams are made, steered, taken back and forked while they are watched, and videos by HTTP.

    Without --host only this machine reaches it. With another a token is asked for, which the address that is printed
    holds. Ctrl-C ends it; takes and videos are kept in --state.
    """

    model: ModelArgument = EMBEDDED
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is all of this machine's."""
    port: int = 7860
    """0 takes one that is free."""
    token: Annotated[str | None, optional("TEXT", "made and printed where --host is not this machine alone")] = None
    """What a visitor has to know."""
    allow_host: Annotated[tuple[str, ...], optional("NAME ...", "none")] = ()
    """Further names that it is reached under, such as a proxy's."""
    sessions: int = 8
    """Takes that are open at once."""
    viewers: int = 50
    """Connections that look at them."""
    idle: Annotated[str, tyro.conf.arg(metavar="TIME")] = "10m"
    """A take that nobody watches is closed after so long (30s, 10m, 2h); it is kept."""
    longest: int = 5000
    """Chunks of a take."""
    kept: int = 200
    """Closed takes that are kept; the oldest go."""
    jobs: int = 100
    """Videos that may wait to be made."""
    undo: Annotated[int | None, optional("CHUNKS", "4, or what 256 MiB hold")] = None
    """So many of the newest chunks are taken back at once, each for a copy of the cache and of the decoder's state;
    further back they are made again."""
    state: Annotated[Path | None, optional("FOLDER", "~/.local/state/nearstep/serve-PORT")] = None
    """Where takes and videos are kept."""
    log_prompts: bool = False
    """Write prompts to the log, too."""
    replicas: Annotated[int | None, optional("N", "this process serves")] = None
    """So many servers behind this address, each with a GPU (or --cpus cores) of a Ray cluster and a folder in
    --state."""
    cluster: FlatCluster = NO_CLUSTER
    """Where the replicas run; auto unless it is said."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and serve."""
    serve(parsed(Serve, "nearstep serve", arguments))


def serve(options: Serve) -> None:
    """Serve until Ctrl-C."""
    check(options)
    serving = serving_of(options)
    options.loading.check()
    folder = ModelFolder.open(options.model)
    model = options.loading.open(folder)
    own = local_folder(options.model)
    name = own.name if own else options.model  # no path of this machine's
    if options.replicas is not None:
        serve_replicas(options, options.replicas, serving, model, name)
        return

    from nearstep.server.listen import listening
    from nearstep.server.serving import assembled

    # Both before minutes of loading. Of two servers in one folder each would make the other's videos.
    with listening(serving.host, serving.port) as listener, held(serving.state, SERVING):
        port = listener.getsockname()[1]
        pipe = options.loading.pipeline(model)
        note(place(pipe))
        warm(pipe, compiled=options.loading.compile)
        server = assembled(pipe, name, serving, port)
        note(f"serving {name} at {address(serving.host, port, serving.token)} (Ctrl-C ends)")
        server.run(listener)


def serve_replicas(options: Serve, count: int, serving: Serving, model: ModelConfigs, name: str) -> None:
    """Serve by several, on a cluster, until Ctrl-C."""
    cluster = cluster_of(options)

    from nearstep.server.listen import listening
    from nearstep.server.serving import assembled

    try:
        from nearstep.server.replicas import Replicas, wait
    except ImportError as error:
        raise NearstepError(f"--replicas needs Ray Serve ({error}): pip install 'nearstep[cluster]'") from error
    with listening(serving.host, serving.port) as listener:  # is free; the cluster's own process takes it then
        port = listener.getsockname()[1]

    def build(rank: int) -> Guard:
        own = replace(serving, replica=rank, state=serving.state / f"replica-{rank}")
        _KEPT.enter_context(held(own.state, SERVING))
        pipe = options.loading.pipeline(model)
        warm(pipe, compiled=options.loading.compile)
        return assembled(pipe, name, own, port).app

    replicas = Replicas(count=count, cluster=cluster, host=serving.host, port=port, connections=serving.connections)
    with replicas.deployed(build):
        note(f"serving {name} at {address(serving.host, port, serving.token)} by {count} replicas (Ctrl-C ends)")
        wait()


def cluster_of(options: Serve) -> Cluster:
    """Where replicas run: this machine's cluster, unless another is named."""
    named = options.cluster if options.cluster.cluster is not None else replace(options.cluster, cluster=HERE)
    chosen = named.chosen(options.loading.device)
    assert chosen is not None, "a cluster is named"
    return chosen


def check(options: Serve) -> None:
    """Find out what is wrong before anything is loaded.

    Raises:
        NearstepError: naming the option.
    """
    check_listening("nearstep serve", options.host, options.port, options.token)
    if options.undo is not None and not 0 <= options.undo <= 1000:
        raise NearstepError(f"--undo {options.undo}: give 0 (none) to 1000 chunks")
    if options.replicas is None and options.cluster != NO_CLUSTER:
        raise NearstepError("--cluster and --cpus are about replicas; say how many: --replicas N")
    if options.replicas is not None and not 1 <= options.replicas <= MOST_REPLICAS:
        raise NearstepError(f"--replicas {options.replicas}: give 1 to {MOST_REPLICAS}")


def check_listening(command: str, host: str, port: int, token: str | None) -> None:
    """Find out what is wrong with how a server is to be reached.

    Raises:
        NearstepError: naming the option, or what is not installed.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise NearstepError(f"{command} needs {missing[0]}: pip install 'nearstep[serve]'")
    if not 0 <= port < 2**16:
        raise NearstepError(f"--port {port}: give 0 (a free one) to {2**16 - 1}")
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_.~-]{8,200}", token):
        raise NearstepError("--token: give 8 to 200 letters, digits, or - _ . ~ (they go into an address)")
    if not host.strip():
        raise NearstepError("--host is empty; give 127.0.0.1 (this machine alone), or 0.0.0.0")


def seconds_of(text: str) -> float:
    """A time such as 30s, 10m or 2h.

    Raises:
        NearstepError: for what is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([smh]?)", text.strip())
    if not found:
        raise NearstepError(f"--idle {text[:40]}: give a time such as 30s, 10m or 2h")
    return float(found[1]) * UNITS[found[2] or "s"]


def serving_of(options: Serve) -> Serving:
    """How the server is to be; a token is made where others reach it."""
    from nearstep.server.serving import Serving
    from nearstep.server.studio import Limits

    limits = Limits(
        sessions=options.sessions,
        viewers=options.viewers,
        idle=seconds_of(options.idle),
        longest=options.longest,
        kept=options.kept,
        jobs=options.jobs,
    )
    return Serving(
        host=options.host,
        port=options.port,
        token=token_of(options.host, options.token),
        hosts=options.allow_host,
        state=options.state or _home() / "nearstep" / f"serve-{options.port}",
        limits=limits,
        undo_depth=options.undo,
        log_prompts=options.log_prompts,
    )


def _home() -> Path:
    """Where this user's programs keep what they know."""
    try:
        return path_of(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    except NearstepError as error:
        raise NearstepError(f"{error}; name a folder with --state") from error


def token_of(host: str, given: str | None) -> str | None:
    """The token that a server asks for; where others reach it and none is given, one is made."""
    from nearstep.server.guard import new_token

    return given or (None if host in LOOPBACK else new_token())


def address(host: str, port: int, token: str | None) -> str:
    """Where the page is; what stands behind # is not sent, so no log on the way holds the token."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"#token={token}" if token else "")


def warm(pipe: CausalVideoPipeline, *, compiled: bool) -> None:
    """Make a chunk, or with compiling all that streams need, so that the first visitor does not wait for it."""
    from nearstep.server.serving import model_facts

    prompt = next(iter(model_facts(pipe, "").prompts), "a cat on a sofa")
    try:
        with pipe.open(prompt, seed=0) as session:
            if compiled:
                note("compiling; the page is there when that is done")
                session.warm_up()
            next(session)
    except NearstepError as error:
        if compiled or "word" not in str(error):
            raise
