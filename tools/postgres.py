"""A PostgreSQL server of one's own, in a temporary folder, reached by a socket in it: for tests and measurements.

``python tools/postgres.py`` starts one, prints its URL, and ends it with Ctrl-C.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, ``None`` where there is none on this machine."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((folder for folder in folders if (folder / "psql").exists()), None)


def lacking() -> str | None:
    """Return why no server can be started here, ``None`` where one can."""
    if programs() is None:
        return "there is no PostgreSQL (apt-get install postgresql)"
    if os.name == "posix" and os.getuid() == 0 and _other_user() is None:
        return "PostgreSQL is not run by root, and there is no user postgres"
    return None


def _other_user() -> int | None:
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_uid
    return None


class Server:
    """A server that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        self._user = {"user": _other_user()} if os.getuid() == 0 else {}
        if self._user:
            os.chown(folder, self._user["user"], -1)
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-instructions", "-N")
        self.start()

    def _run(self, program: str, *words: object) -> str:
        place = programs()
        assert place is not None, lacking()
        command = [str(place / program), *map(str, words)]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=120, **self._user)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout[-1000:]} {done.stderr[-1000:]}")
        return done.stdout

    def start(self) -> None:
        """Start it, and wait until it answers."""
        place = programs()
        assert place is not None
        words = [str(place / "postgres"), "-D", str(self._data)]
        words += ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self._folder}"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, cwd=self._folder, stdout=log, stderr=log, **self._user)
        for _ in range(600):
            with contextlib.suppress(RuntimeError):
                self._run("pg_isready", "-q", "-h", self._folder)
                return
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        raise RuntimeError("the server does not answer")

    def stop(self, crash: bool = False) -> None:
        """End it; ``crash``: without bringing to rest what it does."""
        self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
        self._process.wait(60)

    def processes(self) -> list[int]:
        """Return the numbers of its processes that run now."""
        words = ["ps", "-o", "pid=", "--ppid", str(self._process.pid)]
        found = subprocess.run(words, capture_output=True, text=True).stdout.split()
        return [self._process.pid, *map(int, found)]

    def sql(self, query: str) -> str:
        """Run statements, and return what they print."""
        return self._run("psql", "-h", self._folder, "-U", "postgres", "-Atqc", query).strip()

    def url(self, schema: str, more: str = "") -> str:
        """Return a URL by which names are those of a schema; ``more``: a setting of its sessions, ``name=value``."""
        settings = " ".join(f"-c {setting}" for setting in (f"search_path={schema}", more) if setting)
        return f"postgresql://postgres@/postgres?host={self._folder}&options={quote(settings)}"

    def empty(self) -> str:
        """Return the URL of a place without tables: a schema of its own, which costs less than a database."""
        schema = f"tasks_{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE SCHEMA {schema}")
        return self.url(schema)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Start a server, and end it and all that it held."""
    # a short path: that of a socket has 107 letters at most
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp" if os.name == "posix" else None))
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop(crash=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if reason := lacking():
        sys.exit(reason)
    with running() as found:
        print(found.empty(), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
