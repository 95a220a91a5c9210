"""Every registered method keeps the contract of a learner with every kind of layer."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from headstart import Checkpointed, registry, rules
from headstart.testing import check_learner, random_episodes
from headstart.types import Episodes, Meta


class Zoo(NamedTuple):
    """A small float64 module, episodes that fit it, and how to check learners of it."""

    module: nn.Module
    input_shape: tuple[int, ...]
    tokens: int | None = None
    seeded: bool = False
    masks: bool = True
    """False where examples of a set see each other."""
    taskmaps: tuple[str, str] = ("vmap", "loop")
    examples: int = 4
    buffers: str = "batch"

    def episodes(self, regression: bool = False) -> Episodes:
        drawn = random_episodes(
            self.input_shape,
            tokens=self.tokens,
            support=self.examples,
            query=self.examples + 1,
            regression=regression,
            seed=1,
        )
        if not self.seeded:
            return drawn
        return Episodes(*(batch._replace(seed=7 + torch.arange(batch.y.shape[0])) for batch in drawn))


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(out.mean(1)) + (weights.square().mean((1, 2))[:, None] if self.need_weights else 0)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def _normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _used(module: nn.Module) -> nn.Module:
    """Give batch normalisation running statistics that differ from the initial ones."""
    module.train()
    with torch.no_grad():
        module(2 * torch.randn(20, 1, 4, 4) + 0.5)
    return module


def zoo() -> dict[str, Zoo]:
    """Return the modules by name, with the same weights at every call."""
    torch.manual_seed(0)
    image = (1, 4, 4)
    made = {
        "linear": Zoo(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), (3,)),
        "conv": Zoo(_normed(nn.MaxPool2d(1)), image),
        "batch norm": Zoo(_normed(nn.BatchNorm2d(4)), image, masks=False),
        "batch norm, frozen": Zoo(_used(_normed(nn.BatchNorm2d(4))), image, buffers="frozen"),
        "batch norm, task": Zoo(_used(_normed(nn.BatchNorm2d(4, momentum=0.7))), image, masks=False, buffers="task"),
        "batch norm, no statistics": Zoo(_normed(nn.BatchNorm2d(4, track_running_stats=False)), image, masks=False),
        "instance norm": Zoo(_normed(nn.InstanceNorm2d(4, affine=True)), image),
        "layer norm": Zoo(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)), (3,)),
        "group norm": Zoo(_normed(nn.GroupNorm(2, 4)), image),
        "embedding": Zoo(nn.Sequential(nn.Embedding(8, 3), nn.Flatten(), nn.Linear(6, 3)), (2,), tokens=8),
        "tied": Zoo(Tied(), (3,)),
        "dropout": Zoo(
            nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)), (3,), seeded=True, masks=False
        ),
        "attention": Zoo(Attention(need_weights=False), (3, 4)),
        "attention with weights": Zoo(Attention(need_weights=True), (3, 4)),
        "transformer": Zoo(Encoder(), (3, 4)),
        "lstm": Zoo(Recurrent(nn.LSTM), (3, 3), taskmaps=("auto", "loop")),
        "gru": Zoo(Recurrent(nn.GRU), (3, 3), taskmaps=("auto", "loop")),
    }
    return {name: one._replace(module=one.module.double()) for name, one in made.items()}


METHODS = {row.name: registry.load("method", row.name) for row in registry.METHODS}
#: Those that take no inner steps.
STEPLESS = ("prototypes", "nearest", "ridge", "logistic", "svm", "dkt", "alpaca")
#: Those that predict numbers on a network's features.
REGRESSORS = ("dkt", "alpaca")
#: Those that take no network, with what they are made of and the episodes that they do.
OWN = {
    "gaussian_process": ({"dtype": torch.float64}, True),
    "cnp": ({"dtype": torch.float64, "hidden": 6, "depth": 2}, True),
    "anp": ({"dtype": torch.float64, "hidden": 6, "depth": 2, "heads": 2}, True),
    "forest": ({"trees": 3, "leaves": 4}, True),
    "search": ({"estimator": "random_forest", "dtype": torch.float64}, True),
}
#: Those whose tasks start from something that is read off their support sets.
READ_OFF = ("aware", "l2f", "mmaml", "proto_maml")


def options(name, one, taskmap):
    if name == "nearest":
        return {}
    shared = {"taskmap": taskmap, "buffers": one.buffers}
    if name == "alpaca":
        shared["features"] = 3
    if name in REGRESSORS:
        shared["outputs"] = 3
    if name in STEPLESS:
        return shared
    if name == "es_maml":
        shared["samples"] = 4
    shared["steps"] = 2
    if name == "reptile":
        # a larger epsilon: a bias before a normalisation has no gradient but rounding, and Adam would magnify that
        return shared | {"rule": rules.chain(rules.adam(decay=0.0, epsilon=1e-3), rules.scale(0.01))}
    if name == "aware":
        shared["explain"] = None
    if name == "warp_grad":
        # the head, too, since some of these modules have no other linear layer
        shared["warps"] = nn.Linear
    if name == "mmaml" and not any(isinstance(layer, nn.Conv2d) for layer in one.module.modules()):
        shared["what"] = nn.Linear  # likewise
    return shared if name == "meta_sgd" else shared | {"rate": 0.1}


#: The methods that differ from these by what they learn about the model; they meet one layer of each kind.
PLAIN = ("maml", "fomaml", "anil", "boil", "meta_sgd", "reptile", "prototypes", "joint", "scratch")
KINDS = ("linear", "conv", "batch norm", "batch norm, task", "embedding", "tied", "dropout", "transformer", "lstm")


def pairs():
    for name in METHODS:
        if name != "nearest" and name not in OWN:
            yield from ((name, layer) for layer in (zoo() if name in PLAIN else KINDS))


@pytest.mark.parametrize(("name", "layer"), list(pairs()))
def test_methods_keep_the_contract(name, layer):
    one = zoo()[layer]
    check_learner(
        lambda taskmap: METHODS[name](one.module, **options(name, one, taskmap)),
        one.episodes(regression=name in REGRESSORS),
        module=one.module,
        masks=one.masks,
        directions=2,
        taskmaps=one.taskmaps,
        order=not one.seeded and name != "reptile",
        initial=name not in READ_OFF,
    )


def test_the_nearest_baseline_keeps_the_contract():
    check_learner(METHODS["nearest"](), random_episodes((3,)), order=True)


@pytest.mark.parametrize("name", OWN)
def test_methods_without_a_network_keep_the_contract(name):
    made, regression = OWN[name]
    learner = METHODS[name](inputs=3, outputs=2, **made)

    def init(generator):
        return Meta(*({key: value.double() for key, value in part.items()} for part in learner.init(generator)))

    check_learner(learner._replace(init=init), random_episodes((3,), outputs=2, regression=regression))


def test_every_registered_method_is_checked():
    assert METHODS.keys() >= {"maml", "fomaml", "anil", "boil", "meta_sgd", "reptile", "prototypes"}
    assert METHODS.keys() >= {"joint", "scratch", "nearest"}
    assert METHODS.keys() >= {"meta_curvature", "maml_plus_plus", "alfa", "t_net", "mt_net", "warp_grad", "cavia"}
    assert METHODS.keys() >= {"mmaml", "l2f", "proto_maml", "aware"}
    assert METHODS.keys() >= {"ridge", "logistic", "svm", "es_maml", *REGRESSORS, *OWN}


@pytest.mark.parametrize("layer", ["batch norm, task", "dropout", "lstm", "transformer"])
def test_maml_is_exact_with_checkpoints_a_learned_rule_and_momentum(layer):
    one = zoo()[layer]
    check_learner(
        lambda taskmap: METHODS["maml"](
            one.module,
            steps=3,
            rule=rules.chain(rules.clip(norm=0.5), rules.momentum(0.8), rules.per_tensor(0.1)),
            adjoint=Checkpointed(2),
            taskmap=taskmap,
            buffers=one.buffers,
        ),
        one.episodes(),
        module=one.module,
        masks=False,
        directions=2,
        taskmaps=one.taskmaps,
    )


@pytest.mark.parametrize("serial", [None, 0.5])
def test_reptile_keeps_the_contract_with_minibatches(serial):
    one = zoo()["linear"]
    check_learner(
        lambda taskmap: METHODS["reptile"](
            one.module, steps=3, rate=0.05, inner_batch=3, serial=serial, taskmap=taskmap
        ),
        one.episodes(),
        module=one.module,
        masks=False,
    )


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototypes_keep_the_contract_with_either_distance(distance):
    one = zoo()["linear"]
    check_learner(
        lambda taskmap: METHODS["prototypes"](one.module, distance=distance, taskmap=taskmap),
        one.episodes(),
        module=one.module,
        order=True,
    )


def test_maml_keeps_the_contract_in_regression():
    one = zoo()["linear"]
    check_learner(
        lambda taskmap: METHODS["maml"](one.module, loss="mse", steps=2, rate=0.1, taskmap=taskmap),
        random_episodes((3,), regression=True),
        module=one.module,
        order=True,
    )
