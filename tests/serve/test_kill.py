"""Whatever is killed, at whatever moment: nothing that was acknowledged is lost, and the service goes on."""

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from headstart.errors import ConfigError
from headstart.serve.contract import Limits
from headstart.serve.server import running
from headstart.serve.state import State
from tests.serve.conftest import Http

TEXTS = [{"label": label, "text": f"{label} {place}"} for label in ("card", "refund") for place in range(2)]
ASKED = {"inputs": [{"text": "my card"}]}


def waited(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_replaced_and_what_it_was_asked_is_answered(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, state):
        ask = Http(url)
        task = ask("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        row = ask("POST", f"/v1/tasks/{task}/predict", ASKED).json
        for _ in range(2):
            first = state.pool.processes[0].pid
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                asked = other.submit(ask, "POST", "/v1/tasks", {"examples": TEXTS})
                waited(lambda: state.pool.waiting == 0)
                os.kill(first, signal.SIGKILL)
                assert asked.result(60).status == 201
            assert ask("POST", f"/v1/tasks/{task}/predict", ASKED).json == row
            assert state.pool.processes[0].pid != first
        assert "headstart_worker_restarts_total 2.0" in ask("GET", "/metrics").body.decode()
        assert len(ask("GET", "/v1/tasks").json["tasks"]) == 3


def test_a_second_service_on_a_file_is_refused_until_the_first_one_has_ended(settings_of, tmp_path):
    settings = settings_of(tmp_path / "tasks.db", ("ngrams",))
    with running(settings), pytest.raises(ConfigError, match=r"another service keeps its tasks in .*tasks\.db"):
        State(settings)
    State(settings).close()


def test_an_idle_worker_that_dies_is_replaced_before_anybody_asks(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, state):
        first = state.pool.processes[0].pid
        os.kill(first, signal.SIGKILL)
        waited(lambda: state.pool.processes[0] is not None and state.pool.processes[0].pid != first)
        waited(lambda: Http(url)("GET", "/readyz").status == 200)


def test_what_takes_too_long_is_ended_in_the_worker(settings_of, tmp_path):
    limits = Limits(adapt_seconds=120, predict_seconds=1)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, state):
        ask = Http(url)
        task = ask("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        stopped = state.pool.processes[0].pid
        os.kill(stopped, signal.SIGSTOP)  # as a computation that does not end
        answer = ask("POST", f"/v1/tasks/{task}/predict", ASKED)
        assert answer.status == 503 and answer.json["error"]["type"] == "DeadlineError"
        assert answer.headers["retry-after"]
        waited(lambda: ask("POST", f"/v1/tasks/{task}/predict", ASKED).status == 200)
        with pytest.raises(ProcessLookupError):
            os.kill(stopped, 0)


def started(*words):
    """Start a service as a user does, and return the process and its address."""
    command = [sys.executable, "-m", "headstart", "serve", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    return process, Http(line.split()[2])


def test_a_service_that_is_killed_goes_on_where_it_was_and_one_that_is_told_to_end_drains(tmp_path):
    store = tmp_path / "tasks.db"
    words = ("ngrams", "--port", 0, "--store", store, "--drain", 2)
    process, ask = started(*words)
    made = []
    try:
        made += [ask("POST", "/v1/tasks", {"examples": TEXTS}).json["id"] for _ in range(2)]
        row = ask("POST", f"/v1/tasks/{made[0]}/predict", ASKED).json
        asking = threading.Thread(target=lambda: _ask_quietly(ask, made))
        asking.start()
        time.sleep(0.3)
    finally:
        process.kill()
        process.wait()
        asking.join(60)
        process.stdout.close()
    process, ask = started(*words)
    try:
        assert set(made) <= {one["id"] for one in ask("GET", "/v1/tasks").json["tasks"]}
        assert ask("POST", f"/v1/tasks/{made[0]}/predict", ASKED).json == row
        process.send_signal(signal.SIGTERM)
        waited(lambda: ask("GET", "/readyz").status == 503, 2)
        assert ask("POST", f"/v1/tasks/{made[0]}/predict", ASKED).json == row
        assert process.wait(60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    host, port = ask.url.removeprefix("http://").split(":")
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), 1).close()


def _ask_quietly(ask, made):
    """Ask for a task while the service is killed: it is there where it was acknowledged."""
    try:
        answer = ask("POST", "/v1/tasks", {"examples": TEXTS})
    except OSError:
        return
    if answer.status == 201:
        made.append(answer.json["id"])
