"""``headstart adapt`` and ``headstart predict``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headstart.cli.evaluate import Device, Json
from headstart.cli.output import print_json


def adapt(
    run: Path,
    support: Path,
    /,
    *,
    out: Path,
    device: Device = "auto",
    strict: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Learn a new task: new classes from a folder of class folders of images, or a table's new task from its rows.

    Parameters
    ----------
    run
        A run's folder, of tasks on images or of a table.
    support
        Images: a folder that holds one folder of images for each class; the folders' names are the labels. A table: a
        CSV or Parquet file of one task's rows, with the run's features and target.
    out
        The folder to write; new or empty.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    strict
        Images: refuse a folder that holds an unreadable image, rather than skip that image.
    as_json
        Print the result as JSON.
    """
    from headstart.training.table_schema import is_table_run

    if is_table_run(run):
        _adapt_table(run, support, out, device, strict, as_json)
        return
    from headstart.training.adapted import adapt

    model = adapt(run, support, out, device, strict)
    if as_json:
        print_json({"out": str(out), "classes": list(model.classes)})
    else:
        print(f"learned {len(model.classes)} classes ({', '.join(model.classes)}): {out}")


def _adapt_table(run: Path, support: Path, out: Path, device: Device, strict: bool, as_json: bool) -> None:
    from headstart.errors import UsageError
    from headstart.training.adapted_table import adapt

    if strict:
        raise UsageError("--strict is for folders of images; a table is always refused where a value does not fit")
    model = adapt(run, support, out, device)
    if as_json:
        described = {"out": str(out), "target": model.schema.target, "rows": sum(model.counts)}
        print_json(described | ({"classes": list(model.schema.classes)} if model.schema.classes else {}))
    else:
        print(f"learned {model.schema.target!r} from {sum(model.counts)} rows: {out}")


def predict(
    model: Path,
    inputs: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    out: Path | None = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print each image's label and the probability that the model gives it, or a table's rows with predictions.

    Parameters
    ----------
    model
        A folder that headstart adapt has written.
    inputs
        Image files; or a CSV or Parquet file with the rows of a table.
    out
        A table: the CSV file to write. Default: print it.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    as_json
        Print the result as JSON: the probabilities of all labels, or one object a row.
    """
    from headstart.errors import UsageError
    from headstart.training.adapted_table import is_table_model

    if is_table_model(model):
        _predict_table(model, inputs, out, device, as_json)
        return
    from headstart.training.adapted import open_adapted, predict

    if out is not None:
        raise UsageError(f"--out is for tables, but {model} has learned from images; leave it out, or take --json")
    found = predict(open_adapted(model, device), inputs)
    if as_json:
        print_json([prediction._asdict() for prediction in found])
    else:
        for prediction in found:
            print(f"{prediction.image}\t{prediction.label}\t{prediction.probability:.3f}")


def _predict_table(model: Path, inputs: list[Path], out: Path | None, device: Device, as_json: bool) -> None:
    from headstart.errors import UsageError
    from headstart.training.adapted_table import open_adapted, predict

    if len(inputs) != 1:
        raise UsageError(f"{model} has learned from a table and takes one file of rows; got {len(inputs)}")
    found = predict(open_adapted(model, device), inputs[0], out)
    if as_json:
        columns = found.columns()
        print_json([dict(zip(columns, row)) for row in zip(*columns.values())])
    elif out is None:
        print(found.to_csv(), end="")
    else:
        print(f"predicted {len(found.prediction)} rows: {out}")
