"""The application: HTTP on one side, the store and the workers on the other."""

import asyncio
import contextlib
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import headstart
from headstart.errors import HeadstartError
from headstart.serve.bodies import (
    check_names,
    check_new,
    digest_of,
    files_of,
    kind_of,
    labels_of,
    read_form,
    read_json,
    shares_of,
    values_of,
)
from headstart.serve.contract import (
    STATUS,
    Inputs,
    MoreExamples,
    NewTask,
    Predictions,
    RefusedError,
    RunTold,
    Served,
    Shares,
    Task,
    TaskList,
    invalid,
    refused_later,
    shown,
)
from headstart.serve.database import DamagedError
from headstart.serve.description import CODES, ONCE, TEXT, body_of, describe_bodies
from headstart.serve.direct import direct
from headstart.serve.gate import LOG, Application, Rules, gate
from headstart.serve.ids import PATTERN
from headstart.serve.state import ChangedError, Settings as Settings, State as State, Workers
from headstart.serve.store import AnsweredError, ConflictError, Kept, Once, now
from headstart.serve.tokens import Caller, Scope
from headstart.serve.work import Lesson, Question, Taught, Wanted

PAGE = Path(__file__).with_name("page")
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
#: How often what another request was quicker to change is done again.
_AGAIN = 5
#: Seconds between two looks for what services that died have left behind.
_SWEEP = 3600.0


def make_app(settings: Settings, workers: Callable[[], Workers] | None = None) -> tuple[Application, State]:
    """Return the application and what it holds; the workers start with it, if `State.start` did not do so before.

    Raises:
        HeadstartError: the store cannot be opened.
    """
    state = State(settings, workers)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if state.pool is None:
            await run_in_threadpool(state.start)
        sweeping = asyncio.create_task(_swept(state))
        yield
        state.draining = True
        sweeping.cancel()
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
    describe_bodies(app)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_exception_handler(HeadstartError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
    quick = direct(app, "/v1/tasks/{task}/predict", _refused, _unexpected)
    return gate(quick, Rules(state.limits, settings.hosts, state.caller), state.metrics), state


async def _swept(state: State) -> None:
    """Delete what was left behind, now and then."""
    while True:
        try:
            if swept := await run_in_threadpool(state.store.sweep):
                LOG.info("swept", extra={"told": {"blobs": swept}})
        except HeadstartError as error:
            LOG.error("what was left behind cannot be swept", extra={"told": {"error": str(error)}})
        await asyncio.sleep(_SWEEP)


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RefusedError):
        return _error(error.status, error.kind, str(error), error.headers)
    kind = type(error).__name__
    status = STATUS.get(kind, 500)
    headers = {"Retry-After": "60"} if status == 503 else None
    if status >= 500:
        told = {"request": request.state.request_id, "error": str(error), "cause": str(error.__cause__ or "")}
        LOG.error("failed", extra={"told": told})
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


def _routes(app: FastAPI, state: State) -> None:
    store, limits = state.store, state.limits

    async def task_of(who: Caller, task: str) -> Kept:
        found = await state.read(store.task, who.tenant, task) if re.fullmatch(PATTERN, task) else None
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
        before = await run_in_threadpool(store.remembered, who.tenant, key)
        if before is None:
            if (who.tenant, key) in state.asked:
                raise RefusedError(409, "ConflictError", "a request with this key is not answered yet; ask again")
            state.asked.add((who.tenant, key))
            try:
                return Response(await work(Once(key, asked, status)), status, media_type="application/json")
            except AnsweredError:  # by another service of this store, at the same time
                before = await run_in_threadpool(store.remembered, who.tenant, key)
            finally:
                state.asked.discard((who.tenant, key))
        if before is None:
            raise ConflictError("what a request with this key made was deleted at the same time; take a new key")
        if before.request != asked:
            raise RefusedError(422, "DataError", "this Idempotency-Key was used for another request; take a new one")
        return Response(before.body, before.status, media_type="application/json")

    def told_of(taught: Taught, name: str | None) -> dict[str, Any]:
        return {"name": name, **taught.told}

    @app.post("/v1/tasks", status_code=201, responses={201: {"model": Task}, **CODES},
              openapi_extra=body_of(NewTask, {"run": TEXT, "name": TEXT}) | {"parameters": [ONCE]})  # fmt: skip
    async def create_task(request: Request) -> Response:
        """Learn a task from examples: JSON, or a form of image files, each named by its label."""
        who = _may(request, "adapt")
        if kind_of(request) == "multipart/form-data":
            fields, files = await read_form(request, limits, ("run", "name"))
            asked = NewTask.model_construct(run=fields.get("run"), name=fields.get("name"))
            run, weights = run_of(asked.run)
            values, labels = files_of(files, run), tuple(file.name for file in files)
            check_names([asked.name or "", *labels])
        else:
            asked = await read_json(request, NewTask)
            run, weights = run_of(asked.run)
            values = values_of(asked.examples, run, limits.examples, "examples")
            labels = labels_of(asked.examples, run)
        check_names([asked.name or ""])
        check_new(labels, len(values), limits)

        async def work(key: Once | None) -> bytes:
            if not await run_in_threadpool(store.has_room, who.tenant, limits.tasks):
                raise RefusedError(409, "ConflictError", f"there are {limits.tasks} tasks, the most; delete some")
            new = store.new_id()
            taught: Taught = await state.ask(Lesson(new, 1, run.name, values, labels))
            told, when = told_of(taught, asked.name), now()
            kept = Kept(new, who.tenant, run.name, weights, 1, told, taught.support, when, when)
            return await run_in_threadpool(store.add, kept, taught.parts, key)

        digest = lambda: digest_of("create", run.name, asked.name, labels, *values)  # noqa: E731
        found = await once(request, who, digest, 201, work)
        return found

    @app.get("/v1/tasks", responses={200: {"model": TaskList}, **CODES})
    async def list_tasks(
        request: Request,
        after: Annotated[str, Query(pattern=f"^$|{PATTERN}")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """List tasks, the oldest first."""
        who = _may(request, None)
        found = await run_in_threadpool(store.tasks, who.tenant, after, limit + 1)
        more = found[limit - 1].id if len(found) > limit else None
        return _json({"tasks": [one.public() for one in found[:limit]], "next": more})

    @app.get("/v1/tasks/{task}", responses={200: {"model": Task}, **CODES})
    async def get_task(request: Request, task: str) -> Response:
        """Say what a task is."""
        return _json((await task_of(_may(request, None), task)).public())

    @app.delete("/v1/tasks/{task}", status_code=204, responses=CODES)
    async def delete_task(request: Request, task: str) -> Response:
        """Delete a task and all that was kept of it."""
        who = _may(request, "adapt")
        with contextlib.suppress(DamagedError):  # which goes like others
            await task_of(who, task)
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
                kept = await task_of(who, task)
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
                except (ChangedError, ConflictError):
                    if attempt == _AGAIN - 1:
                        break
            raise ConflictError("the task is being changed by other requests; ask again")

        return await once(request, who, digest, 200, work)

    @app.post("/v1/tasks/{task}/examples", responses={200: {"model": Task}, **CODES},
              openapi_extra=body_of(MoreExamples, {}) | {"parameters": [ONCE]})  # fmt: skip
    async def add_examples(request: Request, task: str) -> Response:
        """Learn a task anew from its examples and more, which may be of new classes."""
        who = _may(request, "adapt")
        run = served(await task_of(who, task))
        if kind_of(request) == "multipart/form-data":
            _, files = await read_form(request, limits, ())
            values, labels = files_of(files, run), tuple(file.name for file in files)
            check_names(labels)
        else:
            asked = await read_json(request, MoreExamples)
            values = values_of(asked.examples, run, limits.examples, "examples")
            labels = labels_of(asked.examples, run)

        def lesson(kept: Kept) -> Lesson:
            return Lesson(kept.id, kept.revision + 1, kept.run, values, labels, grown=True)

        return await changed(request, who, task, lesson, lambda: digest_of("grow", task, labels, *values))

    @app.delete("/v1/tasks/{task}/classes/{label:path}", responses={200: {"model": Task}, **CODES})
    async def remove_class(request: Request, task: str, label: str) -> Response:
        """Learn a task anew without one of its classes."""
        who = _may(request, "adapt")
        kept = await task_of(who, task)
        if label not in kept.told["labels"]:
            raise RefusedError(404, "NotFoundError", "the task has no such class")

        def lesson(kept: Kept) -> Lesson:
            return Lesson(kept.id, kept.revision + 1, kept.run, grown=True, without=label)

        return await changed(request, who, task, lesson, lambda: digest_of("remove", task, label))

    @app.post("/v1/tasks/{task}/predict", responses={200: {"model": Predictions}, **CODES},
              openapi_extra=body_of(Inputs, {name: TEXT for name in Shares.model_fields}))  # fmt: skip
    async def predict(request: Request, task: str) -> Response:
        """Predict inputs: JSON, or a form of image files."""
        who = _may(request, "predict")
        kept = await task_of(who, task)
        run = served(kept)
        asked: Shares
        if kind_of(request) == "multipart/form-data":
            fields, files = await read_form(request, limits, tuple(Shares.model_fields))
            values, asked = files_of(files, run), shares_of(fields)
        else:
            asked = body = await read_json(request, Inputs)
            values = values_of(body.inputs, run, limits.queries, "inputs")
        if len(values) > limits.queries:
            told = f"{len(values)} inputs came; at most {limits.queries} are taken at once"
            raise RefusedError(422, "DataError", told)
        for _ in range(_AGAIN):
            labels, counts = tuple(kept.told["labels"]), tuple(kept.told["counts"])
            question = Question(
                kept.id, kept.revision, kept.run, labels, counts, values, asked.reject, asked.unknown_share
            )
            try:
                answers: bytes = await state.ask(question)
            except ChangedError:
                kept = await task_of(who, task)
                served(kept)
                continue
            return Response(answers, media_type="application/json")
        raise ConflictError("the task is being changed by other requests; ask again")

    @app.get("/v1/tasks/{task}/export",
             responses={200: {"content": {"application/zip": {}}, "description": "Files."}, **CODES})  # fmt: skip
    async def export(
        request: Request, task: str, to: Annotated[str, Query(pattern="^(onnx|module|torch)$")] = "onnx"
    ) -> Response:
        """Return a task as files for elsewhere, zipped."""
        kept = await task_of(_may(request, "adapt"), task)
        served(kept)
        labels, counts = tuple(kept.told["labels"]), tuple(kept.told["counts"])
        try:
            files = await state.ask(Wanted(kept.id, kept.revision, kept.run, labels, counts, to))
        except ChangedError:
            raise ConflictError("the task was changed meanwhile; ask again") from None
        name = f'attachment; filename="{kept.id}-{to}.zip"'
        return Response(_zipped(files), media_type="application/zip", headers={"Content-Disposition": name})

    @app.get("/v1/limits", responses={200: {"model": Served}, **CODES})
    async def get_limits(request: Request) -> Response:
        """Say what is served, and what a request may hold."""
        _may(request, None)
        runs = [told.model_dump() for told, _ in state.runs.values()]
        return _json({"runs": runs, **limits.model_dump()})

    @app.get("/livez", responses=CODES)
    @app.get("/v2/health/live", include_in_schema=False)
    async def alive() -> Response:
        """Say that the process answers."""
        return _json({"alive": True})

    @app.get("/readyz", responses=CODES)
    @app.get("/v2/health/ready", include_in_schema=False)
    async def ready() -> Response:
        """Say whether requests are taken: not before a worker answers, and not when the service is about to end."""
        if state.draining:
            raise refused_later("the service is about to end", 5, 503)
        await state.read(store.check)
        if state.pool is None or not state.pool.alive:
            raise refused_later("no worker answers yet", 1, 503)
        return _json({"ready": True})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}, "description": "Counters."}, **CODES})
    async def get_metrics() -> Response:
        """Return what is counted, as Prometheus reads it."""
        return Response(await run_in_threadpool(state.metrics.text), media_type="text/plain; version=0.0.4")


def _json(value: Any) -> Response:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, media_type="application/json")


def _zipped(files: dict[str, bytes]) -> bytes:
    """Return files as a zip of the same bytes for the same files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue()
