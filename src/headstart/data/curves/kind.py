"""Curves as a kind of data: a new task is points in a file of columns x and y, as they are, and maybe a column task."""

from typing import Any

from headstart.data.kind import Elsewhere
from headstart.data.tables.kind import TABLES
from headstart.data.tables.schema import Feature, Schema, schema_to_json
from headstart.errors import ConfigError
from headstart.types import Tasks


def _preparation(tasks: Tasks) -> dict[str, Any] | None:
    """Return the schema of a table whose numbers are taken as they are; inputs of several numbers are x1, x2, …"""
    if tasks.kind != "regression" or len(tasks.input_shape) != 1 or tasks.output_size != 1:
        return None
    (size,) = tasks.input_shape
    columns = ["x"] if size == 1 else [f"x{place + 1}" for place in range(size)]
    return schema_to_json(
        Schema("task", "y", None, "regression", tuple(Feature(column, "number") for column in columns))
    )


def _task(tasks: Tasks) -> str:
    details, shots = tasks.details, tasks.details["shots"]
    shots = "-".join(map(str, shots)) if isinstance(shots, tuple) else shots
    text = f"{shots} support points to learn from, {details['queries']} query points to be judged on"
    if details.get("frequency", (1.0, 1.0)) != (1.0, 1.0):
        text += f"; frequency {details['frequency'][0]:g}-{details['frequency'][1]:g}"
    if details.get("noise"):
        text += f"; noise {details['noise']:g}, so that no expected error is below {details['noise_variance']:.4g}"
    return text


def _fitted(own: Tasks, other: Tasks) -> Tasks:
    if other[2:5] != own[2:5]:
        told = "; ".join(f"{one.name}: {one.input_shape}, {one.output_size}" for one in (own, other))
        raise ConfigError(f"the numbers in and out of the tasks differ ({told})")
    return other


CURVES = TABLES._replace(
    name="curves",
    recognises=lambda path: False,
    preparation=_preparation,
    task=_task,
    examples="points",
    elsewhere=Elsewhere(("shots", "queries"), lambda own: {}, _fitted),
    usage=("POINTS.csv", "MORE_POINTS.csv"),
    picture="headstart.training.report.episodes.curves:picture",
    caption="The picture episode.png shows the first test tasks before and after adapting.",
)
