"""Every registered method keeps the contract of a learner with every kind of layer."""

from functools import partial
from typing import Literal, NamedTuple, get_args, get_origin

import pytest
import torch
from torch import Tensor, nn

from headstart import Checkpointed, maml, meta_gradient, registry, reptile, rules
from headstart.core.objective import backprop
from headstart.core.tree import mapped
from headstart.errors import UsageError
from headstart.models.soft_forest import soft_forest
from headstart.schema import options_of
from headstart.testing import ContractError, check_learner, check_method, random_episodes
from headstart.testing.learners import made
from headstart.types import Episodes, Meta
from tests.device import DEVICE, on_device


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
        "soft trees": Zoo(soft_forest(3, 3, trees=2, depth=2), (3,)),
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


#: Smaller than by default; or what it takes on these modules, some of which have no other linear layer than the head.
OPTIONS = {
    "anp": {"hidden": 6, "depth": 2, "heads": 2},
    "baseline_plus_plus": {"fit_steps": 3},
    "cnp": {"hidden": 6, "depth": 2},
    "es_maml": {"samples": 4, "inner_samples": 4},
    "forest": {"trees": 3, "leaves": 4},
    "linear_probe": {"fit_steps": 3},
    "meta_sgd": {"rate": (0.005, 0.1)},
    "mmaml": {"what": lambda leaf: issubclass(leaf.module, (nn.Linear, nn.Conv2d))},
    # a larger epsilon: a bias before a normalisation has no gradient but rounding, and Adam would magnify that
    "reptile": {"rule": rules.chain(rules.adam(decay=0.0, epsilon=1e-3), rules.scale(0.01))},
    "warp_grad": {"warps": nn.Linear},
}
#: Those whose tasks start from something that is read off their support sets.
READ_OFF = ("aware", "l2f", "mmaml", "proto_maml")
#: Those that look at the order of the examples: for their minibatches, or by how an estimator is solved.
IN_ORDER = ("reptile", "search")
#: Those that meet all layers; those that are `maml` with another rule, adjoint or outer gradient meet few; the others,
#: which differ in what they learn about the model, meet one of each kind.
EVERYWHERE = ("maml", "anil", "prototypes")
AS_MAML = (
    *("fomaml", "boil", "meta_sgd", "imaml", "joint", "scratch", "reptile", "es_maml"),
    "simple_shot",
    "fine_tuning",
)
FEW = ("linear", "conv", "batch norm, task", "dropout")
#: Those that do with features what one kind of layer shows, on an embedding that others meet with all.
ON_FEATURES = (
    "matching_networks",
    "relation_networks",
    "meta_baseline",
    "linear_probe",
    "baseline_plus_plus",
    "label_propagation",
    "bd_cspn",
)
KINDS = ("linear", "conv", "batch norm", "batch norm, task", "embedding", "tied", "dropout", "transformer", "lstm")


def pairs():
    for row in registry.METHODS:
        layers = ("linear",) if row.model == "none" else zoo() if row.name in EVERYWHERE else KINDS
        layers = FEW if row.name in AS_MAML else ("linear",) if row.name in ON_FEATURES else layers
        yield from ((row.name, layer) for layer in layers)


def check(name, one, target, **chosen):
    """Check a method on a module of the zoo, from a θ and M that differ from where they start, which is often zero."""
    row = registry.find("method", name)
    options = OPTIONS.get(name, {}) | ({} if row.model == "none" else {"buffers": one.buffers}) | chosen
    episodes = mapped(lambda leaf: leaf.to(DEVICE), one.episodes(regression=target == "regression"))
    module = one.module.to(DEVICE)

    def stirred(taskmap):
        learner = made(name, module, episodes, taskmap, **options)

        def init(generator):
            draw = torch.Generator().manual_seed(3)
            noise = partial(torch.randn, generator=draw, dtype=torch.float64)
            return Meta(
                *({k: v + 0.1 * noise(v.shape).to(v) for k, v in part.items()} for part in learner.init(generator))
            )

        return learner._replace(init=init)

    check_learner(
        stirred,
        episodes,
        module=module,
        masks=one.masks,
        directions=2,
        taskmaps=one.taskmaps,
        order=not one.seeded and name not in IN_ORDER,
        initial=name not in READ_OFF,
    )


@on_device
@pytest.mark.parametrize(("name", "layer"), list(pairs()))
def test_methods_keep_the_contract(name, layer):
    targets = registry.find("method", name).targets
    for target in targets if layer == "linear" else targets[:1]:
        check(name, zoo()[layer], target)


def choices():
    """Yield each option's choices, but for those that are as they are by default."""
    for row in registry.METHODS:
        for name, option in options_of(registry.load("method", row.name)).items():
            kinds = [hint for hint in (option.type, *get_args(option.type)) if get_origin(hint) is Literal]
            values = [value for hint in kinds for value in get_args(hint)] + [True, False] * (option.type is bool)
            if name not in ("taskmap", "buffers", "precision", "training", "check", "loss", "device", "estimator"):
                yield from ((row.name, name, value) for value in values if value != option.default)


@on_device
@pytest.mark.parametrize(("name", "option", "value"), list(choices()))
def test_methods_keep_the_contract_with_each_choice(name, option, value):
    check(name, zoo()["linear"], registry.find("method", name).targets[0], **{option: value})


@on_device
def test_a_registered_method_is_checked_by_its_name():
    check_method("ridge", order=True, device=DEVICE)
    with pytest.raises(ContractError, match="^steps"):
        check_method("l2f", device=DEVICE)


CLASSIFIERS = [row.name for row in registry.METHODS if row.classes == "any"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_without_a_support_example_is_never_predicted_and_changes_nothing(name):
    episodes = Zoo(zoo()["linear"].module, (3,), examples=6).episodes()
    there = Episodes(*(batch._replace(y=batch.y.clamp(max=1)) for batch in episodes))
    few, many = (made(name, zoo()["linear"].module, there, ways=ways) for ways in (2, 4))
    meta = few.init(None)
    outputs = [one.predict(one.adapt(meta, there.support)[0], there.query.x) for one in (few, many)]
    assert (outputs[1][..., 2:] == -torch.inf).all()
    torch.testing.assert_close(outputs[1][..., :2], outputs[0])
    if few.gradient is not None:
        ours, theirs = (meta_gradient(one, meta, there)[0] for one in (few, many))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("row", [row for row in registry.METHODS if row.model != "none"], ids=lambda row: row.name)
def test_padding_is_refused_where_a_layer_normalises_by_the_batch(row):
    one = zoo()["batch norm"]
    support, query = one.episodes(regression=row.targets[0] == "regression")
    mask = torch.ones(support.y.shape[:2], dtype=torch.bool)
    mask[0, -1] = False
    learner = made(row.name, one.module, Episodes(support, query), **OPTIONS.get(row.name, {}))
    with pytest.raises(UsageError, match="normalises by all of them, padding included"):
        learner.adapt(learner.init(None), support._replace(mask=mask))


@pytest.mark.parametrize("row", [row for row in registry.METHODS if row.model != "none"], ids=lambda row: row.name)
def test_a_frozen_trunk_is_as_its_features(row):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double().requires_grad_(False)
    head = nn.Linear(5, 3).double()
    if row.name in ("boil", "warp_grad"):  # which want something to learn before the head
        head = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    parts = [] if row.model == "embedding" else [head]
    episodes = random_episodes((3,), regression=row.targets[0] == "regression", seed=1)
    features = Episodes(*(batch._replace(x=trunk(batch.x)) for batch in episodes))
    same, found = nn.Linear(5, 5, bias=False).double().requires_grad_(False), []
    nn.init.eye_(same.weight)
    seen = row.name in ("mmaml", "aware", "cavia")  # these modulate, or judge by, what is frozen
    for first, given in [(trunk, episodes), (same, features)][: 1 if seen else 2]:
        learner = made(row.name, nn.Sequential(first, *parts), given)
        meta = learner.init(torch.Generator().manual_seed(0))
        found.append([learner.predict(learner.adapt(meta, given.support)[0], given.query.x)])
        if learner.gradient is not None and any(meta):
            found[-1].append(meta_gradient(learner, meta, given)[0])
    if seen:
        assert found[0][0].isfinite().all()
    else:
        torch.testing.assert_close(*found)


def test_what_has_nothing_to_learn_or_to_adapt_says_so():
    frozen = nn.Linear(3, 3).double().requires_grad_(False)
    episodes = random_episodes((3,))
    cosine = made("prototypes", frozen, episodes, distance="cosine")
    assert cosine.init(None).structure["scale"].dtype == torch.float64
    assert meta_gradient(cosine, cosine.init(None), episodes)[0].structure["scale"] != 0
    plain = made("prototypes", frozen, episodes)
    with pytest.raises(UsageError, match="learns nothing across tasks"):
        meta_gradient(plain, plain.init(None), episodes)
    for name in ("maml", "imaml", "reptile", "meta_curvature"):
        with pytest.raises(UsageError, match="no trainable parameter to adapt"):
            made(name, frozen, episodes)


@pytest.mark.parametrize("layer", ["batch norm, task", "dropout", "lstm", "transformer"])
def test_maml_is_exact_with_checkpoints_a_learned_rule_and_momentum(layer):
    one = zoo()[layer]
    check_learner(
        lambda taskmap: maml(
            one.module,
            steps=3,
            rule=rules.chain(rules.clip(norm=0.5), rules.momentum(decay=0.8), rules.per_tensor(0.1)),
            adjoint=Checkpointed(every=2),
            taskmap=taskmap,
            buffers=one.buffers,
        ),
        one.episodes(),
        module=one.module,
        masks=False,
        directions=2,
        taskmaps=one.taskmaps,
    )


def test_a_meta_gradient_that_is_no_mean_over_tasks_has_to_say_so():
    def summed(learner, meta, episodes):
        return meta_gradient(learner._replace(gradient=backprop), meta, episodes, reduction="sum")

    one = zoo()["linear"]
    learner = maml(one.module, steps=1, taskmap="vmap")._replace(gradient=summed, exact=False)
    with pytest.raises(ContractError, match="^divided: the meta-gradient of all tasks is not the mean"):
        check_learner(learner, one.episodes())


@pytest.mark.parametrize("serial", [None, 0.5])
def test_reptile_keeps_the_contract_with_minibatches(serial):
    one = zoo()["linear"]
    check_learner(
        lambda taskmap: reptile(one.module, steps=3, rate=0.05, inner_batch=3, serial=serial, taskmap=taskmap),
        one.episodes(),
        module=one.module,
        masks=False,
    )
