"""Every registered method keeps the contract of a learner with every kind of layer."""

import sys
from pathlib import Path

import pytest

from headstart import Checkpointed, registry, rules
from headstart.testing import check_learner, random_episodes

sys.path.insert(0, str(Path(__file__).parent))
from models import zoo  # noqa: E402

METHODS = {row.name: registry.load("method", row.name) for row in registry.METHODS}
#: Those that take no inner steps.
STEPLESS = ("prototypes", "nearest")


def options(name, one, taskmap):
    if name == "nearest":
        return {}
    shared = {"taskmap": taskmap, "buffers": one.buffers}
    if name in STEPLESS:
        return shared
    shared["steps"] = 2
    if name == "reptile":
        # a larger epsilon: a bias before a normalisation has no gradient but rounding, and Adam would magnify that
        return shared | {"rule": rules.chain(rules.adam(decay=0.0, epsilon=1e-3), rules.scale(0.01))}
    return shared if name == "meta_sgd" else shared | {"rate": 0.1}


@pytest.mark.parametrize("layer", zoo())
@pytest.mark.parametrize("name", [name for name in METHODS if name != "nearest"])
def test_methods_keep_the_contract(name, layer):
    one = zoo()[layer]
    check_learner(
        lambda taskmap: METHODS[name](one.module, **options(name, one, taskmap)),
        one.episodes(),
        module=one.module,
        masks=one.masks,
        directions=2,
        taskmaps=one.taskmaps,
        order=not one.seeded and name != "reptile",
    )


def test_the_nearest_baseline_keeps_the_contract():
    check_learner(METHODS["nearest"](), random_episodes((3,)), order=True)


def test_every_registered_method_is_checked():
    assert METHODS.keys() >= {"maml", "fomaml", "anil", "boil", "meta_sgd", "reptile", "prototypes"}
    assert METHODS.keys() >= {"joint", "scratch", "nearest"}


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
