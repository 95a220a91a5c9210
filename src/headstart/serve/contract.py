"""What the service takes and gives, over HTTP: bodies, limits and errors, as OpenAPI has them.

Nothing here imports PyTorch: the process that speaks HTTP computes nothing.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from headstart.errors import DataError, HeadstartError

Kind = Literal["images", "text", "tables"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]
#: Letters of a value in a row, of a text, and of an image in base64.
_VALUE, _TEXT = 20_000, 100_000
#: Examples, or inputs, that are looked at, whatever the limits are: to check more of them keeps others waiting.
_MANY = 10_000
Value = Annotated[str, StringConstraints(max_length=_VALUE)] | bool | int | float | None
Row = dict[Annotated[str, StringConstraints(max_length=200)], Value]


def _strict(*examples: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": list(examples)})


#: A drawing of 4 x 4 pixels, as examples in the description have it.
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAAAAACMmsGiAAAAEklEQVR4nGP4DwUMDAwMDFAAAF3kB/nBWZ6rAAAAAElFTkSuQmCC"


class Limits(BaseModel):
    """What is refused before any work is done: more than this."""

    body_bytes: int = 10_000_000
    ways: int = 100
    shots: int = 100
    """Examples of a class."""
    examples: Annotated[int, Field(le=_MANY)] = 1_000
    """Examples of a task."""
    queries: Annotated[int, Field(le=_MANY)] = 1_000
    """Inputs of a request."""
    tasks: int = 100_000
    """Tasks of a tenant."""
    queue: int = 64
    """Requests that wait to be computed."""
    requests: int = 256
    """Requests that are read at the same time."""
    adapt_seconds: float = 30.0
    predict_seconds: float = 5.0
    connections: int = 768
    """Connections at the same time, also those on which nothing is asked; others are closed."""
    head_seconds: float = 10.0
    """How long the head of a request may take to come."""
    body_seconds: float = 30.0
    """How long a body may take to come, and nothing of an answer to be taken."""

    def check(self, labels: Sequence[str], counts: Sequence[int]) -> None:
        """Refuse a task that is too large, as `DataError`."""
        total, most = sum(counts), max(counts, default=0)
        if len(labels) > self.ways:
            raise DataError(f"the task has {len(labels)} classes; at most {self.ways} are taken")
        if labels and most > self.shots:
            raise DataError(f"a class has {most} examples; at most {self.shots} of a class are taken")
        if total > self.examples:
            raise DataError(f"the task has {total} examples; at most {self.examples} are taken")


class Input(BaseModel):
    """An image (a file in base64), a text, or a row of a table."""

    model_config = _strict()
    image: Annotated[str, StringConstraints(min_length=1)] | None = None
    text: Annotated[str, StringConstraints(min_length=1, max_length=_TEXT)] | None = None
    row: Row | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> "Input":
        """Refuse what is several of them, or none."""
        if sum(part is not None for part in (self.image, self.text, self.row)) != 1:
            raise ValueError("give one of image, text and row")
        return self


class Example(Input):
    """An input and its label; a row has its target in itself."""

    label: Label | None = None


class NewTask(BaseModel):
    """A task to learn."""

    model_config = _strict(
        {"name": "mail", "examples": [{"label": "card", "text": "my card"}, {"label": "refund", "text": "my money"}]},
        {"run": "icons", "examples": [{"label": "cat", "image": PIXELS}, {"label": "dog", "image": PIXELS}]},
    )
    run: Annotated[str, StringConstraints(max_length=200)] | None = None
    name: Annotated[str, StringConstraints(max_length=200)] | None = None
    examples: Annotated[list[Example], Field(min_length=1, max_length=_MANY)]


class MoreExamples(BaseModel):
    """Examples, and maybe classes, to add."""

    model_config = _strict({"examples": [{"label": "card", "text": "my card is lost"}]})
    examples: Annotated[list[Example], Field(min_length=1, max_length=_MANY)]


class Shares(BaseModel):
    """How examples of none of the classes are counted with, as `headstart.predict` takes it."""

    model_config = _strict()
    reject: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Which share of examples of the classes may be turned away, at most; ``null``: none is."""
    unknown_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Which share of what is asked is of none of the classes, as far as who asks knows; ``null``: the run's."""


class Inputs(Shares):
    """Inputs to predict."""

    model_config = _strict({"inputs": [{"text": "where is my money?"}], "reject": 0.05, "unknown_share": 0.1})
    inputs: Annotated[list[Input], Field(min_length=1, max_length=_MANY)]


class Estimate(BaseModel):
    """How many of a task's examples are told right by the others, and the 95 % interval of that share."""

    right: int
    judged: int
    accuracy: float
    low: float
    high: float
    more: str | None = None
    """What more examples would buy, by the run's validation tasks."""


class Task(BaseModel):
    """A task that was learned."""

    id: str
    run: str
    name: str | None
    kind: Kind
    labels: list[str]
    counts: list[int]
    estimate: Estimate | None
    warnings: list[str]
    created: str
    changed: str


class TaskList(BaseModel):
    """Tasks, the oldest first, and the id behind which others stand."""

    tasks: list[Task]
    next: str | None


class Prediction(BaseModel):
    """An answer: a label, ``null`` for none of these, or a number.

    ``probabilities`` and ``unknown``, that of none of the labels, are 1 together.
    """

    model_config = ConfigDict(extra="allow")
    prediction: str | float | None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    unknown: float | None = None
    set: list[str] | None = None
    low: float | None = None
    high: float | None = None
    unseen: list[str] | None = None
    """Of a row: the columns whose value is like none of training tasks; nothing was learned of such rows."""


class Predictions(BaseModel):
    """An answer for each input, in order."""

    predictions: list[Prediction]


class RunTold(BaseModel):
    """What tasks can be learned by."""

    name: str
    kind: Kind
    method: str
    ways: list[int] | None
    """The least and the most classes; ``null`` where numbers are predicted."""
    columns: list[str]
    target: str | None
    unknown_share: float | None
    """Which share of what is asked is taken for being of none of the classes, where a request does not say; ``null``
    where nothing tells such examples."""
    input: dict[str, Any]


class Served(Limits):
    """What is served, and what a request may hold."""

    runs: list[RunTold]


class ErrorTold(BaseModel):
    """What went wrong."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorTold


class RefusedError(HeadstartError):
    """A request that is refused, with what HTTP calls that."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers or {}


def refused_later(message: str, seconds: int = 1, status: int = 429) -> RefusedError:
    """Return the error for what can be asked again after so many seconds."""
    return RefusedError(
        status, "BusyError" if status == 429 else "UnavailableError", message, {"Retry-After": str(seconds)}
    )


#: The errors that headstart raises on purpose, as HTTP has them; all others are 500.
STATUS = {
    "DataError": 422,
    "ShortClassError": 422,
    "LeakageError": 422,
    "UsageError": 422,
    "UnknownNameError": 422,
    "ConfigError": 422,
    "ShapeError": 422,
    "DivergenceError": 422,
    "ConflictError": 409,
    "OutOfMemoryError": 503,
    "StoreFullError": 503,
    "StoreAwayError": 503,
    "DamagedError": 500,
}


def shown(text: object, most: int = 60) -> str:
    """Return a text that came with a request so that it can be shown: short, and with nothing in it that acts."""
    plain = ascii(str(text))[1:-1]
    return plain if len(plain) <= most else f"{plain[:most]}…"


def invalid(errors: Sequence[Any]) -> str:
    """Return what pydantic says is wrong with a body, without what the body holds."""
    told = []
    for error in errors[:3]:
        place = ".".join(shown(part, 40) for part in error["loc"])
        told.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return "; ".join(told)[:600] + more
