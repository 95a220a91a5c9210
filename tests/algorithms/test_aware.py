"""The proposal goes by the module, says why, and can be overridden part by part."""

import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.algorithms.aware import propose
from headstart.algorithms.reading import read
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes


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


def test_it_keeps_the_contract_with_everything_on():
    model = small()
    check_learner(
        lambda taskmap: headstart.aware(model, steps=2, geometry="curvature", explain=None, taskmap=taskmap),
        random_episodes((2,)),
        module=model,
        initial=False,
        order=True,
    )
