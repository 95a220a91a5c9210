"""The application: HTTP on one side, the store and the workers on the other."""

import asyncio
import base64
import binascii
import hashlib
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

import headstart
from headstart.errors import DataError, HeadstartError
from headstart.serve.contract import (
    STATUS,
    ErrorBody,
    Input,
    Inputs,
    Limits,
    MoreExamples,
    NewTask,
    Predictions,
    RefusedError,
    RunTold,
    Served,
    Task,
    TaskList,
    invalid,
    refused_later,
    shown,
)
from headstart.serve.gate import LOG, Application, Rules, gate
from headstart.serve.ids import PATTERN
from headstart.serve.metrics import metrics
from headstart.serve.pool import Pool
from headstart.serve.store import ConflictError, Kept, Once, Remembered, Store, now
from headstart.serve.tokens import LOCAL, Caller, Scope, caller
from headstart.serve.work import Failed, Lesson, Question, Taught, Wanted, Work

Body = TypeVar("Body", bound=BaseModel)
PAGE = Path(__file__).with_name("page")
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
#: How often what another request was quicker to change is done again.
_AGAIN = 5


class Settings(NamedTuple):
    """How a service is run."""

    work: Work
    workers: int = 1
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    guarded: bool = False
    """Whether a token is asked for; else only where the store has one."""
    open: bool = False
    """Whether none is asked for whatever the store has."""
    token: bytes | None = None
    """The hash of a token that is not in the store, and allows all."""


class State:
    """What a running service holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.work.limits
        self.store = Store(Path(settings.work.store))
        self.metrics = metrics(lambda: self.pool.waiting if self.pool else 0, lambda: self.store.count())
        self.pool: Pool | None = None
        self.runs: dict[str, tuple[RunTold, str]] = {}
        self.draining = False
        self.asked: set[tuple[str, str]] = set()
        """Idempotency keys of requests that are not answered yet."""

    def start(self) -> None:
        """Start workers, and wait until one answers."""
        self.pool = Pool(self.settings.work, self.settings.workers, self.metrics.seen)
        try:
            self.runs = {told.name: (told, weights) for told, weights in self.pool.ready()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers and close the store."""
        if self.pool is not None:
            self.pool.close()
        self.store.close()

    def caller(self, token: str | None) -> Caller:
        """Return who asks, or refuse."""
        own = self.settings
        if own.open or not (own.guarded or own.token is not None or self.store.has_tokens()):
            return LOCAL
        found = None if token is None else caller(self.store, token, own.token)
        if found is None:
            told = "no token came" if token is None else "the token is none of this service, or no longer"
            fix = "send it as the header Authorization: Bearer TOKEN (`headstart tokens add` makes one)"
            raise RefusedError(401, "TokenError", f"{told}; {fix}", {"WWW-Authenticate": "Bearer"})
        return found

    async def ask(self, request: Lesson | Question | Wanted) -> Any:
        """Return what a worker answers, or raise what it says is wrong."""
        assert self.pool is not None
        seconds = self.limits.predict_seconds if isinstance(request, Question) else self.limits.adapt_seconds
        future: Future[Any] = self.pool.ask(request)
        try:
            # waiting counts, too: who asks waits for both
            answer = await asyncio.wait_for(asyncio.wrap_future(future), 2 * seconds)
        except TimeoutError:
            told = f"no worker had time for this in {2 * seconds:g} seconds; ask again later"
            raise RefusedError(503, "DeadlineError", told, {"Retry-After": "10"}) from None
        if isinstance(answer, Failed):
            raise _failure(answer)
        return answer


class _GoneError(Exception):
    """The revision that a worker was asked for is there no more."""


def _failure(failed: Failed) -> Exception:
    if failed.kind == "GoneError":
        return _GoneError()
    if failed.kind == "FileError":
        LOG.error("a file of a run cannot be used", extra={"told": {"error": failed.message}})
        return RefusedError(500, "FileError", "a file of the run cannot be used any more; the service's log says which")
    if failed.kind == "InternalError":
        LOG.error("unexpected", extra={"told": {"error": failed.message}})
        return RefusedError(500, "InternalError", "this is unexpected; the service's log says where it comes from")
    headers = {"Retry-After": "10"} if failed.kind == "OutOfMemoryError" else {}
    return RefusedError(STATUS.get(failed.kind, 500), failed.kind, failed.message, headers)


def make_app(settings: Settings) -> tuple[Application, State]:
    """Return the application and what it holds; the workers start with it.

    Raises:
        FileError: the store cannot be opened.
    """
    state = State(settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.draining = True
        await run_in_threadpool(state.close)

    app = FastAPI(
        title="headstart",
        version=headstart.__version__,
        summary="Show a few examples, get answers.",
        description=__doc__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    _routes(app, state)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_exception_handler(HeadstartError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    return gate(app, Rules(state.limits, settings.hosts, state.caller), state.metrics), state


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        return _error(error.status, error.kind, str(error), error.headers)
    kind = type(error).__name__
    status = STATUS.get(kind, 500)
    headers = {"Retry-After": "60"} if status == 503 else None
    if status >= 500:
        LOG.error("failed", extra={"told": {"request": request.state.request_id, "error": str(error)}})
    return _error(status, kind, str(error), headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _error(422, "DataError", f"the request is not as expected: {invalid(error.errors())}")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "NotFoundError", 405: "MethodError"}.get(error.status_code, "RequestError")
    told = {404: "there is nothing at this address", 405: "this address does not take this method"}
    return _error(error.status_code, kind, told.get(error.status_code, shown(error.detail)), dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    return _error(500, "InternalError", "this is unexpected; the service's log says where it comes from")


def _may(request: Request, scope: Scope | None) -> Caller:
    found: Caller = request.state.caller
    if not found.may(scope):
        raise RefusedError(403, "ScopeError", f"the token does not allow this; it takes the scope {scope}")
    return found


def _kind_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _read(request: Request, model: type[Body]) -> Body:
    """Return the JSON of a body; what is wrong with it is told without what it holds."""
    if _kind_of(request) != "application/json":
        raise RefusedError(
            415, "TypeError", "the body is of another type; send application/json, or multipart/form-data"
        )
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        told = invalid(error.errors(include_url=False, include_context=False, include_input=False))
        raise RefusedError(422, "DataError", f"the body is not as expected: {told}") from None


class Part(NamedTuple):
    """A file of a form."""

    name: str
    data: bytes


async def _form(request: Request, limits: Limits, fields: Sequence[str]) -> tuple[dict[str, str], list[Part]]:
    """Return the fields and the files of a form, the files with the names of their parts."""
    most = max(limits.examples, limits.queries)
    boundary = re.search(r'boundary="?([^";,]+)', request.headers.get("content-type", ""))
    if boundary is None or not (await request.body()).rstrip().endswith(f"--{boundary[1].strip()}--".encode()):
        raise RefusedError(422, "DataError", "the form cannot be read: it ends before its last boundary")
    found, files = dict[str, str](), list[Part]()
    try:
        # one more than may be, so that it is told which limit that is
        async with request.form(max_files=most + 1, max_fields=len(fields) + 8) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    found[name] = value
                else:
                    files.append(Part(name, await value.read()))
    except (MultiPartException, HTTPException) as error:
        told = shown(getattr(error, "message", getattr(error, "detail", "")), 120)
        raise RefusedError(422, "DataError", f"the form cannot be read: {told}") from None
    if other := next((name for name in found if name not in fields), None):
        told = f"the form has a field {shown(other)!r}; expected {', '.join(fields)}, and files"
        raise RefusedError(422, "DataError", told)
    return found, files


def _decoded(part: Input, place: int) -> Any:
    if part.image is None:
        return part.text if part.text is not None else part.row
    try:
        return binascii.a2b_base64(part.image, strict_mode=True)
    except ValueError:
        raise RefusedError(422, "DataError", f"the image {place} is no base64 of a file") from None


def _values(parts: Sequence[Input], run: RunTold, limits_most: int, what: str) -> tuple[Any, ...]:
    """Return the values of examples or inputs, all of the kind of a run."""
    if len(parts) > limits_most:
        raise RefusedError(422, "DataError", f"{len(parts)} {what} came; at most {limits_most} are taken at once")
    name = {"images": "image", "text": "text", "tables": "row"}[run.kind]
    odd = next((place for place, part in enumerate(parts) if getattr(part, name) is None), None)
    if odd is not None:
        raise RefusedError(422, "DataError", f"{what[:-1]} {odd} has no {name}, which is what the run {run.name} takes")
    return tuple(_decoded(part, place) for place, part in enumerate(parts))


def _labels(parts: Sequence[Any], run: RunTold) -> tuple[str, ...]:
    if run.kind == "tables":
        if any(part.label is not None for part in parts):
            told = f"a row has its target in itself, as {run.target!r}; leave the labels out"
            raise RefusedError(422, "DataError", told)
        return ()
    lacking = next((place for place, part in enumerate(parts) if part.label is None), None)
    if lacking is not None:
        raise RefusedError(422, "DataError", f"example {lacking} has no label")
    return tuple(part.label for part in parts)


def _digest(*parts: Any) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


_CODES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": text}
    for code, text in {
        400: "Not HTTP as it should be, or a name that the service is not called.",
        401: "No token, or none that holds.",
        403: "The token does not allow this.",
        404: "No such task, or it is another tenant's.",
        408: "The body took too long.",
        409: "Changed at the same time, or learned by a run that is no longer served.",
        413: "Too large.",
        415: "Another type of body.",
        422: "What came cannot be used; the message says why.",
        429: "Too much at once; see Retry-After.",
        500: "A fault of the service.",
        503: "Not now; see Retry-After.",
    }.items()
}


def _body(model: type[BaseModel], form: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return how OpenAPI says that a body is JSON or a form."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    examples = (model.model_config.get("json_schema_extra") or {}).get("examples", [])  # type: ignore[union-attr]
    named = {f"example {number + 1}": {"value": value} for number, value in enumerate(examples)}
    binary = {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
    files = {"type": "object", "properties": form, "additionalProperties": binary}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema, "examples": named},
                "multipart/form-data": {"schema": files},
            },
        }
    }


_TEXT = {"type": "string"}
_ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "A request with the same key and body again is answered as before, and done once.",
}


def _routes(app: FastAPI, state: State) -> None:
    store, limits = state.store, state.limits

    def task_of(who: Caller, task: str) -> Kept:
        found = store.task(who.tenant, task) if re.fullmatch(PATTERN, task) else None
        if found is None:
            raise RefusedError(404, "NotFoundError", "there is no task of this id")
        return found

    def run_of(name: str | None) -> tuple[RunTold, str]:
        if name is None and len(state.runs) == 1:
            return next(iter(state.runs.values()))
        known = ", ".join(sorted(state.runs))
        if name is None:
            raise RefusedError(422, "DataError", f"say by which run to learn; there are {known}")
        if name not in state.runs:
            raise RefusedError(422, "DataError", f"there is no run {shown(name)!r}; there is {known}")
        return state.runs[name]

    def served(kept: Kept) -> RunTold:
        told, weights = state.runs.get(kept.run, (None, ""))
        if told is None or weights != kept.weights:
            why = "is not served now" if told is None else "is another one by now than the task was learned by"
            raise RefusedError(
                409, "ConflictError", f"the run {kept.run} {why}; teach the task again, or serve that run"
            )
        return told

    async def once(
        request: Request, who: Caller, digest: Callable[[], bytes], status: int, work: Callable[[Once | None], Any]
    ) -> Response:
        """Do what is asked once for a key: again, it is answered as before."""
        key = request.headers.get("idempotency-key")
        if key is None:
            return Response(await work(None), status, media_type="application/json")
        if not _KEY.fullmatch(key):
            raise RefusedError(
                422, "DataError", "an Idempotency-Key is 1 to 200 printable ASCII letters without spaces"
            )
        asked = digest()
        before: Remembered | None = await run_in_threadpool(store.remembered, who.tenant, key)
        if before is None:
            if (who.tenant, key) in state.asked:
                raise RefusedError(409, "ConflictError", "a request with this key is not answered yet; ask again")
            state.asked.add((who.tenant, key))
            try:
                return Response(await work(Once(key, asked, status)), status, media_type="application/json")
            finally:
                state.asked.discard((who.tenant, key))
        if before.request != asked:
            raise RefusedError(422, "DataError", "this Idempotency-Key was used for another request; take a new one")
        return Response(before.body, before.status, media_type="application/json")

    def told_of(taught: Taught, name: str | None) -> dict[str, Any]:
        return {"name": name, **taught.told}

    @app.post("/v1/tasks", status_code=201, responses={201: {"model": Task}, **_CODES},
              openapi_extra=_body(NewTask, {"run": _TEXT, "name": _TEXT}) | {"parameters": [_ONCE]})  # fmt: skip
    async def create_task(request: Request) -> Response:
        """Learn a task from examples: JSON, or a form of image files, each named by its label."""
        who = _may(request, "adapt")
        if _kind_of(request) == "multipart/form-data":
            fields, files = await _form(request, limits, ("run", "name"))
            asked = NewTask.model_construct(run=fields.get("run"), name=fields.get("name"))
            run, weights = run_of(asked.run)
            values, labels = _files(files, run), tuple(file.name for file in files)
            _check_names([asked.name or "", *labels])
        else:
            asked = await _read(request, NewTask)
            run, weights = run_of(asked.run)
            values = _values(asked.examples, run, limits.examples, "examples")
            labels = _labels(asked.examples, run)
        _check_names([asked.name or ""])
        _check_new(labels, len(values), limits)

        async def work(key: Once | None) -> bytes:
            if await run_in_threadpool(store.count, who.tenant) >= limits.tasks:
                raise RefusedError(409, "ConflictError", f"there are {limits.tasks} tasks, the most; delete some")
            new = store.new_id()
            taught: Taught = await state.ask(Lesson(new, 1, run.name, values, labels))
            told, when = told_of(taught, asked.name), now()
            kept = Kept(new, who.tenant, run.name, weights, 1, told, taught.support, when, when)
            return await run_in_threadpool(store.add, kept, taught.parts, key)

        digest = lambda: _digest("create", run.name, asked.name, labels, *values)  # noqa: E731
        found = await once(request, who, digest, 201, work)
        return found

    @app.get("/v1/tasks", responses={200: {"model": TaskList}, **_CODES})
    async def list_tasks(
        request: Request,
        after: Annotated[str, Query(max_length=26)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """List tasks, the oldest first."""
        who = _may(request, None)
        found = await run_in_threadpool(store.tasks, who.tenant, after, limit + 1)
        more = found[limit - 1].id if len(found) > limit else None
        return _json({"tasks": [one.public() for one in found[:limit]], "next": more})

    @app.get("/v1/tasks/{task}", responses={200: {"model": Task}, **_CODES})
    async def get_task(request: Request, task: str) -> Response:
        """Say what a task is."""
        return _json(task_of(_may(request, None), task).public())

    @app.delete("/v1/tasks/{task}", status_code=204, responses=_CODES)
    async def delete_task(request: Request, task: str) -> Response:
        """Delete a task and all that was kept of it."""
        who = _may(request, "adapt")
        task_of(who, task)
        await run_in_threadpool(store.delete, who.tenant, task)
        if state.pool is not None:
            state.pool.forget(task)
        return Response(status_code=204)

    async def changed(
        request: Request, who: Caller, task: str, lesson: Callable[[Kept], Lesson], digest: Callable[[], bytes]
    ) -> Response:
        """Learn a task anew, and again where another request was quicker."""

        async def work(key: Once | None) -> bytes:
            for attempt in range(_AGAIN):
                kept = task_of(who, task)
                served(kept)
                try:
                    taught: Taught = await state.ask(lesson(kept))
                    new = kept._replace(
                        revision=kept.revision + 1,
                        told=told_of(taught, kept.told["name"]),
                        support=taught.support,
                        changed=now(),
                    )
                    return await run_in_threadpool(store.replace, new, taught.parts, key)
                except (_GoneError, ConflictError):
                    if attempt == _AGAIN - 1:
                        break
            raise ConflictError("the task is being changed by other requests; ask again")

        return await once(request, who, digest, 200, work)

    @app.post("/v1/tasks/{task}/examples", responses={200: {"model": Task}, **_CODES},
              openapi_extra=_body(MoreExamples, {}) | {"parameters": [_ONCE]})  # fmt: skip
    async def add_examples(request: Request, task: str) -> Response:
        """Learn a task anew from its examples and more, which may be of new classes."""
        who = _may(request, "adapt")
        run = served(task_of(who, task))
        if _kind_of(request) == "multipart/form-data":
            _, files = await _form(request, limits, ())
            values, labels = _files(files, run), tuple(file.name for file in files)
            _check_names(labels)
        else:
            asked = await _read(request, MoreExamples)
            values = _values(asked.examples, run, limits.examples, "examples")
            labels = _labels(asked.examples, run)

        def lesson(kept: Kept) -> Lesson:
            return Lesson(kept.id, kept.revision + 1, kept.run, values, labels, grown=True)

        return await changed(request, who, task, lesson, lambda: _digest("grow", task, labels, *values))

    @app.delete("/v1/tasks/{task}/classes/{label:path}", responses={200: {"model": Task}, **_CODES})
    async def remove_class(request: Request, task: str, label: str) -> Response:
        """Learn a task anew without one of its classes."""
        who = _may(request, "adapt")
        kept = task_of(who, task)
        if label not in kept.told["labels"]:
            raise RefusedError(404, "NotFoundError", "the task has no such class")

        def lesson(kept: Kept) -> Lesson:
            return Lesson(kept.id, kept.revision + 1, kept.run, grown=True, without=label)

        return await changed(request, who, task, lesson, lambda: _digest("remove", task, label))

    @app.post("/v1/tasks/{task}/predict", responses={200: {"model": Predictions}, **_CODES},
              openapi_extra=_body(Inputs, {"reject": _TEXT}))  # fmt: skip
    async def predict(request: Request, task: str) -> Response:
        """Predict inputs: JSON, or a form of image files."""
        who = _may(request, "predict")
        kept = task_of(who, task)
        run = served(kept)
        reject: float | None
        if _kind_of(request) == "multipart/form-data":
            fields, files = await _form(request, limits, ("reject",))
            values, reject = _files(files, run), _share(fields.get("reject"))
        else:
            asked = await _read(request, Inputs)
            values, reject = _values(asked.inputs, run, limits.queries, "inputs"), asked.reject
        if len(values) > limits.queries:
            told = f"{len(values)} inputs came; at most {limits.queries} are taken at once"
            raise RefusedError(422, "DataError", told)
        for _ in range(_AGAIN):
            labels, counts = tuple(kept.told["labels"]), tuple(kept.told["counts"])
            question = Question(kept.id, kept.revision, kept.run, labels, counts, values, reject)
            try:
                rows = await state.ask(question)
            except _GoneError:
                kept = task_of(who, task)
                served(kept)
                continue
            blank = {"unknown": None, "set": None}
            return _json({"predictions": [blank | row for row in rows]})
        raise ConflictError("the task is being changed by other requests; ask again")

    @app.get("/v1/tasks/{task}/export",
             responses={200: {"content": {"application/zip": {}}, "description": "Files."}, **_CODES})  # fmt: skip
    async def export(
        request: Request, task: str, to: Annotated[str, Query(pattern="^(onnx|module|torch)$")] = "onnx"
    ) -> Response:
        """Return a task as files for elsewhere, zipped."""
        kept = task_of(_may(request, "adapt"), task)
        served(kept)
        labels, counts = tuple(kept.told["labels"]), tuple(kept.told["counts"])
        try:
            files = await state.ask(Wanted(kept.id, kept.revision, kept.run, labels, counts, to))
        except _GoneError:
            raise ConflictError("the task was changed meanwhile; ask again") from None
        name = f'attachment; filename="{kept.id}-{to}.zip"'
        return Response(_zipped(files), media_type="application/zip", headers={"Content-Disposition": name})

    @app.get("/v1/limits", responses={200: {"model": Served}, **_CODES})
    async def get_limits(request: Request) -> Response:
        """Say what is served, and what a request may hold."""
        _may(request, None)
        runs = [told.model_dump() for told, _ in state.runs.values()]
        return _json({"runs": runs, **limits.model_dump()})

    @app.get("/livez", responses=_CODES)
    @app.get("/v2/health/live", include_in_schema=False)
    async def alive() -> Response:
        """Say that the process answers."""
        return _json({"alive": True})

    @app.get("/readyz", responses=_CODES)
    @app.get("/v2/health/ready", include_in_schema=False)
    async def ready() -> Response:
        """Say whether requests are taken: not before a worker answers, and not when the service is about to end."""
        if state.draining:
            raise refused_later("the service is about to end", 5, 503)
        if state.pool is None or not state.pool.alive:
            raise refused_later("no worker answers yet", 1, 503)
        return _json({"ready": True})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}, "description": "Counters."}, **_CODES})
    async def get_metrics() -> Response:
        """Return what is counted, as Prometheus reads it."""
        return Response(await run_in_threadpool(state.metrics.text), media_type="text/plain; version=0.0.4")

    plain = app.openapi

    def described() -> dict[str, Any]:
        """Add the bodies that are read by hand."""
        if app.openapi_schema is None:
            schemas = plain()["components"]["schemas"]
            for model in (NewTask, MoreExamples, Inputs):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= own.pop("$defs", {})
                schemas[model.__name__] = own
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _json(value: Any) -> Response:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, media_type="application/json")


def _files(files: Sequence[Part], run: RunTold) -> tuple[bytes, ...]:
    if run.kind != "images":
        raise RefusedError(415, "TypeError", f"forms are of images, but the run {run.name} takes {run.kind}; send JSON")
    if not files:
        raise RefusedError(422, "DataError", "the form has no file")
    return tuple(file.data for file in files)


def _check_new(labels: Sequence[str], count: int, limits: Limits) -> None:
    counts = {label: labels.count(label) for label in set(labels)} if len(set(labels)) <= limits.ways else {}
    if len(set(labels)) > limits.ways:
        raise DataError(f"the task has {len(set(labels))} classes; at most {limits.ways} are taken")
    limits.check(list(counts), list(counts.values()) or [count])
    if count > limits.examples:
        raise DataError(f"the task has {count} examples; at most {limits.examples} are taken")


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that are none to print in a line: with control characters, or halves of letters."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError("a name is no text that UTF-8 can write") from None
        if len(name) > 200 or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            raise DataError("a name is longer than 200 letters, or has letters that cannot be printed in a line")


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise DataError("reject is a share, above 0 and below 1")
    return value


def _zipped(files: dict[str, bytes]) -> bytes:
    """Return files as a zip of the same bytes for the same files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def encoded(data: bytes) -> str:
    """Return bytes as the base64 that JSON bodies have."""
    return base64.b64encode(data).decode()
