"""How fast the service is, what it loses when it is killed, and how soon it is back: on this machine, over loopback.

    python -m benchmarks.service                       # ten minutes
    python -m benchmarks.service --only soak --seconds 1800

- ``throughput``: predictions a second, one 28 x 28 drawing a request, so many connections that each wait for their
  answer, of 20 tasks of 5 ways and 5 shots, by the conv4 of the literature (64 filters, 2 x 2 pools); beside the
  service that one writes by hand (`benchmarks.peers.service_by_hand`), which computes one request at a time, and the
  same by LitServe (`benchmarks.peers.service_by_litserve`), which gathers requests and answers them in a loop. The time
  of the processors that each process takes for a request depends less on what else the machine does;
- ``adapt``: the time to learn a task of 5 ways and 5 shots, beside 50 predictions a second: by a conv4, and by heads on
  the features of a frozen network;
- ``restart``: from the start of the process until it is ready, with so many tasks in its store;
- ``soak``: teaching and predicting, at 80 % of what the service can, while a worker is killed (kill -9) every so many
  seconds: what was acknowledged and is not there at the end, what was answered with which status, and how memory grew;
- ``scale``: predictions and lessons a second by one and two workers, services at one PostgreSQL database, and replicas
  under Ray, with the processors' time of a request by who took it, and what a database and a folder of blobs take in
  alone. PostgreSQL is started for it (`tools.postgres`); what is not installed is left out, and said.

The load comes from this process, on the same cores. Bounded in requests and time, and to 127.0.0.1 alone.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

import headstart
from headstart.training.files import make_folder, to_json, write
from tools import postgres

Value = TypeVar("Value")
RUN = Path(__file__).parents[1] / "src" / "headstart" / "serve" / "demo" / "icons"
PARTS = ("throughput", "adapt", "restart", "soak", "scale")
#: Requests that a part may send at the most.
MOST = 5_000_000


def drawing(kind: int, seed: int) -> str:
    """Return a drawing of one of five kinds, each a little different, as base64 of a PNG."""
    random = np.random.default_rng([kind, seed])
    pixels, (left, top) = np.full((28, 28), 255, np.uint8), random.integers(2, 6, 2)
    if kind in (0, 1):
        pixels[top : top + 20, 12 : 14 + seed % 3] = 0
    if kind in (1, 2):
        pixels[12 : 14 + seed % 3, left : left + 20] = 0
    if kind in (3, 4):
        pixels[top : top + 18, left : left + 18] = 0
    if kind == 4:
        pixels[top + 4 : top + 14, left + 4 : left + 14] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def examples(task: int) -> dict[str, Any]:
    """Return what a task of 5 ways and 5 shots is learned from."""
    shown = [
        {"label": f"kind {kind}", "image": drawing(kind, 10 * task + shot)} for kind in range(5) for shot in range(5)
    ]
    return {"examples": shown}


class Connection:
    """One connection, on which requests are sent one after the other."""

    def __init__(self, port: int) -> None:
        self._port, self._streams = port, None

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the answer; 0 where none came.

        A connection that was idle may have been closed: then the request is sent on another one.
        """
        for _ in range(2):
            idle = self._streams is not None
            found = await self._asked(method, path, body)
            if found[0] or not idle:
                break
        return found

    async def _asked(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(_wire(method, path, data))
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(told.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length" in told else 0
            return int(told[9:12]), await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            self._streams = None
            return 0, b""


def free() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Service(NamedTuple):
    """A service that runs."""

    port: int
    process: subprocess.Popen[bytes]
    ready: float
    """Seconds from its start until it was."""


@contextmanager
def started(words: list[str], port: int) -> Iterator[Service]:
    """Start a service, wait until it is ready, and end it."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log)
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30):
                        break
                except OSError:
                    if process.poll() is not None or time.monotonic() - began > 120:
                        log.seek(0)
                        raise SystemExit(f"it does not start: {log.read()[-2000:].decode()}") from None
                    time.sleep(0.02)
            yield Service(port, process, time.monotonic() - began)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ours(store: Path | str, run: Path = RUN, *more: str) -> tuple[list[str], int]:
    """Return the words that start our service, and its port."""
    port = free()
    return ["headstart", "serve", str(run), "--port", str(port), "--store", str(store), "--drain", "0", *more], port


async def taught(port: int, count: int) -> list[str]:
    """Teach tasks, and return their ids."""
    one, found = Connection(port), list[str]()
    for task in range(count):
        status, body = await one.ask("POST", "/v1/tasks", examples(task))
        assert status in (200, 201), body
        found.append(json.loads(body)["id"])
    one.close()
    return found


class Repeated(asyncio.Protocol):
    """One connection on which the next request is sent when the last one was answered: bytes that were made before.

    It shares the cores with what it asks, so it does no more than find the end of an answer.
    """

    def __init__(self, load: "Load") -> None:
        self._load, self._came, self._whole, self._sent = load, bytearray(), -1, 0.0

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self._next()

    def _next(self) -> None:
        self._sent = time.monotonic()
        if self._sent < self._load.end and len(self._load.took) < MOST:
            self._transport.write(self._load.request())
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is whole."""
        self._came += data
        if self._whole < 0 and (head := self._came.find(b"\r\n\r\n")) >= 0:
            told = bytes(self._came[:head]).lower()
            length = int(told.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length" in told else 0
            self._whole = head + 4 + length
        if 0 <= self._whole <= len(self._came):
            self._load.took.append(time.monotonic() - self._sent)
            self._load.statuses[int(self._came[9:12])] += 1
            del self._came[:]
            self._whole = -1
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._load.open -= 1
        if not self._load.open:
            self._load.done.set_result(None)


class Load:
    """What connections together sent, and what came of it."""

    def __init__(self, requests: list[bytes], connections: int, seconds: float) -> None:
        self._requests, self._sent, self.open = requests, 0, connections
        self.end = time.monotonic() + seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.took, self.statuses = list[float](), Counter[int]()

    def request(self) -> bytes:
        """Return the next request."""
        self._sent += 1
        return self._requests[self._sent % len(self._requests)]


async def closed_loop(
    ports: Sequence[int], connections: int, seconds: float, request: Callable[[int], tuple[str, str, bytes]]
) -> tuple[list[float], Counter[int]]:
    """Let connections ask, each again when it was answered, and return the times to answer and the statuses."""
    load = Load([_wire(*request(number)) for number in range(360)], connections, seconds)
    loop = asyncio.get_running_loop()
    for own in range(connections):
        await loop.create_connection(lambda: Repeated(load), "127.0.0.1", ports[own % len(ports)])
    await load.done
    return load.took, load.statuses


def _wire(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def predictions(tasks: list[str]) -> Callable[[int], tuple[str, str, bytes]]:
    """Return requests to predict one drawing each, by one task after the other."""
    bodies = [
        json.dumps({"inputs": [{"image": drawing(kind, seed)}]}).encode() for kind in range(5) for seed in range(9)
    ]
    return lambda number: ("POST", f"/v1/tasks/{tasks[number % len(tasks)]}/predict", bodies[number % len(bodies)])


def milliseconds(took: list[float]) -> dict[str, float]:
    """Return the median and the 99 % quantile, in milliseconds."""
    return {
        "p50_ms": round(1000 * statistics.median(took), 1),
        "p99_ms": round(1000 * float(np.quantile(took, 0.99)), 1),
    }


def throughput(seconds: float, connections: int) -> dict[str, Any]:
    """Measure predictions a second, ours and those of others, in turns."""
    found: dict[str, Any] = {"connections": connections}
    others = ["hand", "litserve"]
    if find_spec("litserve") is None:
        found["by_litserve"] = "litserve is not installed: pip install litserve"
        others.remove("litserve")

    async def measured(port: int, pid: int) -> dict[str, Any]:
        tasks = await taught(port, 20)
        await closed_loop([port], connections, 2.0, predictions(tasks))
        pids = [pid, *_below(pid)]
        before, own = [processor(one) for one in pids], time.process_time()
        took, statuses = await closed_loop([port], connections, seconds, predictions(tasks))
        assert statuses[200] > 0.99 * len(took), statuses
        client = time.process_time() - own
        each = [round(1000 * (processor(one) - was) / len(took), 3) for one, was in zip(pids, before)]
        each = [one for one in each if one > 0.001]  # some only watch others
        told = {"per_second": round(len(took) / seconds, 1), **milliseconds(took), "processor_ms": each}
        total = round(1000 / max(sum(each), 1e-9))
        return told | {"per_processor_second": total, "client_ms": round(1000 * client / len(took), 3)}

    with tempfile.TemporaryDirectory() as place:
        run, rounds = _conv4(Path(place)), dict[str, list[dict[str, Any]]]()
        for turn in range(2):
            contenders = {"ours": ours(Path(place) / f"{turn}.db", run)}
            for one in others:
                port = free()
                contenders[f"by_{one}"] = [f"benchmarks.peers.service_by_{one}", str(port)], port
            for name, (words, port) in contenders.items():
                with started(words, port) as service:
                    rounds.setdefault(name, []).append(_run(measured(port, service.process.pid)))
    best = {name: max(own, key=lambda one: one["per_second"]) for name, own in rounds.items()}
    for name in [name for name in best if name != "ours"]:
        for ratio, what in (("ratio", "per_second"), ("ratio_of_processor_time", "per_processor_second")):
            best[name][ratio] = round(best["ours"][what] / best[name][what], 2)
    return found | best


def _run(measured: Coroutine[Any, Any, Value]) -> Value:
    """Run a measurement in the loop that costs least: it is on the same cores."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(measured)
    return uvloop.run(measured)


#: A frozen network, as a user's own file has it: three convolutions at random weights.
_TRUNK = """
import torch
from torch import nn
import headstart

def small():
    torch.manual_seed(0)
    sizes = ((3, 32), (32, 64), (64, 128))
    body = nn.Sequential(*(layer for i, o in sizes for layer in (nn.Conv2d(i, o, 3, 2, 1), nn.ReLU())))
    return headstart.of_images(body, size=32, mean=[0.5] * 3, std=[0.5] * 3)
"""


def behind_trunk(place: Path, method: str) -> Path:
    """Return a run of a method on the features of a frozen network."""
    (place / "net.py").write_text(_TRUNK)
    few = {"evaluate_tasks": 20, "test_tasks": 20, "threads": 1}
    tasks = {"name": "icons", "encoder": f"{place / 'net.py'}:small"}
    headstart.train({"tasks": tasks, "method": method, "outer": {"steps": 1}, "run": few}, place / method)
    return place / method


def _conv4(place: Path) -> Path:
    """Return a run of the literature's network, hardly trained: its answers cost what those of a good one do."""
    model = {"name": "conv4", "filters": 64, "downsample": "pool"}
    few = {"evaluate_tasks": 2, "test_tasks": 2, "threads": 1}
    tree = {"tasks": "icons", "method": "prototypes", "model": model, "outer": {"steps": 1}, "run": few}
    headstart.train(tree, place / "conv4")
    return place / "conv4"


def adapting(seconds: float, rate: float) -> dict[str, Any]:
    """Measure the time to learn a task beside predictions at a rate: by a conv4, and behind a frozen network."""

    async def measured(port: int) -> dict[str, Any]:
        tasks, end = await taught(port, 20), time.monotonic() + seconds
        request, took, beside, statuses = predictions(tasks), list[float](), list[float](), Counter[int]()
        idle = [Connection(port) for _ in range(64)]

        async def timed(ask: Awaitable[tuple[int, bytes]], into: list[float]) -> None:
            began = time.monotonic()
            status, _ = await ask
            into.append(time.monotonic() - began)
            statuses[status] += 1

        async def steady() -> None:
            running, number = set[asyncio.Task[None]](), 0
            while time.monotonic() < end:
                number += 1
                connection = idle.pop() if idle else Connection(port)
                task = asyncio.create_task(timed(connection.ask(*request(number)), beside))
                running.add(task)
                task.add_done_callback(lambda done, own=connection: (running.discard(done), idle.append(own)))
                await asyncio.sleep(1 / rate)
            await asyncio.gather(*running)

        async def teaching() -> None:
            connection, number = Connection(port), 0
            while time.monotonic() < end:
                number += 1
                await timed(connection.ask("POST", "/v1/tasks", examples(number % 50)), took)
                await asyncio.sleep(0.1)

        await asyncio.gather(steady(), teaching())
        return {
            "adapt": milliseconds(took),
            "predict": milliseconds(beside),
            "tasks": len(took),
            "statuses": dict(statuses),
        }

    found: dict[str, Any] = {"predictions_a_second": rate}
    with tempfile.TemporaryDirectory() as place:
        trunks = {f"frozen network, {method}": method for method in ("prototypes", "ridge")}
        for name, run in [("conv4", RUN), *((name, behind_trunk(Path(place), own)) for name, own in trunks.items())]:
            words, port = ours(Path(place) / f"{run.name}.db", run)
            with started(words, port):
                found[name] = _run(measured(port))
    return found


def processor(pid: int) -> float:
    """Return the seconds of the processors that a process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Return the megabytes that a process and its children hold."""
    total = 0
    for one in (pid, *_below(pid)):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except OSError:
            continue
    return round(total / 2**20, 1)


def restart(count: int) -> dict[str, Any]:
    """Measure how soon a service is ready that keeps so many tasks."""
    with tempfile.TemporaryDirectory() as place:
        store = Path(place) / "tasks.db"
        words, port = ours(store)
        with started(words, port) as service:
            (task,) = asyncio.run(taught(port, 1))
            first = service.ready
        _copied(store, task, count)
        with started(words, port) as service:
            before = memory(service.process.pid)

            async def asked() -> int:
                connection, right = Connection(port), 0
                for number in range(0, count, max(1, count // 500)):
                    path, body = f"/v1/tasks/{_copy(number)}/predict", {"inputs": [{"image": drawing(number % 5, 1)}]}
                    status, answer = await connection.ask("POST", path, body)
                    right += (
                        status == 200 and json.loads(answer)["predictions"][0]["prediction"] == f"kind {number % 5}"
                    )
                connection.close()
                return right

            right = asyncio.run(asked())
            after = memory(service.process.pid)
            size = sum(path.stat().st_size for path in Path(place).iterdir()) / 2**20
            return {
                "tasks": count, "seconds": round(service.ready, 2), "seconds_empty": round(first, 2),
                "store_mb": round(size, 1), "asked": len(range(0, count, max(1, count // 500))), "right": right,
                "memory_mb": before, "memory_mb_after": after,
            }  # fmt: skip


def _copy(number: int) -> str:
    return f"{number:026d}"


def _copied(store: Path, task: str, count: int) -> None:
    """Copy a task so often, as if so many had been taught."""
    connection = sqlite3.connect(store)
    tasks = [("tasks", "id, tenant, run, weights, revision, told, support, created, changed")]
    with connection:
        for table, columns in (*tasks, ("parts", "task, part, revision, sha256, data, place")):
            own, _, rest = columns.partition(", ")
            query = f"INSERT INTO {table} ({columns}) SELECT ?, {rest} FROM {table} WHERE {own} = ?"
            connection.executemany(query, ((_copy(number), task) for number in range(count)))
    connection.close()


def soak(seconds: float, every: float, share: float) -> dict[str, Any]:
    """Teach and predict at a share of what the service can while workers are killed, and count what is lost."""
    with tempfile.TemporaryDirectory() as place:
        words, port = ours(Path(place) / "tasks.db")
        with started(words, port) as service:
            known, statuses, kills = asyncio.run(taught(port, 5)), Counter[str](), 0
            sizes, killed, failed = list[tuple[float, float]](), list[float](), list[float]()

            async def teach(end: float) -> None:
                connection, number = Connection(port), 0
                while time.monotonic() < end and number < MOST:
                    number += 1
                    status, body = await connection.ask("POST", "/v1/tasks", examples(number % 50))
                    counted("adapt", status, body)
                    if status == 201:
                        known.append(json.loads(body)["id"])
                    await asyncio.sleep(0.2)
                connection.close()

            def counted(what: str, status: int, body: bytes) -> None:
                if status == 0 or status >= 500:
                    failed.append(time.monotonic())
                    why = json.loads(body)["error"]["message"] if body else "no answer"
                    statuses[f"{what} {status}: {why[:60]}"] += 1
                else:
                    statuses[f"{what} {status}"] += 1

            async def ask(end: float, rate: float) -> None:
                """Ask at a rate, whether answers come or not; so many at once at most, and the others not at all."""
                request, idle, began = predictions(known[:20]), [Connection(port) for _ in range(128)], time.monotonic()
                running, number = set[asyncio.Task[None]](), 0

                async def one(connection: Connection, number: int) -> None:
                    status, body = await connection.ask(*request(number))
                    counted("predict", status, body)
                    idle.append(connection)

                while time.monotonic() < end and number < MOST:
                    due = int((time.monotonic() - began) * rate)
                    while number < due:
                        number += 1
                        if idle:
                            task = asyncio.create_task(one(idle.pop(), number))
                            running.add(task)
                            task.add_done_callback(running.discard)
                        else:
                            statuses["predict not sent"] += 1
                    await asyncio.sleep(0.005)
                await asyncio.gather(*running)

            async def most(seconds: float) -> float:
                """Return how many predictions a second there are, at most, by the same client."""
                request, count, end = predictions(known), 0, time.monotonic() + seconds

                async def one() -> None:
                    nonlocal count
                    connection = Connection(port)
                    while time.monotonic() < end:
                        count += 1
                        await connection.ask(*request(count))
                    connection.close()

                await asyncio.gather(*(one() for _ in range(32)))
                return count / seconds

            async def kill(end: float) -> None:
                nonlocal kills
                while time.monotonic() + every < end:
                    await asyncio.sleep(every)
                    sizes.append((time.monotonic(), memory(service.process.pid)))
                    for pid in _workers(service.process.pid):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(time.monotonic())
                        kills += 1

            async def all_of_it() -> tuple[float, int]:
                rate, end = share * await most(5.0), time.monotonic() + seconds
                await asyncio.gather(teach(end), kill(end), ask(end, rate))
                connection, lost = Connection(port), 0
                body = {"inputs": [{"image": drawing(0, 1)}]}
                for task in known:
                    status, _ = await connection.ask("POST", f"/v1/tasks/{task}/predict", body)
                    lost += status != 200
                return rate, lost

            rate, lost = _run(all_of_it())
            apart = sum(all(not 0 <= at - moment < 5 for moment in killed) for at in failed)
            told = {"seconds": seconds, "rate": round(rate), "kills": kills, "acknowledged": len(known), "lost": lost}
            told |= {"failed": len(failed), "failed_without_a_kill": apart, "statuses": dict(statuses)}
            return told | {"memory_mb": [size for _, size in sizes], "slope_mb_an_hour": _slope(sizes)}


def _slope(sizes: list[tuple[float, float]]) -> float | None:
    """Return by how many megabytes an hour memory grew in the second half."""
    half = sizes[len(sizes) // 2 :]
    return round(3600 * float(np.polyfit(*zip(*half), 1)[0]), 1) if len(half) > 2 else None


def scale(seconds: float, connections: int) -> dict[str, Any]:
    """Measure what more processes give, on these cores, and what each part of a service takes for a request."""
    found: dict[str, Any] = {"connections": connections, "left_out": []}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        run = _conv4(Path(place))
        reason = postgres.lacking() or ("psycopg is not installed" if find_spec("psycopg") is None else None)
        database = None if reason else stack.enter_context(postgres.running())
        found["left_out"] += [f"postgres: {reason}"] if reason else []

        def store(kind: str) -> str:
            return database.empty() if database is not None else str(Path(place) / f"{kind}.db")

        cases: dict[str, tuple[int, list[str]]] = {
            "file, 1 worker": (1, []),
            "file, 2 workers": (1, ["--workers", "2"]),
        }
        if database is not None:
            cases |= {
                "postgres, 1 worker": (1, []),
                "postgres, 2 workers": (1, ["--workers", "2"]),
                "postgres, 2 services": (2, []),
            }
            if find_spec("obstore") is not None:
                cases["postgres and a folder of blobs, 1 worker"] = 1, ["--blobs", (Path(place) / "blobs").as_uri()]
            if find_spec("ray") is not None:
                cases |= {
                    f"ray, {n} + {n} replicas": (1, ["--ray", "--replicas", str(n), "--workers", str(n)])
                    for n in (1, 2)
                }
            else:
                found["left_out"].append("ray: it is not installed")
        for name, (services, more) in cases.items():
            where = str(Path(place) / f"{len(found)}.db") if name.startswith("file") else store(name)
            found[name] = _scaled(where, run, services, more, seconds, connections, database)
            print(json.dumps({name: found[name]}), flush=True)
        found["alone"] = _alone(Path(place), store("alone") if database else None, seconds / 4)
    return found


def _scaled(
    store: str, run: Path, services: int, more: list[str], seconds: float, connections: int, database: Any
) -> dict[str, Any]:
    with ExitStack() as stack:
        running = [stack.enter_context(started(*ours(store, run, *more))) for _ in range(services)]
        ports = [one.port for one in running]
        tasks = asyncio.run(taught(ports[0], 20))
        lessons = [json.dumps(examples(task)).encode() for task in range(50)]

        async def measured(request: Callable[[int], tuple[str, str, bytes]], at_once: int) -> dict[str, Any]:
            await closed_loop(ports, at_once, 1.5, request)
            kinds = {"http": [one.process.pid for one in running]}
            kinds["workers"] = [worker for one in running for worker in _workers(one.process.pid)]
            kinds["database"] = [] if database is None or not store.startswith("postgresql") else database.processes()
            if "--ray" in more:  # whose processes are its own
                kinds = {}
            before = {name: sum(processor(pid) for pid in pids) for name, pids in kinds.items()}
            began = time.monotonic()
            took, statuses = await closed_loop(ports, at_once, seconds, request)
            lasted = time.monotonic() - began  # until the last was answered
            busy = {name: sum(processor(pid) for pid in pids) - before[name] for name, pids in kinds.items()}
            told: dict[str, Any] = {"per_second": round(len(took) / lasted, 1), **milliseconds(took)}
            refused = {status: count for status, count in statuses.items() if status not in (200, 201)}
            told |= {"processor_ms": {name: round(1000 * own / len(took), 2) for name, own in busy.items()}}
            return told | ({"refused": refused} if refused else {})

        return {
            "predict": asyncio.run(measured(predictions(tasks), connections)),
            "learn": asyncio.run(measured(lambda number: ("POST", "/v1/tasks", lessons[number % 50]), 16)),
        }


def _alone(place: Path, url: str | None, seconds: float) -> dict[str, Any]:
    """Measure how many tasks a second stores take in, of so many bytes, without learning any."""
    from headstart.serve.store import Kept, Place, Store, now

    with started(*ours(place / "bytes.db")) as service:
        asyncio.run(taught(service.port, 1))
    rows = sqlite3.connect(place / "bytes.db").execute("SELECT part, data FROM parts").fetchall()
    parts = dict(rows)
    found: dict[str, Any] = {"bytes_of_a_task": sum(map(len, parts.values()))}
    places = {"file": Place(str(place / "alone.db"))}
    if find_spec("obstore") is not None:
        places["file and a folder of blobs"] = Place(str(place / "alone2.db"), (place / "alone").as_uri())
    if url is not None:
        places["postgres"] = Place(url)
    for name, where in places.items():
        store = Store(where)
        end, told = time.monotonic() + seconds, {"name": None, "labels": ["a", "b"]}

        def add(_: int, store: Store = store, end: float = end, told: dict[str, Any] = told) -> int:
            count = 0
            while time.monotonic() < end:
                store.add(Kept(store.new_id(), "me", "run", "w", 1, told, "hash", now(), now()), parts)
                count += 1
            return count

        with ThreadPoolExecutor(8) as several:
            found[name] = round(sum(several.map(add, range(8))) / seconds, 1)
        store.close()
    return found


def _children() -> dict[int, list[int]]:
    """Return the children of each process of the machine."""
    found = dict[int, list[int]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found.setdefault(int(fields[1]), []).append(int(path.parent.name))
    return found


def _workers(pid: int) -> list[int]:
    """Return the processes that compute: children of what PyTorch was loaded in once, which has no work of its own."""
    children = _children()
    return [one for child in children.get(pid, []) for one in children.get(child, [])]


def _below(pid: int) -> list[int]:
    """Return the children of a process, and theirs, and so on."""
    children, found = _children(), [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def main() -> None:
    """Measure, print, and keep what came of it."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    reader.formatter_class = argparse.RawDescriptionHelpFormatter
    reader.add_argument("--only", choices=PARTS, action="append", help="parts; default: all")
    reader.add_argument("--seconds", type=float, default=20.0, help="how long each part measures")
    reader.add_argument("--connections", type=int, default=64, help="for the throughput")
    reader.add_argument("--rate", type=float, default=50.0, help="predictions a second beside adapting")
    reader.add_argument("--tasks", type=int, default=10_000, help="kept when it starts again")
    reader.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    reader.add_argument("--share", type=float, default=0.8, help="of what the service can, for the soak")
    reader.add_argument("--out", type=Path, help="a folder for service.json")
    asked = reader.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(asked.seconds, asked.connections),
        "adapt": lambda: adapting(asked.seconds, asked.rate),
        "restart": lambda: restart(asked.tasks),
        "soak": lambda: soak(asked.seconds, asked.every, asked.share),
        "scale": lambda: scale(asked.seconds, asked.connections),
    }
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "disk_free_gb": shutil.disk_usage(tempfile.gettempdir()).free // 10**9,
    }
    for name in asked.only or PARTS:
        load = os.getloadavg()[0]
        found[name] = parts[name]() | {"load_before": round(load, 1)}
        print(json.dumps({name: found[name]}), flush=True)
    if asked.out is not None:
        make_folder(asked.out)
        write(asked.out / "service.json", to_json(found))


if __name__ == "__main__":
    main()
