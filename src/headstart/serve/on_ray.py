"""The same application under Ray Serve: replicas that speak HTTP, and replicas that compute, on one machine or many.

Who speaks HTTP sends what is to be computed to the replica that has the task in memory, by the task's id. There it
meets the queue, the deadlines and the worker that it would meet without Ray (`headstart.serve.pool`): what waits is
computed together, and of the tasks in memory the least lately asked for goes, by bytes. Tasks are kept in PostgreSQL:
any replica answers for any task, and one that dies takes nothing with it.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from headstart.errors import ConfigError, UsageError
from headstart.serve.app import make_app
from headstart.serve.contract import RefusedError, RunTold, refused_later
from headstart.serve.gate import log_to
from headstart.serve.pool import Pool
from headstart.serve.server import bound, check_open, cores
from headstart.serve.state import Settings, State
from headstart.serve.store import is_url
from headstart.serve.work import Failed, Lesson, Request, Work

try:
    import ray
    from ray import serve
    from ray.exceptions import RayActorError, TaskCancelledError
    from ray.serve.config import HTTPOptions
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
except ImportError as error:
    raise UsageError(f"--ray needs {error.name}: `pip install headstart[ray]`") from error

#: Tasks by which a replica is found; it may have more of them in memory, or fewer.
_KNOWN = 1024
#: How often a request is sent to a replica that is gone.
_ATTEMPTS = 3
#: Seconds in which a replica has to open what it serves, and in which one that is to end answers what it began.
_OPENING, _ENDING = 120.0, 40.0


class Computing:
    """A replica that computes."""

    def __init__(self, work: Work) -> None:
        log_to()
        self._pool = Pool(work)
        self._told = self._pool.ready()

    def told(self) -> list[tuple[RunTold, str]]:
        """Return the runs with their fingerprints."""
        return self._told

    @serve.multiplexed(max_num_models_per_replica=_KNOWN)
    async def known(self, task: str) -> str:
        """Let the router know that the task is here from now on; the worker holds it, by bytes."""
        return task

    async def answer(self, request: Request) -> Any:
        """Return what a worker answers."""
        await self.known(request.task)
        try:
            return await self._pool.ask(request)
        except RefusedError as error:
            return Failed(error.kind, str(error), error.status, error.headers)

    def forget(self, task: str) -> None:
        """Let go of a task that was deleted."""
        self._pool.forget(task)

    def __del__(self) -> None:
        self._pool.close()


class Replicas:
    """Those who compute, as who speaks HTTP sees them."""

    alive, waiting = True, 0

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def ready(self) -> list[tuple[RunTold, str]]:
        """Wait until one answers, and return the runs with their fingerprints."""
        return self._handle.told.remote().result(timeout_s=_OPENING)

    def ask(self, request: Request) -> "asyncio.Future[Any]":
        """Return what will be the answer."""
        return asyncio.ensure_future(self._ask(request))

    async def _ask(self, request: Request) -> Any:
        # a task to come is nowhere yet, so that any replica may learn it
        new = isinstance(request, Lesson) and not request.grown
        handle = self._handle if new else self._handle.options(multiplexed_model_id=request.task)
        for _ in range(_ATTEMPTS):
            try:
                return await handle.answer.remote(request)
            except BackPressureError:
                raise refused_later("too many requests wait already; ask again in a second") from None
            except (RayActorError, ReplicaUnavailableError, TaskCancelledError):
                continue  # nothing was kept yet, so that another one can do it
            except DeploymentUnavailableError:
                break
        raise refused_later("those who compute are not there; ask again later", 5, 503)

    def forget(self, task: str) -> None:
        """Let go of a task that was deleted."""
        self._handle.broadcast("forget", task)

    def close(self) -> None:
        """Do nothing: Ray ends them."""


class Speaking:
    """A replica that speaks HTTP."""

    def __init__(self, settings: Settings, computing: Any) -> None:
        self._settings, self._computing = settings, computing

    def __serve_build_asgi_app__(self) -> Any:
        log_to()
        return make_app(self._settings, lambda: Replicas(self._computing))[0]


def application(settings: Settings, replicas: int) -> Any:
    """Return what Ray Serve is to run.

    Args:
        settings: of the service; ``workers`` is the number of replicas that compute.
        replicas: the number of those that speak HTTP.

    Raises:
        ConfigError: a store that replicas cannot share.
    """
    limits = settings.work.limits
    if not is_url(settings.work.store):
        raise ConfigError("with --ray several processes share the store, so it is PostgreSQL's: --store postgresql://…")
    rest = {"graceful_shutdown_timeout_s": _ENDING}
    computing = serve.deployment(
        name="computing",
        num_replicas=settings.workers,
        max_ongoing_requests=2 * limits.queue,
        max_queued_requests=limits.queue,
        **rest,
    )(Computing)
    speaking = serve.deployment(
        name="speaking", num_replicas=replicas, max_ongoing_requests=limits.requests + 1, **rest
    )(serve.ingress()(Speaking))
    return speaking.bind(settings, computing.bind(settings.work))


def build(asked: dict[str, Any]) -> Any:
    """Return what Ray Serve is to run, of a Serve config file: ``import_path: headstart.serve.on_ray:build``.

    Args:
        asked: ``runs``, a list; ``store``; and what else is wanted of ``blobs``, ``workers``, ``replicas``, ``memory``
            (megabytes), ``device``, ``hosts``, ``unknown_share``. A token is asked for (`headstart tokens add`).

    Raises:
        ConfigError: another word.
    """
    from headstart.serve.contract import Limits

    words: dict[str, Any] = {"runs": (), "store": "", "blobs": None, "workers": 1, "replicas": 1, "memory": 512}
    words |= {"device": "auto", "hosts": ("*",), "unknown_share": None}
    if other := set(asked) - set(words):
        raise ConfigError(f"there is no {min(other)!r}; expected {', '.join(words)}")
    told = words | asked
    work = Work(
        tuple(told["runs"]),
        told["store"],
        told["device"],
        1,
        told["memory"] * 2**20,
        Limits(),
        told["blobs"],
        told["unknown_share"],
    )
    return application(Settings(work, told["workers"], frozenset(told["hosts"]), guarded=True), told["replicas"])


def run(settings: Settings, host: str, port: int, replicas: int, known: bool, told: Callable[[str], None]) -> None:
    """Serve under Ray until a signal ends it; ``told`` is called with the address when requests are taken.

    Ray is the one at ``RAY_ADDRESS``, or is started on this machine.

    Raises:
        HeadstartError: an address that is open without a token, or a store or run that cannot be opened.
    """
    application(settings, replicas)  # which refuses what cannot be, before anything is started
    state = State(settings)
    try:
        settings = check_open(settings, state, host, known)
    finally:
        state.close()
    wanted = application(settings, replicas)
    with bound(host, port) as free:  # Ray takes no port 0, and says less of one that is taken
        port = free.getsockname()[1]
    ended = threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to others
    elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    os.environ.setdefault("RAY_worker_niceness", "0")  # else it gives way to whatever else the machine does
    own: dict[str, Any] = {} if elsewhere else {"num_cpus": max(cores(), replicas + settings.workers)}
    ray.init(include_dashboard=None if elsewhere else False, log_to_driver=False, **own)
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port))
        # the service has a log of its own, with less in it
        serve.run(wanted, name="headstart", route_prefix="/", logging_config={"enable_access_log": False})
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        told(f"http://{host}:{port}")
        ended.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
