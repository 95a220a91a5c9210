import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from headstart.data.images.download import cache_dir, download, sha256_of
from headstart.errors import FileError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; ``server.cuts`` lists after how many bytes to hang up, one for each coming request."""

    def do_GET(self):
        self.server.seen.append(self.headers.get("Range"))
        if self.server.status:
            self.send_error(self.server.status.pop(0))
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)
        self.close_connection = True

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.cuts, server.status, server.ranges = [], [], [], True
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


def part_of(path):
    return path.with_name("data.zip.part")


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, path, capsys):
    assert download(server.url, path, SHA256) == path
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()
    assert capsys.readouterr().err == f"downloading {server.url}\n"
    download(server.url, path, SHA256)
    assert server.seen == [None]


def test_a_cut_connection_is_resumed_where_it_broke(server, path):
    server.cuts = [300_000, 200_000]
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.seen == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_call_goes_on_from_what_was_kept(server, path):
    server.cuts = [100_000, 0, 0]
    with pytest.raises(FileError, match="connection was cut.*run again to go on"):
        download(server.url, path, SHA256)
    assert part_of(path).read_bytes() == CONTENT[:100_000]
    assert not path.exists()
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.seen[-1] == "bytes=100000-"


def test_a_server_without_ranges_starts_over(server, path):
    server.ranges, server.cuts = False, [300_000]
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.seen == [None, "bytes=300000-"]


def test_a_part_that_is_whole_already_is_not_fetched(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.seen == []


def test_a_part_longer_than_the_file_is_thrown_away(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT + b"more")
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [b"", b"not the beginning"])
def test_a_wrong_checksum_is_an_error_and_the_file_is_removed(server, path, kept):
    path.parent.mkdir()
    part_of(path).write_bytes(kept)
    wrong = SHA256 if kept else "0" * 64
    with pytest.raises(FileError, match=f"is not the expected file.*expected {wrong}.*removed"):
        download(server.url, path, wrong)
    assert not path.exists() and not part_of(path).exists()


def test_a_damaged_file_is_replaced(server, path):
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    download(server.url, path, SHA256)
    assert sha256_of(path) == SHA256


def test_without_a_network_the_error_names_the_address_and_the_alternative(path):
    with pytest.raises(FileError) as caught:
        download("http://127.0.0.1:9/data.zip", path, SHA256, instead="Pass --data DIR.")
    assert "cannot download http://127.0.0.1:9/data.zip" in str(caught.value)
    assert str(caught.value).endswith("Pass --data DIR.")
    assert not path.exists() and not part_of(path).exists()


def test_a_status_of_the_server_is_shown_and_a_passing_one_tried_again(server, path):
    server.status = [503]
    download(server.url, path, SHA256)
    path.unlink()
    server.seen.clear()
    server.status = [404]
    with pytest.raises(FileError, match="HTTP status 404"):
        download(server.url, path, SHA256)
    assert server.seen == [None]


def test_a_folder_that_cannot_be_made_is_a_file_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        download(server.url, tmp_path / "file" / "data.zip", SHA256)


def test_two_at_once_fetch_once(server, path):
    threads = [threading.Thread(target=download, args=(server.url, path, SHA256)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() == CONTENT
    assert server.seen == [None]


def test_a_terminal_gets_a_bar(server, path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    download(server.url, path, SHA256)
    shown = capsys.readouterr().err
    assert "data.zip" in shown and "1.0/1.0 MB" in shown


def test_the_cache_folder_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "headstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "headstart"
