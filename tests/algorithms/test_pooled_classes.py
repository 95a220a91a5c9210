"""Pre-training on all training classes at once, and what starts from it."""

import pytest
import torch
from torch import nn

import headstart
from headstart.core.objective import at, meta_loss
from headstart.data.domains import mixed
from headstart.data.fewshot import class_store, few_shot
from headstart.errors import ConfigError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.fit_best import first, fit_best, renewed
from headstart.training.loop import fit, pooled, start
from headstart.types import Episodes


def clouds(classes: int, seed: int, **options):
    """Classes that differ in three of six features; the others vary, and tell nothing."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(split: str):
        centres = torch.randn(classes, 1, 6, generator=generator) * torch.tensor([1.0, 1, 1, 0, 0, 0])
        noise = torch.randn(classes, 12, 6, generator=generator) * torch.tensor([0.2, 0.2, 0.2, 3, 3, 3])
        return class_store({f"{split}{k:02}": one for k, one in enumerate(0.3 + centres + noise)})

    return few_shot("clouds", {split: drawn(split) for split in ("train", "validation", "test")}, **options)


TASKS = clouds(8, 0, ways=3, shots=2, queries=4)


def made(name: str, **options):
    torch.manual_seed(0)
    return getattr(headstart, name)(nn.Linear(6, 4), classes=8, **options)


def test_labels_are_those_of_all_training_classes():
    numbers = range(5)
    own = TASKS.sample("train", numbers)
    found = pooled(own, TASKS, numbers)
    assert TASKS.pool is not None and TASKS.pool.count == 8
    for number in numbers:
        told = [f"train{label:02}" for label in found.query.y[number].tolist()]
        assert told == [TASKS.names("train", number)[label] for label in own.query.y[number].tolist()]


def test_domains_have_their_classes_one_after_another():
    two = mixed("two", {"a": TASKS, "b": clouds(5, 1, ways=3, shots=2, queries=4)})
    numbers, names = range(8), [f"a/train{k:02}" for k in range(8)] + [f"b/train{k:02}" for k in range(5)]
    assert two.pool is not None and two.pool.count == 13
    found = two.pool.classes(numbers).tolist()
    assert [tuple(names[place] for place in row) for row in found] == [two.names("train", n) for n in numbers]
    assert {two.domain("train", number) for number in numbers} == {"a", "b"}


def test_the_loss_is_that_of_one_classification():
    learner, numbers = made("linear_probe"), range(3)
    meta = learner.init(torch.Generator().manual_seed(0))
    episodes = pooled(TASKS.sample("train", numbers), TASKS, numbers)
    x, y = (torch.cat([getattr(batch, name) for batch in episodes], 1).flatten(0, 1) for name in "xy")
    features = nn.functional.linear(x, meta.params["weight"], meta.params["bias"])
    logits = nn.functional.linear(features, meta.params["classes.weight"], meta.params["classes.bias"])
    torch.testing.assert_close(meta_loss(learner, meta, episodes)[0], nn.functional.cross_entropy(logits, y))


@pytest.mark.parametrize("name", ["linear_probe", "bd_cspn"])  # one of each classifier of all classes
def test_pre_training_makes_new_classes_easier_to_tell(name):
    learner = made(name)
    state = start(learner, tasks=TASKS, optimizer=lambda leaves: torch.optim.Adam(leaves, lr=0.05))
    before = evaluate(learner, state.meta, TASKS, episodes=60).mean
    *_, last = fit(learner, TASKS, state=state, steps=60, tasks_per_step=8)
    after = evaluate(learner, renewed(learner, last.state.meta, TASKS, 0), TASKS, episodes=60).mean
    assert after > before + 0.1, (before, after)


def test_classes_that_are_a_tasks_own_are_refused():
    learner = made("linear_probe")
    with pytest.raises(ConfigError, match="each task's own"):
        next(fit(learner, TASKS._replace(pool=None), steps=1))


def test_a_frozen_network_leaves_nothing_to_learn():
    learner = headstart.simple_shot(nn.Linear(6, 4).requires_grad_(False), classes=8)
    assert learner.gradient is None and not learner.pooled
    assert start(learner, tasks=TASKS).meta.structure["centre"].any()


def test_the_centre_is_the_mean_of_features_as_they_are_now():
    learner = made("simple_shot")
    state = start(learner, tasks=TASKS)
    *_, look = fit_best(
        learner, TASKS, state=state, best=first(state.meta, None), judge=None, steps=3, every=1, tasks_per_step=2
    )
    examples = torch.cat([torch.cat(list(b.x for b in TASKS.sample("train", range(256))), 1)]).flatten(0, 1)
    found = nn.functional.linear(examples, look.best.meta.params["weight"], look.best.meta.params["bias"])
    torch.testing.assert_close(look.best.meta.structure["centre"], found.mean(0))
    assert not torch.equal(look.best.meta.structure["centre"], state.meta.structure["centre"])


def test_meta_baseline_learns_from_classes_first_and_then_from_tasks():
    learner = made("meta_baseline", share=0.25)
    assert at(learner, 0.2).pooled and not at(learner, 0.3).pooled and not learner.pooled
    steps = fit(learner, TASKS, state=start(learner, tasks=TASKS), steps=8, tasks_per_step=4)
    scales = [float(record.state.meta.structure["scale"]) for record in steps]
    assert scales[0] == scales[1] == 10 != scales[2]


def test_meta_baselines_first_stage_keeps_the_contract():
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()

    def first_stage(taskmap: str):
        return at(headstart.meta_baseline(module, classes=3, ways=3, taskmap=taskmap), 0.0)._replace(during=None)

    check_learner(first_stage, random_episodes((3,)), module=module, directions=1)


def test_a_linear_probe_comes_to_the_optimum():
    support, query = random_episodes((3,), support=8, seed=2)
    learner = headstart.linear_probe(inputs=3, fit_steps=1000, fit_rate=1.8, decay=0.1)
    found = learner.predict(learner.adapt(learner.init(None), support)[0], query.x)
    weights = torch.zeros(3, 3, 4, dtype=torch.float64, requires_grad=True)
    design = torch.cat([torch.ones(3, 8, 1), support.x], -1)

    def loss():
        logits, decay = design @ weights.mT, 0.05 * weights.square().sum()
        return nn.functional.cross_entropy(logits.flatten(0, 1), support.y.flatten()) * 3 + decay

    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        (value := loss()).backward()
        return value

    optimizer.step(closure)
    expected = torch.cat([torch.ones(3, 5, 1), query.x], -1) @ weights.detach().mT
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tune", "moved"), [("all", 4), ("last", 2), ("low_rank", 4)])
def test_what_is_tuned_moves_and_nothing_else(tune, moved):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    learner = headstart.fine_tuning(net, tune=tune, classes=6)
    episodes = random_episodes((3,))
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    own = {name for name in adapted.params if name.startswith("body.")}
    assert len(own) == moved and all(("up" in name or "down" in name) == (tune == "low_rank") for name in own)
    assert {"head.weight", "head.bias", "counts"} == adapted.params.keys() - own


def test_fine_tuning_takes_any_number_of_classes():
    learner, meta = made("fine_tuning"), made("fine_tuning").init(None)
    for ways in (2, 7):
        support, query = random_episodes((6,), outputs=ways, support=14)
        support, query = Episodes(*(batch._replace(x=batch.x.float()) for batch in (support, query)))
        assert learner.predict(learner.adapt(meta, support)[0], query.x).shape[-1] == ways
