import contextlib
import hashlib
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headstart.cache import cache_dir, sha256_of
from headstart.data.images import download as module
from headstart.errors import FileError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
download = partial(module.download, most=len(CONTENT))


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; of each coming request, ``server.answers`` has a status, or after how many bytes to hang up."""

    def do_GET(self):
        self.server.asked += 1
        answer = self.server.answers.pop(0) if self.server.answers else len(CONTENT)
        if answer in (404, 503):
            self.send_error(answer)
            return
        self.send_response(200)
        if self.server.length is not None:
            self.send_header("Content-Length", self.server.length)
        self.end_headers()
        for start in range(0, answer, 100_000):
            with contextlib.suppress(ConnectionError):  # who asked may have had enough
                self.wfile.write(CONTENT[start : min(start + 100_000, answer)])
                self.wfile.flush()
                time.sleep(self.server.pause)
        self.close_connection = True

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers, server.length, server.pause = 0, [], str(len(CONTENT)), 0.0
    server.url = f"http://127.0.0.1:{server.server_port}/data.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "data.zip"


@pytest.mark.parametrize(("answers", "asked"), [([], 1), ([300_000], 2), ([0, 503], 3)])
def test_a_file_arrives_whole_and_is_not_fetched_twice(server, path, capsys, answers, asked):
    server.answers = answers
    assert download(server.url, path, SHA256) == path
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["data.zip"]
    assert capsys.readouterr().err == f"downloading {server.url}\n"
    download(server.url, path, SHA256)
    assert server.asked == asked


def test_a_damaged_file_is_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    download(server.url, path, SHA256)
    assert sha256_of(path) == SHA256


@pytest.mark.parametrize(
    ("answers", "sha256", "message", "asked"),
    [
        ([1000, 1000, 1000], SHA256, "the connection was cut", 3),
        ([404], SHA256, "HTTP status 404", 1),
        ([], "0" * 64, f"is not the expected file.*expected {'0' * 64}. It was removed", 1),
    ],
)
def test_what_does_not_arrive_leaves_nothing(server, path, answers, sha256, message, asked):
    server.answers = answers
    with pytest.raises(FileError, match=f"{message}.*Pass --data DIR."):
        download(server.url, path, sha256, instead="Pass --data DIR.")
    assert server.asked == asked and list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "most", "message"),
    [
        ("many", len(CONTENT), "it is said to have 'many' bytes"),
        ("-5", len(CONTENT), "it is said to have '-5' bytes"),
        ("9" * 400, len(CONTENT), "it is said to have '9999"),
        (str(10**12), len(CONTENT), "it has 1000000000000 bytes, and 1024000 are the most"),
        (None, 500_000, "it has more than the 500000 bytes"),
        (str(len(CONTENT) + 1), 2 * len(CONTENT), "the connection was cut"),
        ("1000", len(CONTENT), "is not the expected file"),
    ],
)
def test_sizes_that_are_wrong_or_too_large_end_it(server, path, length, most, message):
    server.length = length
    with pytest.raises(FileError, match=message):
        download(server.url, path, SHA256, most=most)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("limit", [{"_MOST_SECONDS": 0.03}, {"_TIMEOUT_SECONDS": 0.2, "_BYTES_A_SECOND": 10**8}])
def test_what_is_too_slow_ends(server, path, monkeypatch, limit):
    server.pause = 0.05
    for name, value in limit.items():
        monkeypatch.setattr(module, name, value)
    with pytest.raises(FileError, match="it is too slow, with .* bytes in 0 seconds"):
        download(server.url, path, SHA256)
    assert server.asked == 1 and list(path.parent.iterdir()) == []


def test_an_address_or_a_folder_that_is_not_there_is_named(path, tmp_path):
    with pytest.raises(FileError, match="cannot download http://127.0.0.1:9/data.zip"):
        download("http://127.0.0.1:9/data.zip", path, SHA256)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        download("http://127.0.0.1:9/data.zip", tmp_path / "file" / "data.zip", SHA256)


def test_the_cache_folder_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "headstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "headstart"
