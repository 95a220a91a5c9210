"""What the service counts, as Prometheus reads it."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics(NamedTuple):
    """What is counted; paths are those of the description, so that nothing of a request is in them."""

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batch: Histogram
    wait: Histogram
    restarts: Counter

    def seen(self, what: str, value: float) -> None:
        """Count what the pool tells."""
        if what == "batch":
            self.batch.observe(value)
        elif what == "wait":
            self.wait.observe(value)
        else:
            self.restarts.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        requests, times = _of_route(self.requests, self.seconds, method, route, status)
        requests.inc()
        times.observe(seconds)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text form."""
        return generate_latest(self.registry)


@lru_cache(1024)
def _of_route(requests: Counter, seconds: Histogram, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    # to look them up by their labels takes longer than to count
    return requests.labels(method, route, status), seconds.labels(method, route)


def metrics(waiting: Callable[[], float], tasks: Callable[[], float]) -> Metrics:
    """Return counters that are all zero.

    Args:
        waiting: how many requests wait.
        tasks: how many tasks are kept.
    """
    registry = CollectorRegistry()
    Gauge("headstart_waiting", "Requests that wait for a worker.", registry=registry).set_function(waiting)
    Gauge("headstart_tasks", "Tasks that are kept.", registry=registry).set_function(tasks)
    return Metrics(
        registry,
        Counter("headstart_requests", "Requests.", ("method", "route", "status"), registry=registry),
        Histogram(
            "headstart_request_seconds", "Time to answer.", ("method", "route"), buckets=_SECONDS, registry=registry
        ),
        Histogram("headstart_batch", "Requests computed at once.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry),
        Histogram("headstart_wait_seconds", "Time in the queue.", buckets=_SECONDS, registry=registry),
        Counter("headstart_worker_restarts", "Workers that were replaced.", registry=registry),
    )
