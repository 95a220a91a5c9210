"""The options of a training run: names, types, ranges and help texts.

Nothing here imports torch, so that ``headstart train --help`` is quick. An option that is ``None`` has a default
that depends on the tasks, the model or the method: `headstart.training.defaults.resolve` fills it in.
"""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from headstart.core.sizes import to_bytes
from headstart.errors import UsageError

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def _option(default: Any, text: str, **limits: Any) -> Any:
    """Return a field whose description also states its range."""
    described = limits_text({name: limits[name] for name in ("gt", "ge", "le") if name in limits})
    return Field(default, description=f"{text} Range: {described}." if described else text, **limits)


def limits_text(limits: dict[str, float]) -> str:
    low = f"above {limits['gt']}" if "gt" in limits else f"from {limits['ge']}" if "ge" in limits else ""
    if "le" in limits:
        return f"{low}{' up' if 'gt' in limits else ''} to {limits['le']}"
    return f"{low} up" if "ge" in limits else low


def _shots(value: Any) -> Any:
    """Turn "5" and 5 into 5, and "1-5", (1, 5) and [1, 5] into "1-5"."""
    low, _, high = _joined(value, "-").partition("-")
    if not (low.isdigit() and int(low) >= 1 and (not high or (high.isdigit() and int(high) >= int(low)))):
        raise ValueError("must be a number of at least 1, or a range low-high such as 1-5")
    return int(low) if not high or int(high) == int(low) else f"{int(low)}-{int(high)}"


def _frequency(value: Any) -> Any:
    """Turn "1" and 1 into 1.0, and "0.8-1.2", (0.8, 1.2) and [0.8, 1.2] into "0.8-1.2"."""
    found = re.fullmatch(rf"({_NUMBER})(?:-({_NUMBER}))?", _joined(value, "-").replace(" ", ""))
    low, high = (float(found[1]), float(found[2] or found[1])) if found else (0.0, 0.0)
    if not 0 < low <= high < float("inf"):
        raise ValueError("must be a number above 0, or a range low-high such as 0.8-1.2")
    return low if low == high else f"{low}-{high}"


def frequency_range(frequency: float | str) -> tuple[float, float]:
    """Return the ends of the option ``frequency``.

    >>> frequency_range("0.8-1.2"), frequency_range(1.0)
    ((0.8, 1.2), (1.0, 1.0))
    """
    ends = re.findall(_NUMBER, str(frequency))
    return float(ends[0]), float(ends[-1])


def _hidden(value: Any) -> Any:
    """Turn (64, 64), [64, 64] and "64, 64" into "64,64"."""
    text = _joined(value, ",").replace(" ", "")
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise ValueError("must be one or more layer widths of 1 to 99999, such as 40,40")
    return text


def _joined(value: Any, by: str) -> str:
    return by.join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value).strip()


def _memory(value: Any) -> str:
    """Turn 1000 into "1000", and refuse what is no amount of memory."""
    try:
        to_bytes(value)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return str(value)


Shots: TypeAlias = Annotated[int | str, BeforeValidator(_shots)]
Frequency: TypeAlias = Annotated[float | str, BeforeValidator(_frequency)]
Hidden: TypeAlias = Annotated[str, BeforeValidator(_hidden)]
Memory: TypeAlias = Annotated[str, BeforeValidator(_memory)]


class Options(BaseModel):
    """Everything that can be chosen about a run, but for its tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, allow_inf_nan=False)

    method: str = _option(
        "maml",
        "How to meta-learn; headstart list methods names them. Where it is not given: gaussian_process for tables,"
        " whose target is then to be numbers.",
    )
    model: str | None = _option(
        None, "The network (headstart list models). Default: mlp for curves and tables, conv4 for images."
    )
    data: str | None = _option(
        None, "Folder of the tasks' data, for tasks that read some; a table's file. Default: omniglot downloads them."
    )
    # the tasks
    ways: int | None = _option(None, "Classes of a task. Default: 5.", ge=2, le=1000)
    train_ways: int | None = _option(
        None,
        "prototypes: classes of a training task, where they differ from --ways; the paper trains with more."
        " Default: as --ways.",
        ge=2,
        le=1000,
    )
    shots: Shots | None = _option(
        None,
        "Support examples a class (of a table's regression task: rows), or, of images, a range such as 1-5 drawn for"
        " every task."
        " Range: from 1 up. Default: 10 for curves, 1 for images, 5 for tables. A range needs a --norm other than"
        " batch.",
    )
    queries: int | None = _option(
        None,
        "Query examples a class, or of a curve or a table's task. Default: 10 for curves, 15 for images (icons 7,"
        " omniglot 5), all rows that are left for tables.",
        ge=1,
        le=10000,
    )
    frequency: Frequency | None = _option(
        None,
        "sinusoid: angular frequency, or a range such as 0.8-1.2 drawn from for every task. Range: above 0."
        " Default: 1.",
    )
    noise: float | None = _option(
        None, "curves: standard deviation of the noise that is added to every y. Default: 0.3.", ge=0
    )
    split: Literal["characters", "alphabets"] | None = _option(
        None,
        "omniglot: whether training, validation and test share alphabets (but no characters), or not even those."
        " Default: characters.",
    )
    rotations: bool | None = _option(
        None, "icons: training images turned by 90, 180 and 270 degrees are classes of their own. Default: on."
    )
    image_size: int | None = _option(
        None, "folder: height and width of the images in pixels. Default: 28.", ge=8, le=512
    )
    channels: Literal[1, 3] | None = _option(None, "folder: 1 for grey, 3 for colour. Default: 3.")
    on_short: Literal["error", "skip"] | None = _option(
        None, "What to do with a class that has too few images, or a task with too few rows. Default: error."
    )
    strict: bool | None = _option(
        None, "folder: refuse a folder that holds an unreadable image, rather than skip that image. Default: off."
    )
    curve_kernel: Literal["rbf", "matern", "periodic"] | None = _option(
        None, "gp_curves: the covariance of the process that curves are drawn from. Default: rbf."
    )
    # the tasks of a table
    task_column: str | None = _option(None, "table: the column that says which task a row belongs to.")
    target: str | None = _option(None, "table: the column to predict.")
    columns: str | None = _option(
        None, "table: the columns to predict from, joined by commas. Default: all others but a mere count of the rows."
    )
    time_column: str | None = _option(
        None, "table: the column by which a task's rows are put in order. Default: as in the file."
    )
    support_first: int | None = _option(
        None,
        "table: learn a task from its first rows, so many, and predict the later ones. Default: from --shots rows"
        " drawn at random.",
        ge=1,
        le=100_000,
    )
    target_kind: Literal["auto", "regression", "classification"] | None = _option(
        None,
        "table: what the target is. Default: auto, regression where its values are numbers, but classes where they are"
        " two whole numbers only, such as 0 and 1.",
    )
    on_duplicates: Literal["error", "keep", "drop"] | None = _option(
        None, "table: what to do with rows of a task that are equal. Default: error."
    )
    validation_share: float | None = _option(
        None, "table: share of the tasks for validation. Default: 0.2.", gt=0, le=0.9
    )
    test_share: float | None = _option(None, "table: share of the tasks for testing. Default: 0.2.", gt=0, le=0.9)
    # the inner loop
    inner_steps: int | None = _option(
        None,
        "Gradient steps of an adaptation. Default: 1 for curves, 5 for images (reptile: 10 for curves; joint, scratch:"
        " 20 for images); 5 for tables.",
        ge=0,
        le=1000,
    )
    inner_rate: float | None = _option(
        None,
        "Step size of an adaptation, by which a task's loss, a mean over its examples, moves the weights."
        " Default: 0.01 for curves, 0.1 for images (reptile: 0.02 and 0.001; joint, scratch: 0.5 for images), 0.05 for"
        " tables.",
        gt=0,
        le=100,
    )
    adjoint: Literal["unrolled", "checkpointed", "mixed_mode"] | None = _option(
        None,
        "How to differentiate through the inner loop: checkpointed and mixed_mode need less memory and more time."
        " Default: unrolled.",
    )
    buffers: Literal["batch", "frozen", "task"] | None = _option(
        None,
        "What normalisation goes by: the batch at hand, the model's statistics, or each task's own. Default: batch.",
    )
    task_map: Literal["auto", "vmap", "loop"] | None = _option(
        None,
        "How the tasks of a step go through the model. auto measures and takes the faster, so two runs may"
        " differ in rounding. Default: vmap.",
    )
    # what some methods are made of
    kernel: Literal["linear", "rbf", "matern", "exponential", "spectral"] | None = _option(
        None,
        "svm, logistic: linear or rbf; dkt: any but exponential; gaussian_process: linear gives a task an intercept and"
        " slopes of its own, rbf, matern and exponential a curve besides. Default: linear (dkt: rbf; gaussian_process:"
        " exponential).",
    )
    mean: Literal["network", "linear", "constant"] | None = _option(
        None, "gaussian_process: what all tasks have in common. Default: network, a line and a small network."
    )
    trees: int | None = _option(None, "forest: number of trees. Default: 50.", ge=1, le=10_000)
    leaves: int | None = _option(None, "forest: most leaves of a tree. Default: 16.", ge=2, le=4096)
    soft_trees: int | None = _option(None, "soft_forest: number of trees. Default: 16.", ge=1, le=10_000)
    depth: int | None = _option(None, "soft_forest: depth of a tree, of 2^depth leaves. Default: 4.", ge=1, le=12)
    estimator: str | None = _option(
        None, "search: whose hyper-parameters are chosen, such as svm, random_forest. Default: svm."
    )
    trials: int | None = _option(None, "search: how many choices are tried. Default: 50.", ge=1, le=100_000)
    samples: int | None = _option(None, "es_maml: pairs of perturbations of a step. Default: 32.", ge=1, le=100_000)
    deviation: float | None = _option(None, "es_maml: size of the perturbations. Default: 0.05.", gt=0, le=100)
    strength: float | None = _option(
        None, "imaml: how strongly a task is held near the start. Default: 2.", gt=0, le=1_000_000
    )
    damping: float | None = _option(
        None,
        "imaml: what is added to the curvature before the linear system is solved; 0 is the paper's formula."
        " Default: 1.",
        ge=0,
        le=1_000_000,
    )
    iterations: int | None = _option(
        None, "imaml: steps of conjugate gradient in the backward pass. Default: 5.", ge=1, le=10_000
    )
    # the model
    hidden: Hidden | None = _option(None, "mlp: widths of the hidden layers. Default: 40,40.")
    filters: int | None = _option(None, "conv4: channels of its convolutions. Default: 32.", ge=1, le=1024)
    downsample: Literal["pool", "stride"] | None = _option(
        None, "conv4: how a block halves the image. Default: stride."
    )
    norm: Literal["batch", "instance", "layer", "group", "none"] | None = _option(
        None, "conv4, resnet12: normalisation. Default: batch."
    )
    widths: Hidden | None = _option(None, "resnet12: channels of its four blocks. Default: 64,160,320,640.")
    # the outer loop
    steps: int | None = _option(
        None,
        "Outer steps. Default: 10000 for curves, 1000 for images, 500 for tables (gaussian_process, alpaca: 300;"
        " forest: 100).",
        ge=0,
        le=100_000_000,
    )
    tasks_per_step: int | None = _option(
        None,
        "Tasks of an outer step. Default: 25 for curves, 4 for images, 16 for tables (gaussian_process, alpaca: 128, or"
        " as many as there are).",
        ge=1,
        le=100_000,
    )
    optimizer: Literal["adam", "sgd"] | None = _option(None, "Outer optimiser. Default: adam (reptile: sgd).")
    outer_rate: float | None = _option(
        None, "Step size of the outer optimiser. Default: 0.001 (reptile: 1).", gt=0, le=100
    )
    schedule: Literal["constant", "linear", "cosine"] | None = _option(
        None,
        "How the outer rate goes over the steps: constant, or down to 0. Default: constant (reptile: linear).",
    )
    # the run
    evaluate_every: int = _option(250, "Outer steps between two looks at the validation tasks.", ge=1)
    evaluate_tasks: int = _option(100, "Validation tasks of such a look.", ge=2, le=1_000_000)
    test_tasks: int = _option(600, "Test tasks of the final score.", ge=2, le=1_000_000)
    save_every: int = _option(100, "Outer steps between two checkpoints.", ge=1)
    seed: int = _option(0, "Seed of the weights, the tasks and dropout.", ge=0, le=2**32 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"] = _option(
        "auto", "Where to compute; auto takes cuda, then mps, then cpu."
    )
    threads: int | None = _option(None, "CPU threads. Default: what PyTorch takes.", ge=1, le=4096)
    compile: bool = _option(
        False,
        "Compile the meta-gradient: many times faster for small networks and long runs, after seconds to minutes of"
        " compiling. Needs a C++ compiler; where it cannot be done, one line says why.",
    )
    memory: Memory | None = _option(
        None,
        "Most memory for what a step remembers for its derivatives, such as 2GiB; tasks are taken in as many parts as"
        " that needs. Default: all tasks of a step together.",
    )
