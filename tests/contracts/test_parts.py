"""Every adjoint, rule and task family keeps its contract."""

import pytest
import torch
from torch import nn

from headstart import Checkpointed, FirstOrder, Unrolled, registry, rules
from headstart.core.adjoints import Truncated
from headstart.data.curves.sinusoid import sinusoid
from headstart.data.fewshot import class_store, few_shot
from headstart.testing import check_adjoint, check_rule, check_tasks

ADJOINTS = [
    Unrolled(),
    FirstOrder(),
    Truncated(0),
    Truncated(2),
    Checkpointed(),
    Checkpointed(every=1),
    Checkpointed(every=3),
    Checkpointed(every=100),
    Checkpointed(memory=10_000),
    Checkpointed(memory="1 MB"),
]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_adjoints_keep_the_contract(adjoint):
    check_adjoint(adjoint)


RULES = {
    "scale": rules.scale(0.1),
    "learned scale": rules.scale(0.1, learn=True),
    "per tensor": rules.per_tensor(0.1),
    "per task": rules.per_task(lambda m, params, support: 1 + support.seed.double()),
    "per weight": rules.per_weight(),
    "momentum": rules.momentum(decay=0.9),
    "nesterov": rules.momentum(decay=0.9, nesterov=True),
    "adam": rules.adam(),
    "adam without momentum": rules.adam(decay=0.0),
    "clip value": rules.clip(value=0.7),
    "clip norm": rules.clip(norm=2.0),
    "clip norm, too long to matter": rules.clip(norm=1e3),
    "weight decay": rules.weight_decay(0.1),
    "learned momentum": rules.momentum(decay=0.9, learn=True),
    "learned nesterov": rules.momentum(decay=0.9, nesterov=True, learn=True),
    "learned weight decay": rules.weight_decay(0.1, learn=True),
    "proximal": rules.proximal(0.1),
    "learned proximal": rules.proximal(0.1, learn=True),
    "rates of each step": rules.per_tensor(0.1, steps=2, positive=True),
    "curvature": rules.curvature(),
    "diagonal": rules.diagonal(),
    "kronecker": rules.kronecker(),
    "mask": rules.mask(),
    "mask of units": rules.mask(granularity="unit"),
    "straight-through mask": rules.mask(kind="straight_through"),
    "unit mask": rules.unit_mask(),
    "hard unit mask": rules.unit_mask(hard=True),
    "fixed mask": rules.fixed_mask({"body.weight": torch.eye(4, 3)}),
    "generated rates": rules.generated_rates(0.1, steps=2, decay=0.01),
    "only": rules.chain(rules.only("head", nn.LayerNorm), rules.scale(0.1)),
    "exclude": rules.chain(rules.exclude("head"), rules.scale(0.1)),
    "all at once": rules.chain(
        rules.exclude("body.bias"),
        rules.weight_decay(0.01),
        rules.clip(norm=1.5),
        rules.adam(),
        rules.per_weight(0.05, name="fine"),
        rules.scale(0.5, learn=True),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_keep_the_contract(name):
    check_rule(RULES[name])


#: Public makers of rules, each of which makes at least one of those above.
MAKERS = {
    "adam",
    "clip",
    "curvature",
    "diagonal",
    "exclude",
    "fixed_mask",
    "generated_rates",
    "kronecker",
    "mask",
    "momentum",
    "only",
    "per_task",
    "per_tensor",
    "per_weight",
    "proximal",
    "scale",
    "unit_mask",
    "weight_decay",
}


def test_every_public_rule_is_checked():
    assert set(rules.__all__) - {"Rule", "chain"} == MAKERS


def test_sinusoids_keep_the_contract():
    check_tasks(lambda seed: sinusoid(shots=5, queries=6, seed=seed))


@pytest.mark.parametrize("shots", [2, (1, 3)])
def test_icons_keep_the_contract(shots):
    icons = registry.load("task", "icons")
    check_tasks(lambda seed: icons(ways=4, shots=shots, queries=3, seed=seed))


@pytest.mark.parametrize("name", ["emoji", "flags"])
def test_changed_at_random_they_keep_it_too(name):
    family = registry.load("task", name)
    check_tasks(lambda seed: family(ways=3, shots=2, queries=2, seed=seed, augment=("crop", "flip", "colour")))


def test_omniglot_keeps_the_contract(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "omniglot"
    folder.mkdir()
    for name in ("images_background.zip", "images_evaluation.zip"):
        if not (shared_data / "omniglot" / name).is_file():
            pytest.skip("Omniglot's zips are not in the shared data")
        (folder / name).symlink_to((shared_data / "omniglot" / name).resolve())
    omniglot = registry.load("task", "omniglot")
    made = {seed: omniglot(data=folder, ways=5, shots=1, queries=3, seed=seed) for seed in (0, 1)}
    check_tasks(made.__getitem__)


def test_images_of_your_own_keep_the_contract(generator):
    def store(prefix):
        images = torch.randint(256, (6, 7, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return class_store({f"{prefix}{k}": images[k] for k in range(6)})

    stores = {split: store(split) for split in ("train", "validation", "test")}
    check_tasks(lambda seed: few_shot("mine", stores, ways=3, shots=(1, 3), queries=2, seed=seed))
