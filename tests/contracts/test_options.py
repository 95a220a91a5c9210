"""Every option that a signature lists can be chosen, with every other one as it is by default."""

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch
from annotated_types import Ge, Gt
from torch.utils._pytree import tree_map

from headstart.errors import UsageError
from headstart.registry import METHODS, MODELS, find, load
from headstart.schema import REQUIRED, checked, options_of
from headstart.testing import random_episodes
from headstart.testing.learners import episodes_of, made

#: What a run knows by itself.
SUPPLIED = {
    "module",
    "loss",
    "ways",
    "shared_classes",
    "inputs",
    "outputs",
    "features",
    "classes",
    "device",
    "dtype",
    "explain",
}


def chosen(factory):
    return {name: option for name, option in options_of(factory).items() if name not in SUPPLIED}


def legal(hint) -> list[Any]:
    """Return values of a type: all choices, the least of a range, the name of a layer for a text."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is Annotated:
        kind, *limits = get_args(hint)
        if get_origin(kind):
            return legal(kind)
        return [limit.ge for limit in limits if isinstance(limit, Ge)] or [
            kind(limit.gt + 0.5) for limit in limits if isinstance(limit, Gt)
        ]
    if get_origin(hint) is tuple:
        return [tuple(legal(part)[0] for part in get_args(hint) if part is not Ellipsis)]
    if get_args(hint):
        return [value for part in get_args(hint) for value in legal(part)]
    return {bool: [True, False], int: [1], float: [0.5], str: ["head"]}.get(hint, [])


def cases(rows, what):
    """Yield (name, option, value) for every value, and (name, None, None) for all defaults at once."""
    for row in rows:
        yield row.name, None, None
        for name, option in chosen(load(what, row.name)).items():
            yield from ((row.name, name, value) for value in legal(option.type))


def defaults(factory):
    found = {name: option.default for name, option in chosen(factory).items()}
    assert REQUIRED not in found.values()
    return {name: value for name, value in found.items() if value is not None}


def single(regression):
    drawn = random_episodes((4,), regression=regression)
    return tree_map(lambda leaf: leaf.float() if torch.is_tensor(leaf) and leaf.is_floating_point() else leaf, drawn)


def adapted(name, episodes, options):
    torch.manual_seed(0)
    outputs = None if find("method", name).model == "embedding" else 3
    learner = made(name, load("model", "mlp")((4,), outputs, hidden=(5, 5)), episodes, **options)
    adapted, _ = learner.adapt(learner.init(torch.Generator().manual_seed(0)), episodes.support)
    return learner.predict(adapted, episodes.query.x)


#: Where one value needs another one beside it, or less than the default of it.
TOGETHER = {"anp": {"hidden": {"heads": 1}}, "warp_grad": {"steps": {"objective": "meta"}}}
SMALL = {"trees": 3, "samples": 2, "inner_samples": 2}


@pytest.mark.parametrize("row", METHODS, ids=lambda row: row.name)
def test_every_option_of_a_method_can_be_chosen(row):
    factory = load("method", row.name)
    usual = {name: SMALL.get(name, value) for name, value in defaults(factory).items()}
    episodes = list(episodes_of(row.name, single(regression=False), single(regression=True)))
    for _, name, value in cases([row], "method"):
        refused = []
        for one in episodes:
            together = TOGETHER.get(row.name, {}).get(name, {})
            try:
                outputs = adapted(row.name, one, usual | ({} if name is None else {name: value}) | together)
            except UsageError as error:  # such as an estimator of the other kind of target
                refused.append(error)
            else:
                assert outputs.shape[:2] == one.query.y.shape[:2], (name, value)
        assert len(refused) < len(episodes), (name, value, refused)


OF_TEXTS = ("ngrams", "transformer", "convolution")
SHAPES = {"mlp": (4,), "soft_forest": (4,), "identity": (4,), **dict.fromkeys(OF_TEXTS, (12,))}


# the options of a pretrained network, which needs one, are chosen in tests/algorithms/test_tuned.py
@pytest.mark.parametrize("row", [row for row in MODELS if row.name != "trunk"], ids=lambda row: row.name)
def test_every_option_of_a_model_can_be_chosen(row):
    factory, shape = load("model", row.name), SHAPES.get(row.name, (3, 16, 16))
    for _, name, value in cases([row], "model"):
        value = value * 4 if name in ("widths", "width") else value  # four blocks, and heads
        model = factory(shape, None, **(defaults(factory) | ({} if name is None else {name: value})))
        assert len(model(torch.zeros(2, *shape, dtype=torch.int64 if row.name in OF_TEXTS else None))) == 2


@pytest.mark.parametrize("what", ["method", "model"])
def test_every_option_says_what_it_is(what):
    for row in METHODS if what == "method" else MODELS:
        factory = load(what, row.name)
        first = list(inspect.signature(factory).parameters)[: 2 if what == "model" else 1]
        assert what == "method" or first[0] == "inputs", row.name
        for name, option in chosen(factory).items():
            by_itself = len(option.help) > 15 and not option.help.startswith(("as ", "see ", "those of", "of "))
            assert by_itself, f"{row.name} {name}: {option.help!r}"
            assert option.default is None or checked(option, option.default) == option.default
