"""The rules for Keras models are those of PyTorch: names, meanings, numbers."""

import inspect
import json

import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow")

from headstart.core import rules as ours
from headstart.core.parameters import Leaf
from headstart.errors import UnknownNameError, UsageError
from headstart.integrations.keras import rules
from headstart.integrations.keras.backend import keras, tf

SHAPES = {"dense.kernel": (3, 2), "dense.bias": (2,), "head.kernel": (2, 4)}
LEAVES = {name: Leaf(name, shape, keras.layers.Dense) for name, shape in SHAPES.items()}
TASKS, STEPS = 2, 3

#: Each atom as made by PyTorch's rules and by Keras's.
ATOMS = {
    "scale": lambda r: r.scale(0.3),
    "per_tensor": lambda r: r.per_tensor(0.3),
    "per_tensor, positive": lambda r: r.per_tensor(0.3, positive=True, name="alpha"),
    "per_tensor, steps": lambda r: r.per_tensor(0.3, steps=2),
    "per_tensor, steps, positive": lambda r: r.per_tensor(0.3, steps=2, positive=True),
    "per_weight": lambda r: r.per_weight((0.01, 0.3)),
    "per_weight, one": lambda r: r.per_weight(0.2, positive=True),
    "momentum": lambda r: r.momentum(),
    "momentum, nesterov": lambda r: r.momentum(decay=0.7, nesterov=True),
    "adam": lambda r: r.adam(),
    "adam, other": lambda r: r.adam(decay=0.0, square_decay=0.9, epsilon=1e-3),
    "clip, value": lambda r: r.clip(value=0.5),
    "clip, norm": lambda r: r.clip(norm=1),
    "chain": lambda r: r.chain(r.clip(norm=1.0), r.momentum(), r.adam(), r.per_tensor(0.1, steps=3), r.scale(0.5)),
    "chain, part": lambda r: r.chain(r.only("head", "*.bias"), r.chain(r.exclude("dense.bias"), r.scale(0.1))),
}


def drawn(random, *first):
    return {name: random.normal(size=(*first, *shape)) for name, shape in SHAPES.items()}


def taken(rule, m, params, grads, kind, step=lambda number: number):
    """Return what the rule subtracts at each of the steps."""
    state, found = rule.state(m, params, None), []
    for number, slopes in enumerate(grads):
        moved, state = rule.update(m, state, slopes, params, step(number))
        found.append({name: np.asarray(kind(value)) for name, value in moved.items()})
    return found


@pytest.fixture
def values():
    """θ, the tasks' parameters, and their gradients at each step; one is 0 all the time."""
    random = np.random.default_rng(0)
    grads = [drawn(random, TASKS) for _ in range(STEPS)]
    for slopes in grads:
        slopes["dense.bias"][1] = 0
    return drawn(random), drawn(random, TASKS), grads


def each(value, kind):
    return {name: kind(one) for name, one in value.items()}


@pytest.mark.parametrize("atom", ATOMS)
def test_an_atom_does_what_that_of_pytorch_does(atom, values):
    theta, params, grads = values
    mine, theirs = ATOMS[atom](ours), ATOMS[atom](rules)
    expected_m = mine.structure(each(theta, torch.from_numpy), torch.Generator().manual_seed(0))
    found_m = theirs.structure(each(theta, tf.constant), np.random.default_rng(0))
    assert {name: tuple(value.shape) for name, value in expected_m.items()} == {
        name: np.shape(value) for name, value in found_m.items()
    }
    if atom != "per_weight":  # which is drawn
        for name, value in expected_m.items():
            np.testing.assert_allclose(found_m[name], value, rtol=1e-7)
    shared = {name: np.array(value) for name, value in found_m.items()}
    of_torch, of_tf = each(shared, torch.from_numpy), each(shared, tf.constant)
    expected = taken(
        mine, of_torch, each(params, torch.from_numpy), [each(g, torch.from_numpy) for g in grads], np.asarray
    )
    found = taken(theirs, of_tf, each(params, tf.constant), [each(g, tf.constant) for g in grads], np.asarray)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-12, atol=1e-15, err_msg=name)
    assert mine.moves(LEAVES) == theirs.moves(LEAVES)
    shown = mine.shown(of_torch), theirs.shown(of_tf)
    assert shown[0].keys() == shown[1].keys()
    for name, value in shown[0].items():
        np.testing.assert_allclose(shown[1][name], value, rtol=1e-12)


@pytest.mark.parametrize("atom", ATOMS)
def test_steps_may_be_counted_by_the_graph(atom, values):
    theta, params, grads = values
    rule = ATOMS[atom](rules)
    m = {
        name: tf.constant(np.asarray(value), tf.float64)
        for name, value in rule.structure(theta, np.random.default_rng(0)).items()
    }
    params, grads = each(params, tf.constant), [each(g, tf.constant) for g in grads]
    counted = taken(rule, m, params, grads, np.asarray)
    stacked = tf.nest.map_structure(lambda *one: tf.stack(one), *grads)

    @tf.function(autograph=False)
    def in_loop():
        def body(number, state, total):
            moved, state = rule.update(m, state, {n: g[number] for n, g in stacked.items()}, params, number)
            return number + 1, state, {name: total[name] + moved[name] for name in total}

        nothing = {name: tf.zeros_like(value) for name, value in params.items()}
        return tf.while_loop(lambda number, *_: number < STEPS, body, (0, rule.state(m, params, None), nothing))[2]

    for name, total in in_loop().items():
        np.testing.assert_allclose(total, sum(moved[name] for moved in counted), rtol=1e-12, atol=1e-15)


def test_drawn_rates_lie_in_their_range_and_go_by_the_seed():
    rule, theta = rules.per_weight((0.01, 0.3)), drawn(np.random.default_rng(0))
    first, again, other = (rule.structure(theta, np.random.default_rng(seed)) for seed in (0, 0, 1))
    for name, value in first.items():
        assert value.min() >= 0.01 and value.max() <= 0.3 and np.unique(value).size == value.size
        assert np.array_equal(value, again[name]) and not np.array_equal(value, other[name])
    assert set(first) == {f"rate.{name}" for name in SHAPES}


def test_no_gradient_at_all_gives_derivatives_that_are_numbers():
    rule = rules.chain(rules.clip(norm=1.0), rules.adam())
    zeros = {name: tf.zeros((TASKS, *shape), tf.float64) for name, shape in SHAPES.items()}
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        moved, _ = rule.update({}, rule.state({}, zeros, None), zeros, zeros, 0)
        total = tf.add_n([tf.reduce_sum(value) for value in moved.values()])
    for slope in tape.gradient(total, zeros).values():
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", sorted(rules.RULES))
def test_parameters_are_those_of_pytorch(name):
    """As far as they exist in both: a rate that is learned for all weights together is not kept here."""
    theirs = inspect.signature(rules.RULES[name]).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    assert set(theirs) <= set(mine)
    for one, parameter in theirs.items():
        assert (parameter.kind, parameter.default) == (mine[one].kind, mine[one].default), one


def test_all_atoms_are_shown_to_be_the_same():
    assert {atom.split(",")[0] for atom in ATOMS} | {"only", "exclude"} == set(rules.RULES)


@pytest.mark.parametrize("atom", ATOMS)
def test_a_rule_comes_back_from_a_file(atom, values):
    theta, params, grads = values
    rule = ATOMS[atom](rules)
    kept = json.loads(json.dumps(rules.to_config(rule)))
    back = rules.from_config(kept)
    assert json.loads(json.dumps(rules.to_config(back))) == kept
    m = each(rule.structure(theta, np.random.default_rng(0)), tf.constant)
    assert back.structure(theta, np.random.default_rng(0)).keys() == m.keys()
    params, grads = each(params, tf.constant), [each(g, tf.constant) for g in grads]
    for one, other in zip(*(taken(which, m, params, grads, np.asarray) for which in (rule, back))):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert back.moves(LEAVES) == rule.moves(LEAVES)


def test_what_a_file_cannot_hold_is_refused():
    for rule in (
        ours.scale(0.1),
        rules.scale(0.1)._replace(),
        rules.chain(rules.scale(0.1), ours.scale(0.1)),
        rules.only(keras.layers.Dense),
        rules.scale(rate=np.float32(0.1)),
        rules.chain(rules.scale(0.1), rules.exclude(lambda leaf: True)),
    ):
        with pytest.raises(UsageError, match="cannot be kept in a file"):
            rules.to_config(rule)
    with pytest.raises(UnknownNameError, match="scale"):
        rules.from_config({"rule": "scales", "args": [], "options": {}})


def test_numbers_out_of_range_are_refused():
    for made in (
        lambda: rules.scale(0),
        lambda: rules.per_tensor(-1),
        lambda: rules.per_tensor(0.1, steps=0),
        lambda: rules.per_weight((0.2, 0.1)),
        lambda: rules.momentum(decay=1),
        lambda: rules.adam(square_decay=1.0),
        lambda: rules.adam(epsilon=0),
        lambda: rules.clip(),
        lambda: rules.clip(value=1, norm=1),
        lambda: rules.clip(norm=-1),
    ):
        with pytest.raises(UsageError):
            made()
