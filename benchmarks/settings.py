"""Which panels there are, and how each method is meta-trained on them: one visible table.

Settings were compared on splits with seeds from 100 up, which are reported nowhere. A name is a method's own, or a
method's with what sets it apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headstart.registry import CLASSES, METHODS
from headstart.training.loop import Schedule

FRACTION = 0.25
"""The share of the tasks that a split holds out."""


class Columns(NamedTuple):
    """Which columns of a file make a panel."""

    task: str
    target: str
    time: str
    """The feature by which a task's rows are put in order."""
    others: tuple[str, ...] = ()
    """More features."""
    unit: str = ""
    """Of the target."""
    about: str = ""


#: What is predicted from what, by the name of the file.
SETS = {
    "sleepstudy": Columns("Subject", "Reaction", "Days", unit="ms", about="reaction times of sleep-deprived people"),
    "dietox": Columns("Pig", "Weight", "Time", unit="kg", about="weights of growing pigs"),
    "spruce": Columns("id", "logsize", "time", unit="log size", about="sizes of Sitka spruces over two seasons"),
    "Cigar": Columns("state", "sales", "year", ("price", "ndi"), "packs a head", "cigarette sales of US states"),
}


class Setting(NamedTuple):
    """How a method is meta-trained."""

    method: str
    """Its name in the registry."""
    options: Mapping[str, Any] = {}
    """Of its factory."""
    network: str | None = "mlp"
    """The network's name in the registry; ``None``: the method brings its own, or has none."""
    sizes: Mapping[str, Any] = {"hidden": (32, 32)}
    """Of the network."""
    embedding: int | None = None
    """Outputs of the network, where it is an embedding."""
    steps: int = 150
    """Outer steps, each with all training tasks."""
    rate: float = 0.02
    """Outer step size."""
    schedule: Schedule = "cosine"
    optimizer: str = "adam"
    validation: float = 0.2
    """The share of the training tasks that is held out for choosing the best weights; 0: the last weights are kept."""
    looks: int = 15
    """How often the validation tasks are looked at."""
    baseline: bool = False
    """Whether people use it on panels today; others are held against the best of these."""


def _baseline(method: str, **options: Any) -> Setting:
    return Setting(method, options, network=None, steps=0, validation=0.0, baseline=True)


#: One gradient step is cheap, and was as good as three where the initial weights are learned.
_INNER = {"steps": 1, "rate": 0.2, "taskmap": "vmap"}
_MAPPED = {"taskmap": "vmap"}
_NONE: dict[str, object] = {}

SETTINGS: dict[str, Setting] = {
    "mixed_effects": _baseline("mixed_effects"),
    "mixed_effects: quadratic": _baseline("mixed_effects", trend="quadratic"),
    "mixed_effects: spline": _baseline("mixed_effects", trend="spline"),
    "boosted_trees": _baseline("boosted_trees"),
    "task_category: boosted_trees": _baseline("task_category", estimator="boosted_trees"),
    "task_category: forest": _baseline("task_category", estimator="forest"),
    "task_category: linear": _baseline("task_category", estimator="linear"),
    "pooled: linear": _baseline("pooled", estimator="linear"),
    "pooled: forest": _baseline("pooled", estimator="forest"),
    "one_model_per_task: ridge": _baseline("one_model_per_task", estimator="ridge"),
    "one_model_per_task: gaussian_process": _baseline("one_model_per_task", estimator="gaussian_process"),
    "one_model_per_task: mean": _baseline("one_model_per_task", estimator="mean"),
    "one_model_per_task: last": _baseline("one_model_per_task", estimator="last"),
    "maml": Setting("maml", _INNER),
    "fomaml": Setting("fomaml", _INNER),
    "imaml": Setting("imaml", {**_INNER, "steps": 16, "rate": 0.1}),
    "anil": Setting("anil", _INNER),
    "boil": Setting("boil", _INNER),
    "meta_sgd": Setting("meta_sgd", {**_INNER, "rate": 0.1}),
    "meta_curvature": Setting("meta_curvature", _INNER),
    "maml_plus_plus": Setting("maml_plus_plus", {**_INNER, "steps": 3, "rate": 0.1}),
    "alfa": Setting("alfa", _INNER),
    "t_net": Setting("t_net", _INNER),
    "mt_net": Setting("mt_net", _INNER),
    "warp_grad": Setting("warp_grad", _INNER),
    "cavia": Setting("cavia", {**_INNER, "rate": 1.0}),
    "mmaml": Setting("mmaml", {**_INNER, "embedding": 16, "hidden": 16}),
    "l2f": Setting("l2f", _INNER),
    "aware": Setting("aware", _INNER),
    "maml: soft_forest": Setting("maml", _INNER, network="soft_forest", sizes={"trees": 8, "depth": 3}),
    "reptile": Setting("reptile", {**_INNER, "steps": 5, "rate": 0.05}, optimizer="sgd", rate=0.5, schedule="linear"),
    "es_maml": Setting("es_maml", {**_INNER, "samples": 8}, steps=60),
    "ridge": Setting("ridge", _MAPPED, sizes={"hidden": (32,)}, embedding=16),
    "gaussian_process": Setting("gaussian_process", _NONE, network=None, steps=100, rate=0.05, validation=0.0),
    "gaussian_process: linear": Setting(
        "gaussian_process", {"mean": "linear", "kernel": "linear"}, network=None, steps=100, rate=0.05, validation=0.0
    ),
    "dkt": Setting("dkt", _MAPPED, sizes={"hidden": (32,)}, embedding=8),
    "alpaca": Setting("alpaca", _MAPPED, sizes={"hidden": (32,)}, embedding=16),
    "cnp": Setting("cnp", {"hidden": 32, "depth": 3}, network=None, rate=0.005),
    "anp": Setting("anp", {"hidden": 32, "depth": 3, "heads": 2, "draws": 2}, network=None, steps=100, rate=0.005),
    "forest": Setting("forest", _NONE, network=None, steps=0, validation=0.0),
    "search: svm": Setting("search", {"estimator": "svm", "trials": 15}, network=None, steps=0, validation=0.0),
    "search: random_forest": Setting(
        "search",
        {"estimator": "random_forest", "trials": 4, "tasks_per_trial": 4},
        network=None,
        steps=0,
        validation=0.0,
    ),
    "joint": Setting("joint", _INNER),
    "scratch": Setting("scratch", {**_INNER, "steps": 20, "rate": 0.1}),
}

#: Methods that classify, and so have nothing to say on panels.
CLASSIFIERS = frozenset(row.name for row in METHODS if row.targets == CLASSES)


class Plan(NamedTuple):
    """What to compute."""

    sets: tuple[str, ...] = tuple(SETS)
    support: tuple[int, ...] = (3, 5)
    splits: int = 10
    """Their seeds are 0 to splits − 1."""
    methods: tuple[str, ...] = tuple(SETTINGS)
    data: Path | None = None
    jobs: int = 1
    """Processes, of one thread each, that work at the same time."""
