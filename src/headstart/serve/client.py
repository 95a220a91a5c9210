"""A service from Python: the same calls as at home, ``adapt`` and ``predict``, of tasks that are kept there.

Only the standard library speaks to the service; files are read as `headstart.adapt` and `headstart.predict` read them.
"""

import base64
import http.client
import io
import json
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from headstart import errors
from headstart.errors import DataError, HeadstartError, UsageError

#: How often what a busy service refuses, or a connection that broke, is tried.
_TIMES = 4
#: Of a request's limit, what the JSON around images takes.
_ROOM = 0.9


class ServiceError(HeadstartError):
    """What a service answered instead, or that it did not."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Task(NamedTuple):
    """A task that a service has learned."""

    id: str
    run: str
    name: str | None
    kind: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    estimate: Mapping[str, Any] | None
    """How many of the examples are told right by the others."""
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Task":
        """Return what a service tells of a task."""
        names = cls._fields
        return cls._make(tuple(told[name]) if isinstance(told[name], list) else told[name] for name in names)


class Client:
    """Speaks to a service.

    ::

        client = headstart.Client("http://127.0.0.1:8000")
        task = client.adapt("icons", "my_classes/")
        rows = client.predict(task, "photos/")
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0) -> None:
        """Say where the service is; nothing is sent yet.

        Raises:
            UsageError: no such address.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is no address of a service; expected one such as http://127.0.0.1:8000")
        self._parts, self._timeout = parts, timeout
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._limits: dict[str, Any] | None = None

    def limits(self) -> dict[str, Any]:
        """Return what is served, and what a request may hold."""
        if self._limits is None:
            self._limits = self._ask("GET", "/v1/limits")
        return self._limits

    def adapt(self, run: str | None, source: Any, *, name: str | None = None) -> Task:
        """Let the service learn a new task.

        Args:
            run: by which of its runs; ``None`` where there is one.
            source: a folder of class folders of images, a file of texts and labels or of rows; or values: a mapping
                from labels to images (files, bytes, PIL) or texts, or a list of rows.
            name: what to call it.

        Raises:
            DataError, UsageError: what `headstart.adapt` would say.
            ServiceError: the service refuses, or does not answer.
        """
        told = {"run": run, "name": name, "examples": self._examples(self._kind(run), source)}
        return Task.of(self._ask("POST", "/v1/tasks", {key: one for key, one in told.items() if one is not None}))

    def add(self, task: Task | str, source: Any) -> Task:
        """Let it learn from more examples, which may be of new classes, as `adapt` takes them."""
        own = self._task(task)
        return Task.of(
            self._ask("POST", f"/v1/tasks/{own.id}/examples", {"examples": self._examples(own.kind, source)})
        )

    def predict(
        self, task: Task | str, sources: Any, *, reject: float | None = None, unknown_share: float | None = None
    ) -> list[dict[str, Any]]:
        """Predict as `headstart.predict` does: files, folders and globs, or values.

        Args:
            task: that was learned.
            sources: what to predict.
            reject: which share of examples of the classes may be called none of them, at most. By default none is.
            unknown_share: which share of what is asked is of none of the classes, as far as you know. By default what
                the service was started with.

        Returns:
            A dict for each input, in order: what it was, and the answer.
        """
        own, found = self._task(task), list[dict[str, Any]]()
        for some in self._parcels(self._inputs(own.kind, sources)):
            shares = {"reject": reject, "unknown_share": unknown_share}
            body = {"inputs": [one for _, one in some]} | {name: one for name, one in shares.items() if one is not None}
            rows = self._ask("POST", f"/v1/tasks/{own.id}/predict", body)["predictions"]
            found += [{**beside, **row} for (beside, _), row in zip(some, rows)]
        return found

    def tasks(self) -> Iterator[Task]:
        """Yield all tasks, the oldest first."""
        after = ""
        while True:
            told = self._ask("GET", f"/v1/tasks?after={after}")
            yield from map(Task.of, told["tasks"])
            if told["next"] is None:
                return
            after = told["next"]

    def remove(self, task: Task | str, label: str) -> Task:
        """Let it forget a class."""
        quoted = urllib.parse.quote(label, safe="")
        return Task.of(self._ask("DELETE", f"/v1/tasks/{self._id(task)}/classes/{quoted}"))

    def delete(self, task: Task | str) -> None:
        """Delete a task, and all that was kept of it."""
        self._ask("DELETE", f"/v1/tasks/{self._id(task)}")

    def export(self, task: Task | str, to: str = "onnx") -> bytes:
        """Return a task as a zip of files for elsewhere."""
        return cast(bytes, self._ask("GET", f"/v1/tasks/{self._id(task)}/export?to={urllib.parse.quote(to)}"))

    def close(self) -> None:
        """Close the connection; a later call opens another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @staticmethod
    def _id(task: Task | str) -> str:
        return urllib.parse.quote(task if isinstance(task, str) else task.id, safe="")

    def _task(self, task: Task | str) -> Task:
        return Task.of(self._ask("GET", f"/v1/tasks/{self._id(task)}")) if isinstance(task, str) else task

    def _kind(self, run: str | None) -> str:
        runs = {one["name"]: one["kind"] for one in self.limits()["runs"]}
        if run is None and len(runs) == 1:
            return next(iter(runs.values()))
        return errors.pick("run", str(run), runs)

    def _examples(self, kind: str, source: Any) -> list[dict[str, Any]]:
        if isinstance(source, str | Path):
            return list(_examples_in(kind, Path(source)))
        if isinstance(source, Mapping):
            return [{"label": label, **_input(kind, one)} for label, own in source.items() for one in own]
        if kind != "tables":
            raise UsageError(f"expected a file or folder, or a mapping from labels to {kind}")
        return [_input(kind, row) for row in source]

    def _inputs(self, kind: str, sources: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        one = isinstance(sources, (str, Path, bytes, Mapping)) or not isinstance(sources, Iterable)
        given: Iterable[Any] = [sources] if one else sources
        for source in given:
            if isinstance(source, Path) or isinstance(source, str) and (kind != "text" or Path(source).exists()):
                yield from _inputs_in(kind, str(source))
            else:
                beside = {"text": source} if kind == "text" else dict(source) if kind == "tables" else {}
                yield beside, _input(kind, source)

    def _parcels(self, inputs: Iterable[tuple[Any, Any]]) -> Iterator[list[tuple[Any, Any]]]:
        """Yield as many inputs as a request may have."""
        limits, some, size = self.limits(), list[tuple[Any, Any]](), 0
        for one in inputs:
            own = len(json.dumps(one[1])) + 2
            if some and (len(some) >= limits["queries"] or size + own > _ROOM * limits["body_bytes"]):
                yield some
                some, size = [], 0
            some.append(one)
            size += own
        if some:
            yield some

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the service, again where it is busy or does not answer: what was done is not done twice."""
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        headers = dict(self._headers)
        if method != "GET":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        if data is not None:
            headers["Content-Type"] = "application/json"
        told: Exception | None = None
        for attempt in range(_TIMES):
            try:
                with self._lock:
                    answer, found = self._sent(method, path, data, headers)
            except (OSError, http.client.HTTPException) as error:
                told = error
                time.sleep(0.2 * 2**attempt)
                continue
            if answer.status in (429, 503) and attempt < _TIMES - 1:
                time.sleep(min(float(answer.headers.get("Retry-After") or 1), 10.0))
                continue
            return _answer(answer, found)
        where = self._parts.netloc.rpartition("@")[2]
        raise ServiceError(f"the service at {where} does not answer ({told}); does it run?") from told

    def _sent(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection is None:
            host, port = cast(str, self._parts.hostname), self._parts.port
            if self._parts.scheme == "https":
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=context)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        try:
            self._connection.request(method, self._parts.path.rstrip("/") + path, data, headers)
            answer = self._connection.getresponse()
            return answer, answer.read()
        except BaseException:
            self._connection.close()
            self._connection = None
            raise


def _answer(answer: http.client.HTTPResponse, body: bytes) -> Any:
    if answer.status < 300:
        json_ = (answer.headers.get("Content-Type") or "").startswith("application/json")
        return json.loads(body) if body and json_ else body
    try:
        told = json.loads(body)["error"]
        kind, message = str(told["type"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = "", f"the service answered {answer.status}"
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, HeadstartError) and answer.status == 422:
        raise known(message)
    raise ServiceError(message, answer.status)


def _input(kind: str, value: Any) -> dict[str, Any]:
    if kind == "tables":
        return {"row": dict(value)}
    if kind == "text":
        if not isinstance(value, str):
            raise DataError(f"a {type(value).__name__} is no text")
        return {"text": value}
    if isinstance(value, str | Path):
        value = Path(value).read_bytes()
    if not isinstance(value, bytes):
        from headstart.data.images.folder import pictures

        (picture,) = pictures(value)
        file = io.BytesIO()
        picture.save(file, "PNG")
        value = file.getvalue()
    return {"image": base64.b64encode(value).decode()}


def _examples_in(kind: str, source: Path) -> Iterator[dict[str, Any]]:
    """Yield the examples of one task that a file or folder holds."""
    if kind == "tables":
        yield from (_input(kind, row) for row in _rows(source))
    elif kind == "text":
        from headstart.data.text.read import read_texts

        found = read_texts(source)
        if not found.labels:
            raise DataError(f"{source} has no column of labels")
        yield from ({"label": label, "text": text} for label, text in zip(found.labels, found.texts))
    else:
        from headstart.data.images.folder import image_files, task_folders

        folders = task_folders(source)
        if len(folders) > 1 or not source.is_dir():
            raise DataError(f"{source} is no folder of class folders of images; give that of one task")
        (folder,) = folders.values()
        for own in sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != "."):
            yield from ({"label": own.name, **_input(kind, file)} for file in image_files(own))


def _inputs_in(kind: str, source: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what a file, folder or glob holds, and what stands beside the answers."""
    from headstart.data.images.folder import SUFFIXES
    from headstart.data.kind import files_of

    if kind == "images":
        for path in files_of([source], SUFFIXES):
            yield {"image": str(path)}, _input(kind, path)
    elif kind == "text":
        from headstart.data.text.read import read_texts

        found = read_texts(Path(source), asked=False, labelled=False)
        columns = found.columns or {"text": found.texts}
        for place, text in enumerate(found.texts):
            yield {name: values[place] for name, values in columns.items()}, {"text": text}
    else:
        yield from ((row, _input(kind, row)) for row in _rows(Path(source)))


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    from headstart.data.tables.read import read_table

    table = read_table(source)
    columns: Sequence[list[Any]] = [table.columns[name].tolist() for name in table.header]
    for values in zip(*columns):
        yield {name: None if value == "" else value for name, value in zip(table.header, values)}
