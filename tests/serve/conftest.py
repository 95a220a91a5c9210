"""A service that runs, with runs so small that they cost nothing; skipped where the extra is not installed."""

import io
import json
import urllib.error
import urllib.request
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

NEEDED = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")
LACKING = [name for name in NEEDED if find_spec(name) is None]
if LACKING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    return f"tests/serve is left out: the extra serve is not installed ({', '.join(LACKING)})" if LACKING else None


def drawing(shape, seed=0):
    """Return a PNG of a black cross, square or bar on white, drawn a little differently by each seed."""
    random = np.random.default_rng(seed)
    pixels = np.full((40, 40), 255, np.uint8)
    left, top, width = random.integers(4, 9), random.integers(4, 9), random.integers(3, 6)
    if shape == "cross":
        pixels[top : top + 28, 18 : 18 + width] = 0
        pixels[18 : 18 + width, left : left + 28] = 0
    elif shape == "square":
        pixels[top : top + 28, left : left + 28] = 0
    else:
        pixels[18 : 18 + 2 * width, 2:38] = 0
    return png(pixels)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict

    @property
    def json(self):
        return json.loads(self.body)


class Http:
    """Asks a service, as bytes go over the wire; errors are answers like others."""

    def __init__(self, url, token=None):
        self.url, self.token = url, token

    def __call__(self, method, path, body=None, headers=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()})
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), {k.lower(): v for k, v in error.headers.items()})


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of our own; skipped where there is none."""
    from tools import postgres

    reason = postgres.lacking() or next(
        (
            f"the extra postgres is not installed ({name})"
            for name in ("psycopg", "psycopg_pool")
            if not find_spec(name)
        ),
        None,
    )
    if reason:
        pytest.skip(reason)
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def s3():
    """A bucket of a server on this machine that speaks as S3 does, as ``s3://``; skipped where there is none."""
    import socket
    import subprocess
    import sys
    import time

    for name, extra in (("obstore", "blobs"), ("moto", "dev")):
        if not find_spec(name):
            pytest.skip(f"{name} is not installed (extra {extra})")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    own = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1"}
    own |= {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "not checked"}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in own.items():
                patch.setenv(name, value)
            try:
                for _ in range(300):
                    try:
                        request = urllib.request.Request(f"{own['AWS_ENDPOINT_URL']}/tasks", method="PUT")
                        urllib.request.urlopen(request, timeout=5).close()
                        break
                    except OSError:
                        time.sleep(0.1)
                yield "s3://tasks"
            finally:
                server.kill()


KEEPERS = ("sqlite", "postgres", "sqlite+files", "postgres+s3")


@pytest.fixture(params=KEEPERS)
def place(request, tmp_path):
    """A place to keep tasks in, of each sort."""
    import uuid

    from headstart.serve.store import Place

    database, _, blobs = request.param.partition("+")
    if blobs == "files":
        pytest.importorskip("obstore", reason="the extra blobs is not installed")
    url = request.getfixturevalue("postgres").empty() if database == "postgres" else str(tmp_path / "tasks.db")
    where = {"": None, "files": (tmp_path / "blobs").as_uri()}.get(blobs)
    if blobs == "s3":
        where = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    return Place(url, where)


@pytest.fixture(scope="session")
def demo_run():
    """The run of built-in icons that comes with the package."""
    from pathlib import Path

    import headstart

    return Path(headstart.__file__).parent / "serve" / "demo" / "icons"


@pytest.fixture(scope="session")
def curves_run(tmp_path_factory):
    """A run of sine curves, whose rows are x and y, and whose answers are numbers with intervals."""
    import headstart

    run = tmp_path_factory.mktemp("runs") / "curves"
    tree = {"tasks": "sinusoid", "method": "gaussian_process", "outer": {"steps": 1}}
    headstart.train({**tree, "run": {"evaluate_tasks": 2, "test_tasks": 2, "threads": 1}}, run)
    return run


@pytest.fixture(scope="session")
def tables_run(tmp_path_factory):
    """Make a run of a table of 8 units with the columns x, food and a target: y, or the class ill."""
    import headstart

    place = tmp_path_factory.mktemp("tables")
    lines = [f"u{unit},{x},{'hay' if x % 2 else 'corn'},{unit * x},{x > 3}" for unit in range(1, 9) for x in range(8)]
    (place / "rows.csv").write_text("\n".join(["unit,x,food,y,ill", *lines]))

    def made(method, target, **outer):
        run, columns = place / f"{method}-{target}", "x,food"
        if not run.exists():
            tasks = {"name": "table", "data": str(place / "rows.csv"), "task_column": "unit", "columns": columns}
            short = {"threads": 1, "evaluate_tasks": 2, "test_tasks": 2}
            tree = {"tasks": {**tasks, "target": target, "shots": 2}, "method": method, "run": short}
            headstart.train({**tree, "outer": outer} if outer else tree, run)
        return run

    return made


@pytest.fixture(scope="session")
def settings_of(demo_run, curves_run):
    """Make settings of a service with three runs: images, texts, rows."""
    from headstart.serve.app import Settings
    from headstart.serve.contract import Limits
    from headstart.serve.work import Work

    def made(store, sources=None, limits=None, memory=2**26, **others):
        runs = (str(demo_run), "ngrams", str(curves_run)) if sources is None else sources
        # the machine that tests run on may be busy
        limits = limits or Limits(adapt_seconds=120, predict_seconds=60)
        return Settings(Work(runs, str(store), "cpu", 1, memory, limits), **others)

    return made


@pytest.fixture(scope="module")
def service(settings_of, tmp_path_factory):
    """A service of the three runs, and what it holds."""
    from headstart.serve.server import running

    with running(settings_of(tmp_path_factory.mktemp("store") / "tasks.db")) as (url, state):
        yield Http(url), state


@pytest.fixture(scope="session")
def shapes():
    """Examples of three classes of drawings, as JSON has them."""
    import base64

    return [
        {"label": shape, "image": base64.b64encode(drawing(shape, seed)).decode()}
        for shape in ("bar", "cross", "square")
        for seed in range(3)
    ]
