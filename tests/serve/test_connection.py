"""A connection ends, whatever who asks does or does not; one that is used is left alone."""

import contextlib
import http.client
import socket
import threading
import time

import pytest
import uvicorn

from headstart.serve.connection import bounded
from headstart.serve.contract import Limits
from headstart.serve.server import bound, running
from tests.serve.conftest import Http

HEAD = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
LARGE = 20_000_000


async def app(scope, receive, send):
    """Answer without looking at the body; with much where that is asked for."""
    body = bytes(LARGE if scope["path"] == "/large" else 10)
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve():
    """Start a server whose connections are held to limits, and return its port."""
    with contextlib.ExitStack() as stack:

        def started(**limits):
            listening = stack.enter_context(bound("127.0.0.1", 0))
            config = uvicorn.Config(app, http=bounded(Limits(**limits)), lifespan="off", log_config=None, ws="none")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listening],))
            thread.start()
            stack.callback(thread.join, 20)
            stack.callback(setattr, server, "should_exit", True)
            return listening.getsockname()[1]

        yield started


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def ended(connection, trickle=b""):
    """Return what came until the service closed the connection, to which bytes are sent in the meantime."""
    found, until = b"", time.monotonic() + 10
    connection.settimeout(0.1)
    while time.monotonic() < until:
        try:
            if not (some := connection.recv(65536)):
                return found
            found += some
        except TimeoutError:
            with contextlib.suppress(OSError):
                connection.sendall(trickle)
        except ConnectionError:
            return found
    raise AssertionError("the connection is open still")


def test_a_service_gives_up_heads_that_come_to_no_end(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), Limits(head_seconds=1.0))) as (url, _):
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(connect(int(url.rpartition(":")[2]))) for _ in range(300)]
            for one in many:
                one.sendall(HEAD)
            assert Http(url)("GET", "/livez").status == 200
            for one in many:
                assert b" 408 " in ended(one)


@pytest.mark.parametrize("begun", [b"", b"GET /li", HEAD, HEAD + b"x: y"])
def test_a_head_that_comes_to_no_end_is_given_up(serve, begun):
    with connect(serve(head_seconds=0.3)) as one:
        one.sendall(begun)
        found = ended(one)
    assert (b" 408 " in found and b"SlowError" in found) if begun else not found


def test_bytes_in_between_keep_no_connection_open(serve):
    port = serve(head_seconds=0.3)
    with connect(port) as one:
        one.sendall(b"GET / HTTP/1.1\r\n")
        assert b" 408 " in ended(one, b"x: y\r\n")
    with connect(port) as one:  # of a body that nobody reads
        one.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        assert ended(one, b"x").count(b"HTTP/1.1") == 1


def test_a_head_without_end_is_refused(serve):
    with connect(serve()) as one:
        one.sendall(HEAD)
        time.sleep(0.1)
        one.sendall(b"x" * 60_000)
        time.sleep(0.1)
        one.sendall(b"x" * 10_000)
        assert b" 431 " in ended(one)


def test_a_connection_that_is_used_is_kept(serve):
    port = serve(head_seconds=0.2, body_seconds=0.2)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.connect()
    before = connection.sock
    for _ in range(4):
        connection.request("GET", "/large")
        assert len(connection.getresponse().read()) == LARGE
        time.sleep(0.3)
    assert connection.sock is before
    connection.close()
    with connect(port) as one:  # heads that are long together
        one.sendall((HEAD + b"x: " + b"y" * 10_000 + b"\r\n\r\n") * 20 + HEAD + b"Connection: close\r\n\r\n")
        assert ended(one).count(b" 200 OK") == 21


def test_who_takes_no_answer_is_cut_off_and_who_takes_it_slowly_is_not(serve):
    port = serve(body_seconds=0.5)
    with connect(port) as idle, connect(port) as slow:
        for one in (idle, slow):
            one.sendall(HEAD.replace(b"/", b"/large", 1) + b"\r\n")
        taken, began = 0, time.monotonic()
        while taken < LARGE:
            some = slow.recv(2**16)
            assert some, "it was cut off"
            taken += len(some)
            time.sleep(0.01)
        assert time.monotonic() - began > 1, "it was not slow"
        assert len(ended(idle)) < LARGE


def test_more_connections_than_there_may_be_are_closed(serve):
    port = serve(connections=3)
    with contextlib.ExitStack() as stack:
        some = [stack.enter_context(connect(port)) for _ in range(3)]
        some[-1].sendall(HEAD + b"\r\n")
        assert b" 200 " in some[-1].recv(65536)
        with connect(port) as more:
            assert ended(more) == b""
        some.pop(0).close()
        time.sleep(0.2)
        with connect(port) as other:
            other.sendall(HEAD + b"\r\n")
            assert b" 200 " in other.recv(65536)
