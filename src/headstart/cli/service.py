"""The commands of the service: serve, demo and tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from headstart.cli.output import print_json, print_table
from headstart.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from headstart.serve.app import Settings

#: Where a service keeps its tasks by default.
STORE = "headstart-tasks.db"
_Runs = Annotated[list[str], Parameter(negative="")]
_Several = Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")]
_Switch = Annotated[bool, Parameter(negative="")]
_Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
_Share = Annotated[float, Parameter(validator=Number(gte=0, lte=3600))]
_Count = Annotated[int, Parameter(validator=Number(gte=1, lte=1_000_000))]
_Unknown = Annotated[float | None, Parameter(validator=Number(gte=0, lt=1))]
_Days = Annotated[float | None, Parameter(validator=Number(gt=0))]


def serve(
    runs: _Runs,
    /,
    *,
    host: str = "127.0.0.1",
    port: _Port = 8000,
    store: str = STORE,
    blobs: str | None = None,
    token_file: Path | None = None,
    auth: bool = True,
    i_know: _Switch = False,
    allow_host: _Several = None,
    workers: _Count = 1,
    ray: _Switch = False,
    replicas: _Count = 1,
    memory: _Count = 512,
    body: _Count = 10,
    unknown_share: _Unknown = None,
    drain: _Share = 5.0,
    device: str = "auto",
) -> None:
    """Serve runs over HTTP: show examples, get answers; with a web page at the address that is printed.

    Tasks are kept, with what they were learned from: a service that is started again serves them on. Several services
    share a PostgreSQL database, on one machine or on many.
    The API is described at /openapi.json, and docs/serving.md says what is promised.

    Args:
        runs: Folders of runs, and networks as they are (headstart list networks), such as hf:FOLDER or ngrams.
        host: Where to listen. Elsewhere than at 127.0.0.1 a token is asked for.
        port: Where to listen; 0: a free one.
        store: The file of tasks and tokens; or a PostgreSQL database: postgresql://USER@HOST/DATABASE, its password
            better in PGPASSWORD or PGPASSFILE than here.
        blobs: Where tensors are kept, if not with the tasks: s3://BUCKET/PREFIX or file:///FOLDER.
        token_file: A file with one token, which allows all; beside those of `headstart tokens add`.
        auth: Ask for tokens where there are some.
        i_know: With --no-auth at another host than 127.0.0.1, say that all who reach it may do all.
        allow_host: Other names that the service is called by, such as that of a proxy before it; * for any.
        workers: Processes that compute.
        ray: Run under Ray Serve, on this machine or the cluster at RAY_ADDRESS; the store is PostgreSQL then.
        replicas: Under Ray: processes that speak HTTP.
        memory: Megabytes of tasks that each of them keeps in memory; the others are read when they are asked for.
        body: Megabytes that a request may have.
        unknown_share: Which share of what is asked is of none of the classes, as far as you know, where a request does
            not say: probabilities count with it. With 0, everything is of the classes. Default: 0.5, where that is
            known of a run.
        drain: Seconds in which the service, told to end (SIGTERM), says so at /readyz and still serves.
        device: Where to compute; auto takes cuda, then mps, then cpu.
    """
    settings = _settings(runs, store, workers, memory, body, device, blobs, unknown_share)
    from headstart.serve.server import LOOPBACK, run
    from headstart.serve.tokens import hash_of

    if host not in LOOPBACK:
        settings = settings._replace(hosts=settings.hosts | {host} if host not in ("0.0.0.0", "::") else settings.hosts)
    settings = settings._replace(hosts=settings.hosts | {name.lower() for name in allow_host or ()}, open=not auth)
    if token_file is not None:
        from headstart.training.files import read

        settings = settings._replace(token=hash_of(read(token_file, 4096).decode("utf-8", "replace"), str(token_file)))

    def told(where: str) -> None:
        print(f"serving at {where} (Ctrl-C ends it)", flush=True)

    if ray:
        from headstart.serve import on_ray

        return on_ray.run(settings, host, port, replicas, i_know, told)
    run(settings, host, port, drain, i_know, told)


def demo(*, port: _Port = 0, browser: bool = True, store: Path | None = None) -> None:
    """Try the service in a browser, with built-in icons to show it: nothing has to be trained before.

    Args:
        port: Where to listen; 0: a free one.
        browser: Open the page in the browser.
        store: A file to keep tasks in; by default they are gone when the demo ends.
    """
    import tempfile
    import webbrowser

    with tempfile.TemporaryDirectory() as folder:
        run_folder = Path(__file__).parents[1] / "serve" / "demo" / "icons"
        settings = _settings([str(run_folder)], str(store or Path(folder) / "tasks.db"), 1, 256, 10, "cpu")
        from headstart.serve.server import run

        def told(where: str) -> None:
            print(f"the demo is at {where} (Ctrl-C ends it)", flush=True)
            if browser:
                webbrowser.open(where)

        run(settings, "127.0.0.1", port, 0.0, False, told)


def tokens(
    action: Literal["add", "list", "revoke"],
    name: str | None = None,
    /,
    *,
    store: str = STORE,
    tenant: str = "default",
    scopes: _Several = None,
    days: _Days = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> None:
    """Make, list or revoke the tokens of a service, also while it runs.

    Args:
        action: What to do.
        name: Whom a new token is for; or the id of the one to revoke.
        store: The service's file of tasks and tokens, or its PostgreSQL database: postgresql://USER@HOST/DATABASE.
        tenant: Whose tasks a new token gives access to; others' are as if they were not there.
        scopes: What a new token allows: adapt, predict, admin (all). Default: adapt predict.
        days: How long a new token holds. Default: until it is revoked.
        as_json: Print JSON.
    """
    _needed()
    from headstart.serve.store import Place, Store, is_url
    from headstart.serve.tokens import make_token

    if action != "list" and name is None:
        raise UsageError("say whom the token is for, or the id of the one to revoke: `headstart tokens add NAME`")
    if action != "add" and not is_url(store) and not Path(store).exists():
        raise ConfigError(f"there is no store {store}; --store says where the service keeps its tasks")
    kept = Store(Place(store))
    try:
        if action == "list":
            found = kept.tokens()
            if as_json:
                print_json(found)
            else:
                columns = ("id", "name", "tenant", "scopes", "created", "expires", "revoked")
                print_table("", columns, (tuple(str(one[column] or "") for column in columns) for one in found), 7)
        elif action == "add":
            wanted = [one for word in scopes or ["adapt", "predict"] for one in word.split(",") if one]
            made = make_token(kept, str(name), tenant, wanted, days)
            print_json({"token": made}) if as_json else print(made)
        elif not kept.revoke(str(name)):
            raise UsageError(f"there is no token {name!r}; `headstart tokens list` shows their ids")
    finally:
        kept.close()


def _settings(
    runs: list[str],
    store: str,
    workers: int,
    memory: int,
    body: int,
    device: str,
    blobs: str | None = None,
    unknown_share: float | None = None,
) -> "Settings":
    _needed()
    from headstart.serve.app import Settings
    from headstart.serve.contract import Limits
    from headstart.serve.server import cores
    from headstart.serve.work import Work

    names = [Path(source.rpartition(":")[2]).resolve().name for source in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two runs are called {twice!r}, as requests would call them; rename the folder of one")
    limits = Limits(body_bytes=body * 1_000_000)
    threads = max(1, cores() // (workers + 1))  # one is for who speaks HTTP
    work = Work(tuple(runs), store, device, threads, memory * 2**20, limits, blobs, unknown_share)
    return Settings(work, workers)


def _needed() -> None:
    from importlib.util import find_spec

    needed = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")
    if lacking := [name for name in needed if not find_spec(name)]:
        raise UsageError(f"the service needs {', '.join(lacking)}: `pip install headstart[serve]`")


SERVICE: dict[str, Any] = {"serve": serve, "demo": demo, "tokens": tokens}
