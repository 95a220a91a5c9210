"""A service that runs: uvicorn around the application, until it is told to end."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from headstart.errors import ConfigError
from headstart.serve.app import Settings, State, make_app
from headstart.serve.connection import bounded
from headstart.serve.contract import Limits
from headstart.serve.gate import log_to

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Server(uvicorn.Server):
    """Says that it is about to end, and goes on for a while, so that nobody is sent here any more; then it ends."""

    def __init__(self, config: uvicorn.Config, state: State, drain: float) -> None:
        super().__init__(config)
        self._state, self._drain = state, drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End later where that was asked for politely and for the first time."""
        if sig == signal.SIGTERM and not self._state.draining and self._drain > 0:
            self._state.draining = True
            later = threading.Timer(self._drain, super().handle_exit, (sig, frame))
            later.daemon = True
            later.start()
        else:
            self._state.draining = True
            super().handle_exit(sig, frame)


def bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address of this machine.

    Raises:
        ConfigError: it is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(1024)  # who comes before requests are taken waits
    except (OSError, OverflowError) as error:
        found.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host") from error
    return found


def check_open(settings: Settings, state: State, host: str, known: bool) -> Settings:
    """Return settings that ask for a token where others can reach the service.

    Args:
        settings: as asked for.
        state: with the store.
        host: where it is to listen.
        known: whether it was said that one knows what it means to ask for none.

    Raises:
        ConfigError: no token, at an address that others may reach.
    """
    if host in LOOPBACK:
        return settings
    if settings.open:
        if not known:
            raise ConfigError(
                f"--no-auth at {host} lets all who reach this machine use the service, and delete what others taught"
                " it; say --i-know as well, or make a token (`headstart tokens add`)"
            )
        return settings
    if settings.token is None and not state.store.has_tokens():
        raise ConfigError(
            f"at {host} others may reach the service, so it needs a token: `headstart tokens add --store"
            f" {state.store.where}`, or --token-file"
        )
    return settings._replace(guarded=True)


def address(listening: socket.socket) -> str:
    """Return how a browser is to call what listens."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(limits),
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=30,
        timeout_keep_alive=15,
    )


def run(settings: Settings, host: str, port: int, drain: float, known: bool, told: Any) -> None:
    """Serve until a signal ends it; ``told`` is called with the address when requests are taken.

    Raises:
        ConfigError: an address that cannot be, or that is open without a token.
        FileError: the store, or a run, cannot be opened.
    """
    app, state = make_app(settings)
    try:
        state.settings = check_open(settings, state, host, known)
        listening = bound(host, port)
    except BaseException:
        state.close()
        raise
    with listening:
        log_to()
        state.start()
        told(address(listening))
        server = _Server(_config(app, state.limits), state, drain)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])


@contextlib.contextmanager
def running(settings: Settings, port: int = 0) -> Iterator[tuple[str, State]]:
    """Serve on this machine in a thread, and give the address and what the service holds.

    Raises:
        FileError: the store, or a run, cannot be opened.
    """
    app, state = make_app(settings)
    state.start()
    with bound("127.0.0.1", port) as listening:
        server = uvicorn.Server(_config(app, state.limits))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield address(listening), state
        finally:
            server.should_exit = True
            thread.join(40)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
