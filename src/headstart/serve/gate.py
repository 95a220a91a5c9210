"""What happens to each request before any work is done, and after: who asks, how much, how long; headers and the log.

A plain ASGI application around another, so that bodies are counted as they come, however they come.
"""

import asyncio
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple, TypeAlias

from headstart.serve.contract import Limits, RefusedError, refused_later
from headstart.serve.metrics import Metrics
from headstart.serve.tokens import Caller

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("headstart.serve")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none';"
        b" form-action 'none'; frame-ancestors 'none'",
    ),
]


class Rules(NamedTuple):
    """What the gate holds requests to."""

    limits: Limits
    hosts: frozenset[str]
    """What the service may be called by, so that no page elsewhere reaches it under a name of its own; ``*``: all."""
    caller: Callable[[str | None], Awaitable[Caller]]
    """Who asks, by the token; raises `RefusedError`."""


class UnheardError(Exception):
    """Who asked takes no answer."""


def gate(inner: Application, rules: Rules, counted: Metrics) -> Application:
    """Return an application that lets through what the rules allow."""
    busy = 0

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal busy
        if scope["type"] != "http":
            return await inner(scope, receive, send)
        began = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        guarded = scope["path"].startswith("/v1/")
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {name for name, _ in message.get("headers", ())}
                more = [*_HEADERS, (b"x-request-id", request_id.encode())]
                more.append((b"cache-control", b"no-store" if guarded else b"no-cache"))
                if status in (408, 413):  # the rest of the body is not read
                    more.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *(pair for pair in more if pair[0] not in known)]
            try:
                async with asyncio.timeout(rules.limits.body_seconds):
                    await send(message)
            except TimeoutError:  # who asked reads nothing; others are to have the place
                raise UnheardError() from None

        busy += 1
        try:
            try:
                _check_origin(headers, rules.hosts)
                if guarded:
                    if busy > rules.limits.requests:
                        raise refused_later(f"{busy - 1} requests are read already; ask again in a second")
                    scope["state"]["caller"] = await rules.caller(_token(headers))
                counting = _counted(headers, receive, rules.limits, began)
            except RefusedError as error:
                await refuse(error, answer)
                return
            try:
                await inner(scope, counting, answer)
            except RefusedError as error:  # of a body that nobody has begun to answer
                await refuse(error, answer)
        except UnheardError:
            pass
        finally:
            busy -= 1
            took = time.monotonic() - began
            route = getattr(scope.get("route"), "path", None) or ("other" if guarded else "page")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            counted.answered(method, route, status, took)
            told = {"request": request_id, "method": method, "route": route, "status": status}
            LOG.info("request", extra={"told": told | {"ms": round(1000 * took, 1)}})

    return outer


_METHODS = {"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"}


async def refuse(error: RefusedError, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps({"error": {"type": error.kind, "message": str(error)}}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _check_origin(headers: dict[str, str], hosts: frozenset[str]) -> None:
    """Refuse a name that is not the service's own, and pages of other sites: they may be open in a user's browser."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if "*" not in hosts and name.strip("[]").lower() not in hosts:
        known = ", ".join(sorted(hosts))
        raise RefusedError(400, "HostError", f"this service is not called so; it is called {known} (--allow-host)")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise RefusedError(403, "OriginError", "pages of other sites may not ask this service")


def _token(headers: dict[str, str]) -> str | None:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" and value.strip() else None


def _counted(headers: dict[str, str], receive: Receive, limits: Limits, began: float) -> Receive:
    """Return what gives a body until there is too much of it, or it takes too long."""
    told, size, done = headers.get("content-length", "0"), 0, False
    if not re.fullmatch(r"\d{1,15}", told) or int(told) > limits.body_bytes:
        raise _too_large(limits)

    async def counting() -> Message:
        nonlocal size, done
        if done:  # nothing but a connection that is closed comes after the body
            return await receive()
        left = began + limits.body_seconds - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.001)):
                message = await receive()
        except TimeoutError:
            text = f"the body took longer than {limits.body_seconds:g} seconds to come"
            raise RefusedError(408, "SlowError", text) from None
        if message["type"] == "http.request":
            size += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if size > limits.body_bytes:
                raise _too_large(limits)
        else:  # it is told to nobody, but is no fault of the service
            raise RefusedError(400, "BrokenError", "the connection was closed before all of the body had come")
        return message

    return counting


def _too_large(limits: Limits) -> RefusedError:
    text = f"the body is larger than {limits.body_bytes} bytes, which are taken at most; send less at once"
    return RefusedError(413, "TooLargeError", text)


class JsonLines(logging.Formatter):
    """Log lines as JSON; what was asked is in none of them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        told = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        told |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            told["where"] = self.formatException(record.exc_info)
        return json.dumps(told | getattr(record, "told", {}), default=str)


def log_to(stream: Any = None) -> None:
    """Write the log of the service, of uvicorn and of the database to a stream; by default standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("headstart.serve", "uvicorn", "psycopg"):
        logger = logging.getLogger(name)
        handlers: list[logging.Handler] = [handler]
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(logging.INFO)
