"""The socket: uvicorn, with patience for slow clients bounded, and no line of its own in the log."""

from __future__ import annotations

import asyncio
import logging
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from nearstep.errors import NearstepError
from nearstep.server.protocol import LONGEST_MESSAGE

PATIENCE = 10.0
"""Seconds that a client has for the head of a request."""
_LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that does not wait for ever for a request that comes byte by byte."""

    _clock: asyncio.TimerHandle | None = None
    _left = False
    """Whether the connection is a WebSocket's now."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._left or self._asked():
            self._stop()
        elif self._clock is None:
            self._wind()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._left = True
        super().handle_websocket_upgrade(event)

    def _asked(self) -> bool:
        """Whether a request is being answered, or its body read: others see to that."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wind(self) -> None:
        self._stop()
        self._clock = self.loop.call_later(PATIENCE, self._late)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if not self._asked() and not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        NearstepError: if the address is in use, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
    except OSError as error:
        opened.close()
        raise NearstepError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    except (ValueError, TypeError) as error:  # no name at all: with a NUL, or too long a part
        opened.close()
        raise NearstepError(f"--host {host[:60]!r} is no address: {error}; give 127.0.0.1, or 0.0.0.0") from error
    opened.listen(256)
    return opened


def server_of(app: ASGIApp, *, connections: int) -> uvicorn.Server:
    """A server for the app, to be run on a listening socket.

    Args:
        app: what answers.
        connections: that there may be at once; further ones get 503.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what nobody foresaw, with where it was
    config = uvicorn.Config(
        app,
        loop="asyncio",  # and not another one where a package brings it: what is tested is what serves
        http=PatientProtocol,
        ws="websockets-sansio",
        ws_max_size=LONGEST_MESSAGE,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        ws_per_message_deflate=False,  # of video there is nothing to gain, and each connection would hold a window
        limit_concurrency=connections,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 * 1024,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
    )
    return uvicorn.Server(config)
