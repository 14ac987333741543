"""Independent items of work, here one after the other, or on a cluster through Ray (the extra ``cluster``).

    driver:  item 0, 1, 2, ...  ->  a worker that is idle  ->  results, in the order of the items, each once
    worker:  one for each GPU, or for so many CPUs; it gets the work once and keeps what it has loaded for it

An item is a function of itself alone, so who runs it, and how often, changes nothing: where a worker dies, a new one
runs its item again. What an item writes is whole or absent (files.py), and the driver writes the rest.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from nearstep.errors import NearstepError, first_line
from nearstep.files import enter_shared

Item = TypeVar("Item")
Result = TypeVar("Result")
HERE = "auto"
_ADDRESS = re.compile(r"(?:ray://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_AHEAD = 4  # items a worker that may be done before an earlier one is: their results wait in memory
_PATIENCE = 10.0  # seconds for a cluster's head to answer
_TRIES = 3  # times that an item runs again after a worker died with it


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where workers run, and how large one is."""

    address: str = HERE
    """Of a Ray cluster's head; "auto" is the one that this machine belongs to, or else this machine alone."""
    cpus: int = 1
    """Of a worker, where it has no GPU to itself."""
    gpus: bool = True
    """Whether a worker gets a GPU, where the cluster has any."""

    def __post_init__(self) -> None:
        if self.address != HERE:
            _head(self.address)
        if self.cpus < 1:
            raise NearstepError(f"--cpus {self.cpus}: at least 1 for a worker")
        if find_spec("ray") is None:
            raise NearstepError('--cluster needs Ray, which is not here: pip install "nearstep[cluster]"')

    @contextmanager
    def joined(self) -> Iterator[Any]:
        """Ray, while this process is a driver of the cluster; nobody at its address is a NearstepError."""
        import ray  # pyright: ignore[reportMissingImports]  # an extra, which development does without

        ours = not ray.is_initialized()
        _join(ray, self.address)
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


def each(work: Callable[[Item], Result], items: Sequence[Item], cluster: Cluster | None = None) -> Iterator[Result]:
    """``work(item)`` of every item, in their order.

    Args:
        work: is sent to each worker once; what it loads lazily stays loaded there.
        items: are sent one by one.
        cluster: None is this process.

    Raises:
        NearstepError: what an item raised; or where there is no Ray or no cluster, or an item kills its workers.
    """
    if cluster is None or not items:
        yield from map(work, items)
        return
    with cluster.joined() as ray:
        sent, workers = ray.put(work), _workers(ray, cluster, len(items))
        try:
            yield from _gathered(ray, workers, sent, items)
        finally:
            for worker in workers:
                ray.kill(worker)


def _head(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[2]) < 2**16:
        raise NearstepError(f"--cluster {address}: give auto, or HOST:PORT of its head (ray://HOST:PORT from outside)")
    return found[1].strip("[]"), int(found[2])


def _join(ray: Any, address: str) -> None:
    quiet = {"logging_level": "error", "ignore_reinit_error": True, "log_to_driver": False}
    try:
        if address != HERE:  # where nobody listens Ray would try for minutes
            socket.create_connection(_head(address), timeout=_PATIENCE).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError) as error:
        if address != HERE:
            raise NearstepError(f"--cluster {address}: no cluster answers there; {first_line(error)}") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
        ray.init(include_dashboard=False, **quiet)


class _Worker:
    """Holds the work, which is fetched with the first item: so a new one in the place of a dead one has it too."""

    def __init__(self, folder: str) -> None:
        enter_shared(folder)
        self._work: Any = None

    def run(self, held: Sequence[Any], item: object) -> Any:
        if self._work is None:
            import ray  # pyright: ignore[reportMissingImports]  # an extra, which development does without

            self._work = ray.get(held[0])
        return self._work(item)


def _workers(ray: Any, cluster: Cluster, most: int) -> list[Any]:
    there = {name: int(count) for name, count in ray.cluster_resources().items()}
    gpus, cpus = there.get("GPU", 0) if cluster.gpus else 0, there.get("CPU", 0)
    count = gpus or cpus // cluster.cpus
    if not count:
        raise NearstepError(f"--cpus {cluster.cpus}: the cluster has {cpus}; ask for fewer a worker")
    share = {"num_gpus": 1} if gpus else {"num_cpus": cluster.cpus}
    made = ray.remote(max_restarts=-1, max_task_retries=_TRIES, **share)(_Worker)
    return [made.remote(str(Path.cwd())) for _ in range(min(count, most))]


def _gathered(ray: Any, workers: Sequence[Any], work: Any, items: Sequence[Any]) -> Iterator[Any]:
    idle, running = [*workers], {}
    rest, sent = deque(enumerate(items)), deque()  # sent and not given yet, in the order of the items
    while rest or sent:
        while rest and idle and len(sent) < _AHEAD * len(workers):
            (place, item), worker = rest.popleft(), idle.pop(0)
            sent.append((worker.run.remote([work], item), place))
            running[sent[-1][0]] = worker
        (ready, *_), _ = ray.wait([*running], num_returns=1)
        idle.append(running.pop(ready))
        while sent and sent[0][0] not in running:
            yield _result(ray, *sent.popleft())


def _result(ray: Any, ready: Any, place: int) -> Any:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise NearstepError(f"item {place} was given up after {_TRIES} more tries: {first_line(error)}") from error
