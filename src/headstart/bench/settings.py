"""How each method is meta-trained on panels: one visible table.

Settings were compared on splits with seeds from 100 up, which are reported nowhere. A name is a method's own, or a
method's with what sets it apart.
"""

from headstart.bench.methods import Setting

#: One gradient step is cheap, and was as good as three where the initial weights are learned.
_INNER = {"steps": 1, "rate": 0.2, "taskmap": "vmap"}
_MAPPED = {"taskmap": "vmap"}
_NONE: dict[str, object] = {}

SETTINGS: dict[str, Setting] = {
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
CLASSIFIERS = frozenset({"proto_maml", "prototypes", "nearest", "logistic", "svm"})
