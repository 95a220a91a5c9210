import pytest
import torch
from torch import nn

from headstart import frozen, prototypes
from headstart.algorithms.heads.head import learner
from headstart.algorithms.heads.regularised import regularised
from headstart.errors import UnknownNameError
from headstart.testing import random_episodes


@pytest.mark.parametrize(
    ("head", "other"),
    [("means", lambda f: prototypes(f, distance="cosine")), ("logistic", lambda f: learner(f, regularised(None)))],
)
def test_it_is_the_head_on_the_network_as_it_starts_and_learns_nothing(head, other):
    module, episodes = nn.Linear(3, 5).double(), random_episodes((3,))
    ours, theirs = frozen(module, head=head), other(module)
    said = [one.predict(one.adapt(one.init(None), episodes.support)[0], episodes.query.x) for one in (ours, theirs)]
    torch.testing.assert_close(*said)
    assert ours.gradient is None and theirs.gradient is not None


def test_another_head_is_refused():
    with pytest.raises(UnknownNameError, match="head"):
        frozen(nn.Linear(3, 5), head="mean")
