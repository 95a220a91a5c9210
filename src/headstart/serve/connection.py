"""Connections that come to an end, whatever who asks does or does not.

uvicorn closes one that is idle after an answer, and waits for all else for ever: for a head that has no end, for the
rest of a body that nobody reads, for an answer to be taken. A process has no more than some hundred connections.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headstart.serve.contract import Limits

#: Bytes of a head; the parser would gather them without end.
_HEAD = 2**16


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the protocol of connections that are held to limits, as `uvicorn.Config` takes it."""

    class Bounded(HttpToolsProtocol):
        _waiting: asyncio.TimerHandle | None = None
        """Refuses a connection on which no request begins; ``None`` while one is answered, and after it."""
        _looking: asyncio.TimerHandle | None = None
        _head: int | None = None
        """Bytes of the head that is coming, beside those it began among; ``None``: none is."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()
            self._look(None, 0)
            if len(self.connections) > limits.connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self._waiting, self._looking):
                if timer is not None:
                    timer.cancel()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head = 0

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            self._head = None

        def data_received(self, data: bytes) -> None:
            before = self._head
            super().data_received(data)
            if self._answering():
                if self._waiting is not None:
                    self._waiting.cancel()
                    self._waiting = None
            elif self._waiting is None:  # from the first byte on uvicorn waits no longer for the next request
                self._wait()
            if before is not None and self._head is not None:
                self._head += len(data)
                if self._head > _HEAD:
                    self._refuse(431, "TooLargeError", f"the head of the request is larger than {_HEAD} bytes")

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            told = f"the head of the request took longer than {limits.head_seconds:g} seconds to come"
            self._waiting = self.loop.call_later(limits.head_seconds, self._refuse, 408, "SlowError", told)

        def _look(self, cycle: Any, left: int) -> None:
            """Cut the connection off where nothing of an answer was taken since it was looked last, and look again."""
            now = self.transport.get_write_buffer_size()
            if cycle is self.cycle and 0 < left <= now:
                self.transport.abort()
            else:
                self._looking = self.loop.call_later(limits.body_seconds, self._look, self.cycle, now)

        def _refuse(self, status: int, kind: str, message: str) -> None:
            """Close the connection, and say why where that is no part of another answer."""
            if self._head is not None and not self._answering() and not self.transport.is_closing():
                body = json.dumps({"error": {"type": kind, "message": message}})
                head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                self.transport.write((head + body).encode())
            self.transport.close()

    return Bounded
