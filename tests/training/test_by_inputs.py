"""What a network starts from is read off the training inputs, each once."""

import pytest
import torch
from torch import nn

from headstart import prototypes
from headstart.errors import UsageError
from headstart.training.by_inputs import started_by_inputs
from headstart.types import Batch, Episodes, Tasks


class Counting(nn.Linear):
    name = "bias"

    def start_by_inputs(self, inputs):
        rows = sorted(tuple(row.tolist()) for x in inputs for row in x)
        self.seen = rows
        return {self.name: torch.tensor([float(len(rows))])}


def of_lengths(split, numbers):
    """Return texts that are as long as the longest of their batch, as a tokenizer pads them; 0 is no text."""
    length = 2 + next(iter(numbers)) // 8 % 2
    x = torch.zeros(len(numbers), 3, length, dtype=torch.int64)
    x[:, 0, 0], x[:, 1, -1] = 1, torch.arange(len(numbers))
    batch = Batch(x, torch.zeros(len(numbers), 3, dtype=torch.int64))
    return Episodes(batch, batch)


TASKS = Tasks("texts", of_lengths, "classification", (2,), 1, {}, {"train": 16}, integers=True)


def test_inputs_of_several_lengths_each_once():
    net = Counting(1, 1)
    learner = started_by_inputs(prototypes(net), net)
    meta = learner.prepare(learner.init(None), TASKS, 0, None)
    assert net.seen == sorted([(1, 0), (1, 0, 0)] + [(0, n) for n in range(1, 8)] + [(0, 0, n) for n in range(1, 8)])
    assert meta.params["bias"].tolist() == [16.0]


def test_a_start_of_what_is_not_learned_is_refused():
    net = Counting(1, 1)
    net.name = "elsewhere"
    learner = started_by_inputs(prototypes(net), net)
    with pytest.raises(UsageError, match="elsewhere is not learned here"):
        learner.prepare(learner.init(None), TASKS, 0, None)
