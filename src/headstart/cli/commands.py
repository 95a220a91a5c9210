"""The commands: short functions over `headstart.training`, which each imports when it is called."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import CycloptsError, Parameter
from cyclopts.types import UInt32
from cyclopts.validators import Number

from headstart.cli.exporting import export
from headstart.cli.output import print_item, print_json, print_table, score_text
from headstart.cli.service import SERVICE
from headstart.errors import ConfigError, DataError, HeadstartError
from headstart.registry import What, find, rows

if TYPE_CHECKING:
    from headstart.cli.options import Called
    from headstart.training.config import Schema, Tree

Device: TypeAlias = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute; auto takes cuda, then mps, then cpu.")
]
Json: TypeAlias = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Several: TypeAlias = Annotated[list[str], Parameter(consume_multiple=True, negative="")]
Raw: TypeAlias = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""Words that a command reads itself."""


def train(*words: Raw) -> int:
    """Meta-train on a family of tasks, or go on with a run."""
    asked = _asked(_train, words)
    if asked is None:
        return 0
    from headstart.training.choose import shortlist, train
    from headstart.training.config import default_folder, resolve
    from headstart.training.progress import view
    from headstart.training.report.report import score_to_json

    called, tree, names = asked
    listed = shortlist(tree)
    config = next(iter(listed.values()), None) or resolve(tree, names.get("config", ""))
    folder = default_folder(config)
    if len(listed) > 1:
        folder = folder.with_name(f"{folder.name.removesuffix(config.method.name)}chosen")
    result = train(tree if listed else config, called.own.get("out") or folder, view=view())
    if called.own.get("as_json"):
        told = {
            "run": str(result.run),
            "step": result.step,
            "best_step": result.best_step,
            "stopped": None if result.stopped is None else result.stopped.name,
            "test": None if result.score is None else score_to_json(result.score),
        }
        print_json(told)
    elif result.stopped is not None:
        print(f"stopped by {result.stopped.name} after step {result.step}; the same command goes on from there")
    else:
        if result.score is not None:
            print(score_text(result.score))
        print(f"run: {result.run}")
    return 0 if result.stopped is None else 128 + result.stopped


def _asked(command: Callable[..., None], words: tuple[str, ...]) -> "tuple[Called, Tree, dict[str, str]] | None":
    """Read the words of a command that trains: what they say, the options, and the names that decided which there are.

    Returns:
        ``None`` where they ask for help, which is printed.
    """
    from headstart.cli.options import call, first_look, named
    from headstart.training.config import merged, read_config_file, together

    sources, names = first_look(words)
    file = read_config_file(Path(names["config"])) if "config" in names else {}
    base = merged(file, named(together(sources), names))
    name = command.__name__.lstrip("_")
    more = (
        f"Tasks, method and model have options of their own: `headstart {name} icons --method svm --help` shows them."
    )
    if base["tasks"]:
        called = _called(command, words, base)
    else:
        called = call(command, words, [], more)
    if called is None:
        return None
    _refuse_late(sources, called)
    return called, merged(base, called.tree), names


def _called(command: Callable[..., None], words: tuple[str, ...], base: dict[str, Any]) -> "Called | None":
    """Read the options by the first of the methods it may be that has them all, and whose target is the tasks'."""
    from headstart.cli.options import call, choices
    from headstart.training.build import target_of
    from headstart.training.config import merged, normal, possible_methods

    def first(names: Sequence[str]) -> "Called | None":
        for name in names:
            with suppress(CycloptsError, ConfigError):
                return call(command, words, [choices(merged(base, {"method": name}))])
        return None

    names = possible_methods(normal(base))
    if len(names) > 1 and not {"--help", "-h"} & set(words):
        told = first(names)
        if told is not None:
            own = {owner: told.tree.get(owner, {}) for owner in ("tasks", "run")}
            target = target_of(normal(merged(base, own)))
            told = first([name for name in names if target in find("method", name).targets])
        if told is not None:
            return told
    return call(command, words, [choices(base)])  # says what is wrong, where something is


def _refuse_late(sources: Sequence[str], called: "Called") -> None:
    """Refuse tasks that stand behind a switch, for which what there is to choose was not looked up."""
    if late := [word for word in called.own.get("tasks", ()) if word not in sources]:
        raise ConfigError(f"{late[0]!r} stands behind the options; name all TASKS first")


def _train(
    *tasks: str,
    method: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    config: Path | None = None,
    as_json: Json = False,
) -> None:
    """Meta-train on a family of tasks, or go on with a run.

    The same command again goes on where the run was stopped, at the same weights bit for bit. Options that are not
    given have defaults that suit the tasks and the method; config.json in the run's folder holds them all.

    Args:
        tasks: A task family's name (headstart list tasks), or a folder or file of your own: a folder of class folders
            of images, a CSV or Parquet file. Several of images: each task is of one of them, by --weights. Default:
            from --config.
        method: How to meta-learn (headstart list methods). Default: maml; for texts, and on a
            pretrained network, prototypes; for tables the best of a short list
            on the validation tasks, which the report tells.
        model: The network (headstart list models), or a pretrained one (headstart list networks), such as hf:FOLDER.
            Default: conv4 for images, ngrams for texts, else mlp.
        out: The run's folder. Default: runs/TASKS-METHOD.
        config: A .json, .yaml or .toml file with such options, nested as in a run's config.json; flags win over it.
        as_json: Print the result as JSON.
    """


def soak(*words: Raw) -> int:
    """Show that a training loses nothing: under faults it ends with the same bytes as undisturbed."""
    asked = _asked(_soak, words)
    if asked is None:
        return 0
    from headstart.training.choose import shortlist
    from headstart.training.config import default_folder, resolve
    from headstart.training.progress import view
    from headstart.training.soak import rows, soak, to_values

    called, tree, names = asked
    given = dict(called.own)
    as_json, out = given.pop("as_json", False), given.pop("out", None)
    own = {name: given[name] for name in ("kills", "hangs", "processes") if name in given}
    if out is None:
        config = next(iter(shortlist(tree).values()), None) or resolve(tree, names.get("config", ""))
        folder = default_folder(config)
        out = folder.with_name(f"soak-{folder.name}")
    found = soak(tree, out, **own, view=view())
    if as_json:
        print_json(to_values(found))
        return 0 if found.holds else 1
    trainings = "1 training" if found.trainings == 1 else f"{found.trainings} trainings"
    title = f"{found.kills} of {own.get('kills', 50)} kills, {len(found.starts)} starts, {trainings}"
    print_table(title, ("fault", "where it came", "met", "not as promised"), rows(found), left=2)
    if found.first_step is not None and found.first_new_step is not None:
        print(
            f"first step after {found.first_step:.1f} s undisturbed; first new step after a fault"
            f" {found.first_new_step:.1f} s from the command (median)"
        )
    for line in found.wrong:
        print(f"not as promised: {line}")
    for one in found.differences:
        print(f"differs: {one.name}: {one.why}")
    print(f"{'the same bytes' if not found.differences else 'NOT the same'} in {found.compared} files: {out}")
    return 0 if found.holds else 1


def _soak(
    *tasks: str,
    kills: int = 50,
    hangs: int = 0,
    processes: int = 1,
    method: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    config: Path | None = None,
    as_json: Json = False,
) -> None:
    """Show that a training loses nothing: under faults it ends with the same bytes as undisturbed.

    It takes train's options, and a start of a process for every kill: choose a short training, and save often
    (--steps 1000 --save-every 10). Exit code 1 where a byte differs, or a start did not end as is promised.

    Args:
        tasks: As train takes them.
        kills: How many kills, power cuts, SIGTERM and SIGINT; half of them at random times, half at moments chosen
            among all files that are written. One full disk, moved folder and damaged checkpoint for ten of them.
        hangs: How many times a process stands still.
        processes: Processes of the training; several are started by torchrun.
        method: As train takes it.
        model: As train takes it.
        out: A new folder. Default: runs/soak-TASKS-METHOD.
        config: As train takes it.
        as_json: Print every start and difference as JSON.
    """


def compare(*words: Raw) -> int:
    """Train several methods on the same tasks, and compare them."""
    from headstart.cli.options import call, first_look
    from headstart.training.config import merged, normal

    sources, names = first_look(words)
    if not sources:
        more = "What there is to choose depends on the tasks and the methods"
        if call(_compare, words, [], f"{more}: `headstart compare icons --methods maml,svm --help`.") is not None:
            normal({})  # says that they are missing
        return 0
    base, methods, schemas = _of_methods(sources, names)
    called = call(_compare, words, schemas)
    if called is None:
        return 0
    _refuse_late(sources, called)
    from headstart.training.compare import compare, default_methods, pictures, rows
    from headstart.training.progress import view

    tree = merged(base, called.tree)
    out = called.own.get("out") or Path("runs", f"{_named(sources)}-comparison")
    entries = compare(tree, methods or default_methods(tree), out, jobs=called.own.get("jobs", 1), view=view())
    stopped = entries[-1].result.stopped
    if stopped is not None:
        print(f"stopped by {stopped.name} in {entries[-1].name}; the same command goes on from there")
        return 128 + stopped
    table, drawn = rows(entries), [str(path) for path in pictures(entries, out)]
    if called.own.get("as_json"):
        print_json({"table": table, "pictures": drawn})
        return 0
    print_table(
        f"{table[0]['episodes'] if table else 0} unseen test tasks, mean ± 95 % interval",
        ("method", "score", "outer steps", "best after", "seconds"),
        [tuple(str(row[name]) for name in ("method", "score", "steps", "best_step", "seconds")) for row in table],
    )
    for path in drawn:
        print(path)
    return 0


def _named(sources: Sequence[str]) -> str:
    paths = [Path(source) for source in sources]
    return "+".join(path.stem if path.is_file() else path.name for path in paths)


def _of_methods(
    sources: Sequence[str], names: dict[str, str], models: Sequence[str] = ()
) -> "tuple[dict[str, Any], list[str], list[Schema]]":
    """Return the tree that the words name, the methods named, and what there is to choose for each that is trained."""
    from headstart.cli.options import choices, named
    from headstart.training.config import kind_of, normal, together

    base = normal({owner: part for owner, part in named(together(sources), names).items() if owner != "method"})
    methods, schemas = [name.strip() for name in names.get("methods", "").split(",") if name.strip()], []
    for method in methods or kind_of(base).compared:
        for model in [{"name": name} for name in models] or [base.get("model", {})]:
            model = {} if find("method", method).model == "none" else model
            schemas.append(choices({**base, "method": {"name": method}, "model": model}))
    return base, methods, schemas


def _compare(
    *tasks: str,
    methods: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    jobs: int = 1,
    as_json: Json = False,
) -> None:
    """Train several methods on the same tasks, and compare them.

    One table shows their scores on the same unseen test tasks. An option is given to the methods that take it; what is
    not given is each method's own default. The same command again goes on where it was stopped.

    Args:
        tasks: A task family's name (headstart list tasks), or a folder or file of your own: a folder of class folders
            of images, a CSV or Parquet file. Several of images: each task is of one of them, by --weights.
        methods: Names of methods (headstart list methods), joined by commas. Default: those that suit the kind of data.
        model: The network (headstart list models), or a pretrained one, such as hf:FOLDER, for methods that use one.
            Default: conv4 for images, ngrams for texts, else mlp.
        out: The folder of the table, with one run's folder a method in it. Default: runs/TASKS-comparison.
        jobs: How many methods to train at the same time, each in a process of its own.
        as_json: Print the table as JSON.
    """


def sweep(*words: Raw) -> int:
    """Train methods with several options and seeds, and put the means over seeds in a table."""
    from headstart.cli.options import behind, call, first_look, grid
    from headstart.training.config import merged, normal

    settings = behind(words, "--set")
    sources, names = first_look([word for word in words if word not in settings])
    if not sources:
        more = "What there is to choose depends on the tasks and the methods"
        if call(_sweep, words, [], f"{more}: `headstart sweep icons --methods maml,svm --help`.") is not None:
            normal({})  # says that they are missing
        return 0
    models = grid([one for one in settings if one.startswith("model=")], []).get("model.name", ())
    base, methods, schemas = _of_methods(sources, names, models)
    called = call(_sweep, words, schemas)
    if called is None:
        return 0
    _refuse_late(sources, called)
    from headstart.training.progress import view
    from headstart.training.sweep import local, markdown, reason, rows, sweep

    tree, own = merged(base, called.tree), called.own
    out = own.get("out") or Path("runs", f"{_named(sources)}-sweep")
    launch = local
    if own.get("launcher", "local") == "slurm":
        from headstart.training.slurm import resources_of, slurm

        launch = slurm(**resources_of(own.get("resources", "")))
    found = sweep(
        tree,
        methods or None,
        out,
        grid=grid(settings, schemas),
        seeds=own.get("seeds", 5),
        jobs=own.get("jobs", 1),
        launch=launch,
        view=view(),
    )
    if found.stopped is not None:
        print(f"stopped by {found.stopped.name}; the same command goes on from there")
        return 128 + found.stopped
    if own.get("as_json"):
        print_json({"table": rows(found), "failed": {name: reason(error) for name, error in found.failed.items()}})
    else:
        print(markdown(found), end="")
        print(out)
    for name, error in found.failed.items():
        print(f"failed: {name}: {reason(error)}", file=sys.stderr)
    if found.failed:
        print(f"{len(found.failed)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if found.failed else 0


def _sweep(
    *tasks: str,
    methods: str | None = None,
    model: str | None = None,
    seeds: int = 5,
    set: Several | None = None,
    jobs: int = 1,
    launcher: Literal["local", "slurm"] = "local",
    resources: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train methods with several options and seeds, and put the means over seeds in a table.

    The table has the mean test score over seeds, with its 95 % intervals over seeds, over tasks, and over both. Where a
    method has several settings, the one is marked that is best on the validation tasks: test tasks choose nothing. Each
    run has a folder of its own, named by its setting and seed; the same command again goes on where it was stopped, and
    tries again what failed.

    Args:
        tasks: A task family's name (headstart list tasks), or a folder or file of your own: a folder of class folders
            of images, a CSV or Parquet file. Several of images: each task is of one of them, by --weights.
        methods: Names of methods (headstart list methods), joined by commas. Default: those that suit the kind of data.
        model: The network (headstart list models), or a pretrained one, such as hf:FOLDER, for methods that use one.
            Default: conv4 for images, ngrams for texts, else mlp.
        seeds: How many seeds, from --seed on.
        set: Options with the values to try, as in inner-rate=0.01,0.1 steps=1000,2000: each value with each, for the
            methods that take them. A value that has a comma itself is in quotes.
        jobs: How many runs at the same time, each in a process of its own.
        launcher: Where they run: on this machine, or as jobs of Slurm, which needs submitit.
        resources: What each job of Slurm asks for, in submitit's words, as in timeout_min=240,slurm_partition=gpu.
        out: The folder of the table, with the runs' folders in it. Default: runs/TASKS-sweep.
        as_json: Print the table as JSON.
    """


def matrix(*words: Raw) -> int:
    """Train methods on each of several sources, and judge them on each of several."""
    from headstart.cli.options import behind, call, choices, first_look
    from headstart.training.config import forms

    names, train, test = first_look(words)[1], behind(words, "--train"), behind(words, "--test")
    methods = [name.strip() for name in names.get("methods", "").split(",") if name.strip()]
    schemas = []
    for source in [*train, *test]:
        kind = find("data", find("task", _family(source)).kind)
        for method in methods or kind.compared[:1]:
            model = {} if find("method", method).model == "none" else names.get("model")
            for tasks in forms(source):
                schema = choices({"tasks": tasks, "method": {"name": method}, "model": model})
                options = schema.options.items()  # here a task is of one source
                kept = {name: one for name, one in options if name not in ("tasks.sources", "tasks.weights")}
                schemas.append(schema._replace(options=kept))
    more = "What there is to choose depends on the sources and the methods: `headstart matrix --train icons --help`."
    called = call(_matrix, words, schemas, "" if schemas else more)
    if called is None:
        return 0
    from headstart.training.matrix import matrix, rows
    from headstart.training.progress import view
    from headstart.training.report.report import shown

    tree: dict[str, Any] = dict(called.tree)
    if "model" in names:
        tree["model"] = {"name": names["model"], **tree.get("model", {})}
    out = called.own.get("out") or Path("runs", "matrix")
    found = matrix(tree, train, test or None, methods or None, out, jobs=called.own.get("jobs", 1), view=view())
    if found.stopped is not None:
        print(f"stopped by {found.stopped.name}; the same command goes on from there")
        return 128 + found.stopped
    table = rows(found)
    if called.own.get("as_json"):
        print_json({"table": table, "pictures": [str(out / "matrix.png")]})
        return 0
    targets = list(dict.fromkeys(row["on"] for row in table))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in table:
        metric = "accuracy" if "accuracy" in row else "mse"
        kind = "classification" if metric == "accuracy" else "regression"
        told = shown(kind, row[metric], row["ci95"]).removeprefix(f"{metric} ")
        worse = -1 if metric == "accuracy" else 1
        if row["than_untrained"] is not None and worse * row["than_untrained"] > row["than_untrained_ci95"]:
            told += " *"
        lines.setdefault((row["method"], row["trained_on"] or "nothing"), {})[row["on"]] = told
    print_table(
        f"{table[0]['tasks']} unseen test tasks each, mean ± 95 % interval"
        + ("; * worse than the best that learns nothing" if any(row["trained_on"] is None for row in table) else ""),
        ("method", "trained on", *(f"on {target}" for target in targets)),
        [(*names, *(told.get(target, "") for target in targets)) for names, told in lines.items()],
        left=2,
    )
    for note in dict.fromkeys(cell.notes[0] for cell in found.cells if cell.notes):
        print(f"note: {note}")
    for name in ("matrix.csv", "matrix.json", "matrix.png"):
        print(out / name)
    return 0


def _family(source: str) -> str:
    from headstart.training.config import normal

    return str(normal({"tasks": source})["tasks"]["name"])


def _matrix(
    *,
    train: Several,
    test: Several | None = None,
    methods: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    jobs: int = 1,
    as_json: Json = False,
) -> None:
    """Train methods on each of several sources, and judge them on each of several.

    One table shows the accuracy (or error) by what was trained on and judged on; matrix.csv and .json say by how much a
    run differs, on the same tasks, from the same method trained on that source itself, and from the best that learns
    nothing: the nearest class mean, and such methods as scratch and frozen. An option is given to the sources and
    methods that take it. The same command again goes on where it was stopped.

    Args:
        train: What to train on: names of families, or folders or files of your own.
        test: What to judge on. Default: what is trained on.
        methods: Names of methods (headstart list methods), joined by commas. Default: those that suit the kind of data.
        model: The network (headstart list models), for methods that use one. Default: conv4 for images, else mlp.
        out: The folder of the table, with a folder a source in it, and in that a run's folder a method. Default:
            runs/matrix.
        jobs: How many methods to train at the same time, each in a process of its own.
        as_json: Print the table as JSON.
    """


def evaluate(*words: Raw) -> int:
    """Judge a run on fixed tasks: mean and 95 % interval."""
    from headstart.cli.options import call, choices, first_look, named

    names = first_look(words)[1]
    schema = choices(named(names["on"], names)) if "on" in names else None
    if schema is not None:  # of the other tasks there is nothing else to choose
        own = {name: one._replace(default=None) for name, one in schema.options.items() if name.startswith("tasks.")}
        schema = schema._replace(options=own)
    more = "" if schema else "The tasks of --on have options of their own: `headstart evaluate RUN --on icons --help`."
    called = call(_evaluate, words, None if schema is None else [schema], more)
    if called is None:
        return 0
    from headstart.training.build import find_device, make_tasks
    from headstart.training.distributed import processes
    from headstart.training.elsewhere import evaluate_on
    from headstart.training.report.report import score_to_json
    from headstart.training.run import open_run, test

    given: dict[str, Any] = {"episodes": 600, "split": "test", "seed": None, "device": "auto", **called.own}
    run, seed, told, notes = given["run"], given["seed"], dict[str, Any](), ()
    judging: dict[str, Any] = {name: given[name] for name in ("episodes", "split")}
    with processes(device=find_device(given["device"])):
        if "on" in given:
            source = {"name": given["on"], **called.tree.get("tasks", {})}
            score, trained_on, on, seed, step, notes = evaluate_on(
                run, source, seed=seed, device=given["device"], **judging
            )
            told = {"trained_on": trained_on, "on": on, "notes": list(notes)}
        else:
            job, checkpoint = open_run(run, given["device"])
            if seed is not None:
                job = job._replace(tasks=make_tasks(job.config, job.device, seed))
            seed = job.config.run.seed if seed is None else seed
            score, step = test(job, checkpoint.best.meta, **judging), checkpoint.best.step
    if given.get("as_json"):
        print_json({**told, **score_to_json(score), "seed": seed, "step": step})
        return 0
    if told:
        print(f"trained on {told['trained_on']}, judged on {told['on']}")
    print(score_text(score))
    for note in notes:
        print(f"note: {note}")
    return 0


def _evaluate(
    run: Path,
    /,
    *,
    on: str | None = None,
    episodes: Annotated[int, Parameter(validator=Number(gte=2))] = 600,
    split: Literal["test", "validation", "train"] = "test",
    seed: UInt32 | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Judge a run on fixed tasks: mean and 95 % interval.

    Args:
        run: A run's folder.
        on: Other tasks to judge on, as train takes them: their inputs are made such as the run was trained on, and
            ways, shots and queries are the run's where nothing else is said. Default: the run's own.
        episodes: Number of tasks. Range: from 2 up.
        split: Which tasks.
        seed: Seed of the tasks. Range: from 0 to 4294967295. Default: the run's.
        as_json: Print the result as JSON.
    """


def adapt(*words: Raw) -> int:
    """Learn new tasks from examples: folders of images, texts, a table or points of curves."""
    from headstart.cli.options import call, first_look
    from headstart.training.without_run import choices, is_network

    free = first_look(words)[0]
    network = free[0] if free and is_network(free[0]) else None
    schema = choices(network, free[1]) if network is not None and len(free) > 1 else None
    more = "A network has options of its own: `headstart adapt hf:FOLDER SOURCE --help`."
    called = call(_adapt, words, None if schema is None else [schema], "" if schema else more)
    if called is None:
        return 0
    from headstart.training.adapt import adapt
    from headstart.training.cross_validation import told_text
    from headstart.training.report.adapted_card import more_text

    given = dict(called.own)
    as_json, run, source = given.pop("as_json", False), given.pop("run"), given.pop("source", None)
    model = adapt(run if schema is None else {**called.tree, "model": network}, source, **given)
    if as_json:
        tasks = [{"name": task.name, "labels": list(task.labels), "counts": list(task.counts)} for task in model.tasks]
        for task, told in zip(tasks, model.told):
            task |= {"judged": list(told.judged), "right": list(told.right)}
        print_json(
            {
                "out": str(given["out"]),
                "kind": model.by.kind.name,
                "named": model.named,
                "tasks": tasks,
                "warnings": list(model.warnings),
            }
        )
        return 0
    count, labels = len(model.tasks), {task.labels for task in model.tasks}
    names = labels.pop() if len(labels) == 1 else ()
    of = f" of {len(names)} classes ({', '.join(names)})" if names else ""
    total = sum(sum(task.counts) for task in model.tasks)
    more = ", and the names of the classes" if model.named else ""
    print(f"learned {count} task{'s' * (count != 1)}{of} from {total} {model.by.kind.examples}{more}: {given['out']}")
    if model.told:
        print(told_text(model.told, model.by.kind.examples))
    if more := more_text(model):
        print(more)
    for text in model.warnings:
        print(f"warning: {text}")
    return 0


def _adapt(
    run: str,
    source: Path | None = None,
    /,
    *,
    out: Path,
    device: Device = "auto",
    strict: Annotated[bool, Parameter(negative="")] = False,
    keep_examples: bool = True,
    names: bool | None = None,
    cross_validate: bool = True,
    remove: Several | None = None,
    as_json: Json = False,
) -> None:
    """Learn new tasks from examples: folders of images, texts, a table or points of curves.

    Given a pretrained network instead of a run, learn by it as it is: nothing has to be trained before. Given an
    adapted folder instead of a run, add to what it has learned: new classes and tasks, and more examples of
    those it knows, or what another adapted folder of the same run has learned. The result is what learning from all of
    them at once is.

    Args:
        run: A run's folder; or a pretrained network (headstart list networks), such as hf:FOLDER, or, for texts,
            ngrams; or the folder of an adapted model to add to.
        source: Texts: a file of texts and their labels. Images: a folder that holds one folder of images for each
            class, whose names are the labels; or many of them in one folder, each a task. A table: a CSV or Parquet
            file with the run's features and target; each value of the task column is a task. Curves: one of columns x
            (or x1, x2, … where an input has several numbers) and y, and maybe task. Left out: nothing is known of the
            new task, which is predicted as the training tasks say (tables, curves).
        out: The folder to write; new or empty.
        strict: Refuse an image that cannot be read, and a class without any, rather than leave it out.
        keep_examples: Keep the examples in OUT, so that more can be added to it later.
        names: Of texts, count the name of each class as an example more of it. Default: as before, where something is
            added; else without a run, where at least half of the names, and four, are told by the examples.
        remove: Of an adapted folder, what the result is to be without: names of tasks, of classes, or TASK/CLASS.
        cross_validate: Of classes, say how good the result is: learn again without some of the examples, and predict
            these.
        as_json: Print the result as JSON.
    """


def predict(
    model: Path,
    inputs: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    task: str | None = None,
    reject: float | None = None,
    unknown_share: float | None = None,
    out: Path | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict with what adapt has learned: classes of images or texts, or rows of a table or of curves.

    Args:
        model: A folder that headstart adapt has written.
        inputs: Images, or CSV or Parquet files with rows or texts; folders of them; globs; or texts in quotes.
        task: Which of the learned tasks to predict by. Default: the one that a row's task column names, or a folder
            around an image.
        reject: Call `none` what looks like none of the classes, such that of examples of the classes no more than this
            share is called so, such as 0.05. Default: every example gets a label.
        unknown_share: Which share of what is asked is of none of the classes, as far as you know: probabilities count
            with it. With 0, everything is of the classes. Default: 0.5, where that is known of the run.
        out: A .csv file to write, or a .jsonl file of one JSON object a line. Default: print CSV.
        as_json: Print the result as JSON.
    """
    from headstart.training.adapted import open_adapted
    from headstart.training.files import writing
    from headstart.training.prediction_lines import csv_lines, writer_of
    from headstart.training.predictions import predictions

    lines_of = csv_lines if out is None else writer_of(out)
    opened, failed, count = open_adapted(model, device=device), list[HeadstartError](), 0
    labels = dict.fromkeys(label for one in opened.tasks if task in (None, one.name) for label in one.labels)

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in predictions(
            opened, inputs, task=task, reject=reject, unknown_share=unknown_share, failed=failed.append
        ):
            if as_json:
                print_item(row, first=not count)
            count += 1
            yield row
        if failed and not count:
            raise _not_predicted(failed)

    if out is not None:
        with writing(out) as file:
            file.writelines(line.encode() for line in lines_of(counted(), labels))
        if not as_json:
            print(f"predicted {count}: {out}")
    elif as_json:
        count = sum(1 for _ in counted())
    else:
        for line in lines_of(counted(), labels):
            print(line, end="", flush=True)
    if as_json:
        print("\n]" if count else "[]")
    if failed:
        raise _not_predicted(failed)


def _not_predicted(errors: Sequence[HeadstartError]) -> DataError:
    return DataError("\n  ".join([f"not predicted, {len(errors)}:", *map(str, errors)]))


def report(run: Path, /, *, device: Device = "auto", as_json: Json = False) -> None:
    """Draw a run's pictures and write its model card again.

    structure.png, .csv and .json hold what was learned about the model: rates, movement (how far tasks move each
    tensor in the inner loop), masks, gates, and whatever else the method learns.

    Args:
        run: A run's folder.
        as_json: Print the files' paths as JSON.
    """
    from headstart.training.report.report import report
    from headstart.training.run import open_run

    job, checkpoint = open_run(run, device)
    paths = [str(path) for path in report(run, job, checkpoint.best.meta)]
    if as_json:
        print_json(paths)
    else:
        print("\n".join(paths))


def listing(kind: Literal["methods", "tasks", "models", "networks", "data"], /, *, as_json: Json = False) -> None:
    """List methods, tasks, models, where pretrained networks come from, or kinds of data.

    Methods marked keras exist for Keras models on TensorFlow, too.

    Args:
        kind: What to list.
        as_json: Print the list as JSON.
    """
    named: dict[str, What] = {
        "methods": "method",
        "tasks": "task",
        "models": "model",
        "networks": "trunk",
        "data": "data",
    }
    found = rows(named[kind])
    if kind == "networks":  # called as one writes them
        found = tuple(row._replace(name=row.usage) for row in found)
    marks = {r.name: {"transductive": r.transductive, "keras": bool(r.keras)} for r in found if kind == "methods"}
    if as_json:
        plain = ({"name": row.name, "summary": row.summary, "reference": row.reference} for row in found)
        print_json([row | marks.get(row["name"], {}) for row in plain])
        return
    width = max(len(row.name) for row in found)
    for row in found:
        mark = "".join(f"; {name}" for name, holds in marks.get(row.name, {}).items() if holds)
        print(f"{row.name:{width}}  {row.summary}{mark}" + (f" [{row.reference}]" if row.reference else ""))


COMMANDS = {
    "train": train,
    "soak": soak,
    "evaluate": evaluate,
    "compare": compare,
    "sweep": sweep,
    "matrix": matrix,
    "adapt": adapt,
    "predict": predict,
    "report": report,
    "export": export,
    "list": listing,
    **SERVICE,
}

IN_SEVERAL = ("train", "evaluate")
"""What several processes, such as torchrun starts, can share."""
