"""Numbers for Prometheus, at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nearstep.server.protocol import Json

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts what happens; each server has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._chunks = Counter("nearstep_chunks", "Chunks made", registry=self.registry)
        self._steps = Counter("nearstep_steps", "Denoising steps run for them", registry=self.registry)
        self._seconds = Histogram("nearstep_chunk_seconds", "From a chunk's begin until it is encoded",
                                  buckets=(.02, .05, .1, .2, .5, 1, 2, 5, 10), registry=self.registry)  # fmt: skip
        self._events = Counter("nearstep_events", "What else happened", ["event"], registry=self.registry)
        self._takes = Gauge("nearstep_takes", "Open takes", registry=self.registry)
        self._viewers = Gauge("nearstep_viewers", "Connections that look", registry=self.registry)
        self._waiting = Gauge(
            "nearstep_waiting", "Streams and videos that are ready for a turn", registry=self.registry
        )

    def __call__(self, event: str, facts: Json) -> None:
        """Count an event."""
        if event == "chunk":
            self._chunks.inc()
            self._steps.inc(facts["steps"])
            self._seconds.observe(facts["seconds"])
        else:
            self._events.labels(event).inc()

    def page(self, *, takes: int, viewers: int, waiting: int) -> bytes:
        """All of it as text."""
        self._takes.set(takes)
        self._viewers.set(viewers)
        self._waiting.set(waiting)
        return generate_latest(self.registry)
