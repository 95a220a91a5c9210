"""The proposal goes by the module, says why, and can be overridden part by part."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import headstart
from headstart import Context, FirstOrder, rules
from headstart.algorithms.adapters import low_rank
from headstart.algorithms.aware import propose
from headstart.algorithms.reading import read
from headstart.errors import UnknownNameError, UsageError


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 50)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.encoder(self.words(x)).mean(1))


def small():
    torch.manual_seed(0)
    return headstart.mlp(2, 3, hidden=(4,)).double()


def told(module, **options):
    lines = []
    learner = headstart.aware(module, explain=lines.append, **options)
    return learner, dict(line.split(": ", 1) for line in lines)


def test_the_reading_names_what_is_there():
    found = read(headstart.conv4((1, 28, 28), ways=5, filters=8))
    assert found.head == "head" and found.linear_head and len(found.norms) == 4 and len(found.layers) == 5
    words = read(Words())
    assert words.embeddings == ("words",) and words.attention == ("encoder.self_attn",)
    assert words.tied == ("words.weight",) and len(words.norms) == 2
    assert read(nn.Sequential(nn.LSTM(2, 3), nn.Linear(3, 1))).recurrent == ("0",)
    assert read(nn.Linear(2, 1)).head == ""


def test_a_classifier_starts_from_prototypes_and_a_regression_does_not():
    assert propose(small()).start == "prototypes"
    assert propose(small(), loss="mse").start == "initial"
    assert propose(nn.Linear(2, 3)).start == "initial"


def test_a_tied_embedding_is_seen_and_embeddings_stay():
    plan = propose(Words())
    assert plan.stays == (nn.Embedding,)
    learner = headstart.aware(Words(), explain=None, taskmap="loop")
    assert not any("words" in name for name in learner.init(None).structure)


def test_every_choice_is_said_with_its_reason():
    _, lines = told(small())
    assert {"start", "moves", "rates", "geometry", "objective", "derivatives", "adjoint"} <= lines.keys()
    assert all("(" in line for line in lines.values())


def test_by_default_it_prints(capsys):
    headstart.aware(small())
    assert "start: head from class means" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "part", "words"),
    [
        ({"start": "initial"}, "start", "the learned weights (asked for)"),
        ({"moves": ["head"]}, "moves", "head (asked for)"),
        ({"rates": "weight"}, "rates", "one learned for each weight (asked for)"),
        ({"geometry": "curvature"}, "geometry", "curvature (asked for)"),
        ({"rule": rules.scale(0.1)}, "rule", "a rule of your own (asked for)"),
        ({"multi_step_until": 0.5}, "objective", "the losses after every step for the first 50% of training"),
        ({"first_order_until": 0}, "derivatives", "exact throughout (asked for)"),
    ],
)
def test_each_part_can_be_overridden(options, part, words):
    _, lines = told(small(), **options)
    assert lines[part].startswith(words)


def test_what_is_asked_for_is_what_is_learned():
    learner, _ = told(small(), rates="weight", geometry="curvature", moves="head", start="initial")
    names = learner.init(torch.Generator().manual_seed(0)).structure.keys()
    assert names == {
        "rate.head.weight",
        "rate.head.bias",
        "curvature.output.head.weight",
        "curvature.input.head.weight",
        "curvature.diagonal.head.bias",
    }


def test_many_steps_are_checkpointed_and_large_modules_move_little():
    assert propose(small(), steps=50).checkpoint
    large = propose(nn.Sequential(nn.Linear(2000, 2000), nn.LayerNorm(2000), nn.Linear(2000, 5)))
    assert "2" in large.moves and nn.LayerNorm in large.moves


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "prototype"}, "did you mean 'prototypes'"),
        ({"rates": "tensors"}, "did you mean 'tensor'"),
        ({"geometry": "curved"}, "did you mean 'curvature'"),
        ({"moves": "haed"}, "nearest: head"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(options, words):
    with pytest.raises(UnknownNameError, match=words):
        headstart.aware(small(), explain=None, **options)


def test_prototypes_without_a_head_are_refused():
    with pytest.raises(UsageError, match="the head found here: none apart from the body"):
        headstart.aware(nn.Linear(2, 3), start="prototypes", explain=None)


def test_a_tied_head_starts_from_what_was_learned():
    learner, lines = told(Words(), steps=1, taskmap="loop")
    assert lines["start"] == "the learned weights (no linear classifier with weights of its own at the end)"
    support = headstart.Batch(torch.zeros(2, 3, 4, dtype=torch.long), torch.arange(3).expand(2, 3))
    learner.adapt(learner.init(None), support)
    with pytest.raises(UsageError, match="not tied, frozen or in M"):
        headstart.aware(Words(), start="prototypes", explain=None)


def test_a_large_module_moves_its_head_and_the_norms_that_it_has():
    convolutions = headstart.conv4((1, 28, 28), ways=5, filters=384)
    _, lines = told(convolutions)
    assert lines["moves"].startswith("head, _NormBase (")
    convolutions = headstart.conv4((1, 28, 28), ways=5, filters=384)
    for layer in convolutions.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(False)
    assert propose(convolutions).moves == ("head",)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_large_network_of_blocks_gets_adapters_beside_the_later_ones(monkeypatch, frozen):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x):
            return x + self.outer(self.inner(x).relu())

    body = nn.Sequential(*(Block() for _ in range(4))).requires_grad_(not frozen)
    net = nn.Sequential(OrderedDict(body=body, head=nn.Linear(4, 3)))
    assert propose(net).adapters == ()  # it is small
    monkeypatch.setattr("headstart.algorithms.aware.LARGE", 100)
    learner, lines = told(net, steps=2, rate=0.1)
    assert lines["moves"].startswith("head, low-rank adapters beside 4 linear layers of the later blocks (319 values")
    meta = learner.init(torch.Generator().manual_seed(0))
    own = {f"body.{n}.{name}.{part}" for n in (2, 3) for name in ("inner", "outer") for part in ("down", "up")}
    learned = {"head.weight", "head.bias"} | own
    assert {name.removeprefix("log_rate.") for name in meta.structure if "rate" in name} == learned
    assert (set(meta.params) == learned) == frozen and learned <= set(meta.params)
    support = headstart.Batch(torch.randn(2, 3, 4), torch.arange(3).expand(2, 3))
    assert set(learner.adapt(meta, support)[0].params) == learned
    assert propose(net, moves="head").adapters == propose(low_rank(net)).adapters == ()


def test_what_is_frozen_is_not_asked_to_stay():
    words = nn.Embedding(5, 4)
    words.requires_grad_(False)
    module = nn.Sequential(words, nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    _, lines = told(module)
    assert lines["moves"].startswith("everything")


def test_context_moves_whatever_layers_it_is_made_of():
    class Own(Context):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x)

    learner, lines = told(nn.Sequential(nn.Linear(2, 4), Own(), nn.Linear(4, 3)), start="initial")
    assert lines["moves"].startswith("the context")
    adapted, _ = learner.adapt(learner.init(None), headstart.Batch(torch.ones(2, 3, 2), torch.arange(3).expand(2, 3)))
    assert adapted.params.keys() == {"1.layer.weight", "1.layer.bias"}


def test_a_rule_stands_alone_and_is_not_said_to_move_something_else():
    _, lines = told(small(), rule=rules.chain(rules.only("head"), rules.scale(0.1)))
    assert lines["moves"].startswith("what your rule moves")
    for part in ({"moves": "head"}, {"rates": "one"}, {"geometry": "plain"}):
        with pytest.raises(UsageError, match="in place of moves=, rates= and geometry="):
            headstart.aware(small(), rule=rules.scale(0.1), explain=None, **part)


def test_the_adjoint_that_was_asked_for_is_the_one_that_is_said():
    learner, lines = told(small(), adjoint=FirstOrder())
    assert lines["adjoint"] == "FirstOrder (asked for)" and lines["derivatives"].startswith("first order throughout")
    assert learner.during is None and not learner.exact
    learner, lines = told(small(), steps=50, adjoint=headstart.Unrolled())
    assert lines["adjoint"] == "Unrolled (asked for)" and learner.during is not None and learner.during(0.9).exact


def test_a_head_is_looked_for_among_the_initial_weights():
    module = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), headstart.Structural(nn.Linear(4, 3)))
    assert read(module).head == "1"
