from functools import partial

import pytest
import torch
from torch import nn

from headstart import Batch, Episodes, Tasks, fit, maml, meta_loss, rules
from headstart.algorithms.architecture import choices, derive, pressed, sharpened
from headstart.core.objective import at
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.forward.cost import expected_cost
from headstart.forward.functional import functional
from headstart.forward.mixture import Gates, Mixture, Skip
from headstart.testing import check_learner, random_episodes
from headstart.types import Meta


def model():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(3, 4),
        Mixture({"wide": nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), "skip": Skip()}),
        Mixture({"tanh": nn.Tanh(), "relu": nn.ReLU()}),
        nn.Linear(4, 3),
    ).double()


def with_gates(learner, *gates):
    meta = learner.init(None)
    names = [name for name in meta.structure if name.endswith("gates.logits")]
    values = dict(zip(names, (torch.tensor(one, dtype=torch.float64) for one in gates), strict=True))
    return meta._replace(structure={**meta.structure, **values})


@pytest.mark.parametrize("done", [0.0, 0.6, None], ids=["at the start", "on the way", "at the end"])
def test_sharpened_and_pressed_learners_keep_the_contract(done):
    module = model()

    def make(taskmap):
        learner = maml(module, steps=2, rate=0.1, taskmap=taskmap)
        learner = sharpened(pressed(learner, expected_cost(module, (3,)), 0.5), end=0.2)
        # from gates that are not all equal
        own = learner if done is None else at(learner, done)
        return own._replace(init=lambda generator: with_gates(learner, [0.1, -0.1], [-0.2, 0.1]))

    check_learner(make, random_episodes((3,)), module=module)


def test_the_temperature_falls_to_its_end_and_only_gates_feel_it():
    learner = sharpened(maml(model(), rule=rules.per_tensor(0.1), taskmap="vmap"), start=2.0, end=0.1)
    meta = with_gates(learner, [0.3, 0.0], [0.0, 0.3])
    largest = [at(learner, done).shown(meta)["1.gates.wide"].item() for done in (0, 0.25, 0.5, 0.75, 0.999)]
    assert largest == sorted(largest)
    for done, temperature in ((0.0, 2.0), (0.5, 0.2**0.5)):
        expected = torch.sigmoid(torch.tensor(0.3 / temperature, dtype=torch.float64))
        torch.testing.assert_close(at(learner, done).shown(meta)["1.gates.wide"], expected)
    shown = learner.shown(meta)
    assert shown["2.gates.relu"].item() == pytest.approx(torch.sigmoid(torch.tensor(3.0)).item())
    plain = maml(model(), rule=rules.per_tensor(0.1)).shown(meta)
    assert all(torch.equal(shown[name], plain[name]) for name in plain if "gates" not in name)


def test_sharpened_is_the_learner_with_divided_gates():
    base = maml(model(), steps=2, rate=0.1, taskmap="vmap")
    learner, episodes = sharpened(base, end=0.25), random_episodes((3,))
    meta = with_gates(learner, [0.3, 0.0], [0.0, 0.5])
    divided = with_gates(learner, [1.2, 0.0], [0.0, 2.0])
    torch.testing.assert_close(meta_loss(learner, meta, episodes)[0], meta_loss(base, divided, episodes)[0])
    adapted, _ = learner.adapt(meta, episodes.support)
    *_, (last, _) = learner.path(meta, episodes.support)
    assert adapted.meta is meta and last.meta is meta
    for one in (adapted, last):
        expected = base.predict(base.adapt(divided, episodes.support)[0], episodes.query.x)
        torch.testing.assert_close(learner.predict(one, episodes.query.x), expected)


def test_pressing_adds_the_cost_of_the_gates_as_the_model_uses_them():
    module = model()
    base, cost = maml(module, steps=1, rate=0.1, taskmap="vmap"), expected_cost(module, (3,))
    meta, episodes = with_gates(base, [0.4, 0.0], [0.0, 0.0]), random_episodes((3,))
    plain = meta_loss(base, meta, episodes)[0]
    torch.testing.assert_close(meta_loss(pressed(base, cost, 2.0), meta, episodes)[0], plain + 2 * cost(meta))
    both = pressed(pressed(base, cost, 2.0), lambda meta: torch.tensor(1.0), 3.0)
    torch.testing.assert_close(meta_loss(both, meta, episodes)[0], plain + 2 * cost(meta) + 3)
    sharp = sharpened(pressed(base, cost, 2.0), end=0.5)
    twice = with_gates(base, [0.8, 0.0], [0.0, 0.0])
    torch.testing.assert_close(sharp.penalty(meta), 2 * cost(twice))
    torch.testing.assert_close(at(sharp, 0.0).penalty(meta), 2 * cost(meta))
    # the other way round the cost is of the gates undivided, all the while
    late = pressed(sharpened(base, end=0.5), cost, 2.0)
    assert late.penalty(meta) == at(late, 0.0).penalty(meta) == 2 * cost(meta)
    assert at(late, 0.0).shown(meta)["1.gates.wide"] < late.shown(meta)["1.gates.wide"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": 0.1, "end": 1.0}, UsageError, "start >= end > 0"),
        ({"end": 0.0}, UsageError, "start >= end > 0"),
        ({"gates": "*.gate"}, UnknownNameError, "unknown gates in M '\\*.gate'.*1.gates.logits"),
    ],
)
def test_temperatures_and_gates_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        sharpened(maml(model()), **options)


def test_a_negative_strength_is_refused():
    with pytest.raises(UsageError, match="strength must be at least 0, got -1"):
        pressed(maml(model()), lambda meta: torch.tensor(0.0), -1)


@pytest.mark.parametrize("gates", [([60.0, 0.0], [0.0, 60.0]), ([0.0, 60.0], [60.0, 0.0])])
def test_the_derived_module_is_the_mixture_with_extreme_gates(gates):
    module = model()
    learner = maml(module, steps=2, rate=0.1, taskmap="vmap")
    meta = with_gates(learner, *gates)
    meta = meta._replace(params={name: value + 0.1 for name, value in meta.params.items()})
    plain = derive(module, meta)
    assert not any(isinstance(layer, (Mixture, Gates, Skip)) for layer in plain.modules())
    again, episodes = maml(plain, steps=2, rate=0.1, taskmap="vmap"), random_episodes((3,))
    start = again.init(None)
    assert not start.structure and start.params.keys() <= {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(meta_loss(again, start, episodes)[0], meta_loss(learner, meta, episodes)[0])


def test_deriving_reaches_into_candidates_and_leaves_the_module_alone():
    inner = Mixture({"tanh": nn.Tanh(), "relu": nn.ReLU()})
    module = Mixture({"deep": nn.Sequential(nn.Linear(2, 2), inner), "skip": Skip()})
    meta = Meta(
        functional(module).params,
        {"gates.logits": torch.tensor([1.0, 0.0]), "candidates.deep.1.gates.logits": torch.tensor([0.0, 1.0])},
    )
    plain = derive(module, meta)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU]
    assert plain[0].weight is not module.candidates["deep"][0].weight
    assert isinstance(inner, Mixture) and module.gates.logits.tolist() == [0, 0]
    assert choices(module, meta) == {"": "deep", "candidates.deep.1": "relu"}


def test_what_the_rule_learns_is_no_part_of_the_derived_module():
    module = model()
    learner = maml(module, rule=rules.per_tensor(0.1))
    assert set(learner.init(None).structure) > set(functional(module).structure)
    assert derive(module, with_gates(learner, [0.0, 1.0], [0.0, 1.0]))[1].__class__ is nn.Identity


def without(values, name):
    return {other: value for other, value in values.items() if other != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: Meta(without(m.params, "0.bias"), m.structure), "θ of meta .* lacks '0.bias'"),
        (lambda m: Meta({**m.params, "9.w": m.params["0.bias"]}, m.structure), "holds '9.w', which is not there"),
        (lambda m: Meta({**m.params, "0.bias": torch.zeros(7)}, m.structure), r"shape \(7,\), expected \(4,\)"),
        (lambda m: Meta(m.params, without(m.structure, "1.gates.logits")), "M of meta .* lacks '1.gates.logits'"),
        (lambda m: Meta(m.params, {**m.structure, "1.gates.logits": torch.zeros(3)}), r"shape \(3,\), expected \(2,\)"),
    ],
)
def test_a_meta_value_of_another_module_is_refused(change, message):
    module = model()
    with pytest.raises(ShapeError, match=message):
        derive(module, change(maml(module).init(None)))


def test_a_module_without_mixtures_cannot_be_derived():
    module = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="holds no Mixture"):
        derive(module, maml(module).init(None))


class Cosine(nn.Module):
    def forward(self, x):
        return torch.cos(x)


ACTIVATIONS = {"tanh": nn.Tanh(), "cosine": Cosine(), "skip": Skip()}


@pytest.mark.parametrize("known", ACTIVATIONS)
def test_the_gates_find_the_layer_that_the_tasks_were_made_with(known):
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(3, 4, generator=generator)

    def sample(split, numbers):
        own = torch.Generator().manual_seed(1000 + numbers[0])
        x = torch.randn(len(numbers), 20, 3, generator=own)
        weights = common + 0.1 * torch.randn(len(numbers), 3, 4, generator=own)
        y = ACTIVATIONS[known](x @ weights)
        return Episodes(Batch(x[:, :10], y[:, :10]), Batch(x[:, 10:], y[:, 10:]))

    module = nn.Sequential(nn.Linear(3, 4), Mixture(ACTIVATIONS))
    learner = sharpened(maml(module, loss="mse", steps=1, rate=0.5, taskmap="vmap"), end=0.1)
    tasks = Tasks("known", sample, "regression", (3,), 4, {})
    *_, last = fit(learner, tasks, steps=120, tasks_per_step=4, optimizer=partial(torch.optim.Adam, lr=0.03))
    assert choices(module, last.state.meta) == {"1": known}
    assert learner.shown(last.state.meta)[f"1.gates.{known}"] > 0.9
