import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headstart.data.images.download import cache_dir, download, sha256_of
from headstart.errors import FileError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; of each coming request, ``server.answers`` has a status, or after how many bytes to hang up."""

    def do_GET(self):
        self.server.asked += 1
        answer = self.server.answers.pop(0) if self.server.answers else len(CONTENT)
        if answer in (404, 503):
            self.send_error(answer)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:answer])
        self.close_connection = True

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = 0, []
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


def test_an_address_or_a_folder_that_is_not_there_is_named(path, tmp_path):
    with pytest.raises(FileError, match="cannot download http://127.0.0.1:9/data.zip"):
        download("http://127.0.0.1:9/data.zip", path, SHA256)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        download("http://127.0.0.1:9/data.zip", tmp_path / "file" / "data.zip", SHA256)


def test_the_cache_folder_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "headstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "headstart"
