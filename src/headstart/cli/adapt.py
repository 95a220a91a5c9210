"""``headstart adapt`` and ``headstart predict``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headstart.cli.output import Device, Json, print_json


def adapt(
    run: Path,
    source: Path,
    /,
    *,
    out: Path,
    device: Device = "auto",
    strict: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Learn new tasks from a few examples each: classes of images, tasks of a table, curves.

    Parameters
    ----------
    run
        A run's folder.
    source
        Images: a folder that holds one folder of images for each class, whose names are the labels; or a folder of such
        folders, one a task. A table: a CSV or Parquet file with the run's features and target; each value of the task
        column is a task. Curves: a CSV or Parquet file of columns x and y, and maybe task.
    out
        The folder to write; new or empty.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    strict
        Refuse an image that cannot be read, rather than skip it.
    as_json
        Print the result as JSON.
    """
    from headstart.training.adapted import adapt

    model = adapt(run, source, out, device, strict)
    tasks = [{"name": task.name, "labels": list(task.labels), "counts": list(task.counts)} for task in model.tasks]
    if as_json:
        print_json({"out": str(out), "kind": model.kind.name, "tasks": tasks})
        return
    labels = {task.labels for task in model.tasks}
    of = (
        "".join(f" of {len(names)} classes ({', '.join(names)})" for names in labels if names)
        if len(labels) == 1
        else ""
    )
    total = sum(sum(task.counts) for task in model.tasks)
    print(f"learned {len(tasks)} task{'s' * (len(tasks) != 1)}{of} from {total} {model.kind.examples}: {out}")


def predict(
    model: Path,
    inputs: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    task: str | None = None,
    out: Path | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict with what adapt has learned: each image's label and probabilities, or a table's rows with predictions.

    Parameters
    ----------
    model
        A folder that headstart adapt has written.
    inputs
        Images, or CSV or Parquet files with rows; folders of them; or globs.
    task
        Which of the learned tasks to predict by. Default: the one that a row's task column names, or a folder around an
        image.
    out
        A .csv file to write, or a .jsonl file of one JSON object a line. Default: print CSV.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    as_json
        Print the result as JSON.
    """
    from headstart.training.adapted import open_adapted, predict, to_csv, writer_of
    from headstart.training.files import write

    text_of = to_csv if out is None else writer_of(out)
    found = predict(open_adapted(model, device), inputs, task)
    if out is not None:
        write(out, text_of(found).encode())
    if as_json:
        print_json(found)
    else:
        print(text_of(found) if out is None else f"predicted {len(found)}: {out}\n", end="")
