"""``headstart compare``."""

from pathlib import Path
from typing import Any

from headstart.cli.output import Json, Raw, print_json, print_table

_MORE = (
    "What there is to choose depends on the tasks and the methods: `headstart compare icons --methods maml,svm --help`."
)


def compare(*words: Raw) -> int:
    """Train several methods on the same tasks, and compare them."""
    from headstart.cli.options import call, choices, first_look
    from headstart.training.config import merged, normal

    look = first_look(words)
    if look.source is None:
        call(_compare, words, [], _MORE)
        return 0
    named = {"tasks": look.source, "model": look.names.get("model")}
    base: dict[str, Any] = {owner: {"name": name} for owner, name in named.items() if name}
    names = [name.strip() for name in look.names.get("methods", "").split(",") if name.strip()]
    called = call(_compare, words, [choices(_for(normal(base), method)) for method in names or _usual(base)])
    if called is None:
        return 0
    from headstart.training.compare import compare, default_methods, pictures, rows
    from headstart.training.progress import view

    tree = merged(base, called.tree)
    name = Path(look.source)
    out = called.own.get("out") or Path("runs", f"{name.stem if name.is_file() else name.name}-comparison")
    entries = compare(tree, names or default_methods(tree), out, view=view())
    stopped = entries[-1].result.stopped
    if stopped is not None:
        print(f"stopped by {stopped.name} in {entries[-1].method}; the same command goes on from there")
        return 128 + stopped
    table, drawn = rows(entries), pictures(entries, out)
    if called.own.get("as_json"):
        print_json({"table": table, "pictures": [str(path) for path in drawn]})
        return 0
    episodes = table[0]["episodes"] if table else 0
    print_table(
        f"{episodes} unseen test tasks, mean ± 95 % interval",
        ("method", "score", "outer steps", "seconds"),
        [(row["method"], row["score"], str(row["steps"]), str(row["seconds"])) for row in table],
    )
    for path in drawn:
        print(path)
    return 0


def _usual(tree: dict[str, Any]) -> tuple[str, ...]:
    """Return the methods that may be compared on a kind of data where nobody names any."""
    from headstart.registry import find
    from headstart.training.config import normal

    return find("data", find("task", normal(tree)["tasks"]["name"]).kind).compared


def _for(tree: dict[str, Any], method: str) -> dict[str, Any]:
    """Return a tree with a method, and without a model for one that uses none."""
    from headstart.registry import find

    uses = find("method", method).model != "none"
    return {owner: part for owner, part in tree.items() if owner != "model" or uses} | {"method": {"name": method}}


def _compare(
    tasks: str,
    /,
    *,
    methods: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train several methods on the same tasks, and compare them.

    One table shows their scores on the same unseen test tasks. An option is given to the methods that take it; what is
    not given is each method's own default. The same command again goes on where it was stopped.

    Parameters
    ----------
    tasks
        A task family's name (headstart list tasks), or a folder or file of your own: a folder of class folders of
        images, a CSV or Parquet file.
    methods
        Names of methods (headstart list methods), joined by commas. Default: those that suit the kind of data.
    model
        The network (headstart list models), for methods that use one. Default: conv4 for images, else mlp.
    out
        The folder of the table, with one run's folder a method in it. Default: runs/TASKS-comparison.
    as_json
        Print the table as JSON.
    """


_compare.__name__ = "compare"
