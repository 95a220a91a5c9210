import pytest
import torch
from torch import nn

import headstart
from headstart.data.curves.plateaus import plateaus
from headstart.errors import UsageError
from headstart.models.soft_forest import SoftTrees, soft_forest
from headstart.training.evaluate import evaluate
from headstart.training.loop import fit


def test_shares_of_leaves_are_products_of_the_answers_and_sum_to_1_in_each_tree():
    torch.manual_seed(0)
    trees = SoftTrees(3, trees=2, depth=2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    shares = trees(x).view(5, 2, 4) * 2**0.5
    torch.testing.assert_close(shares.sum(-1), torch.ones(5, 2, dtype=torch.float64))
    asked = torch.einsum("nf,tdf->ntd", x, trees.feature.softmax(-1)) - trees.threshold
    high = (asked * trees.log_sharpness.exp()).sigmoid()
    torch.testing.assert_close(shares[..., 3], high.prod(-1))
    torch.testing.assert_close(shares[..., 1] + shares[..., 3], high[..., 1])


def test_sharp_trees_are_decision_trees():
    trees = SoftTrees(2, trees=1, depth=2)
    with torch.no_grad():
        trees.feature.copy_(torch.tensor([[[50.0, 0.0], [0.0, 50.0]]]))
        trees.threshold.zero_()
        trees.log_sharpness.fill_(10.0)
    x = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    assert trees(x).argmax(-1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(trees(x).amax(-1), torch.ones(4))


def test_shapes_names_and_inputs_of_several_axes():
    model = soft_forest((2, 3), 4, trees=3, depth=2)
    assert [name for name, _ in model.named_children()] == ["flatten", "trees", "head"]
    assert model(torch.randn(5, 2, 3)).shape == (5, 4)
    embedding = soft_forest(6, None, trees=3, depth=2)
    assert embedding(torch.randn(5, 6)).shape == (5, 12) and not hasattr(embedding, "head")
    assert isinstance(model[0], nn.Flatten)


@pytest.mark.parametrize("arguments", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 4, 0)])
def test_sizes_must_be_positive(arguments):
    with pytest.raises(UsageError, match="soft_forest needs positive sizes"):
        soft_forest(*arguments[:2], trees=arguments[2], depth=arguments[3])


def test_it_learns():
    torch.manual_seed(0)
    learner = headstart.maml(soft_forest(3, 1, trees=4, depth=3), loss="mse", steps=3, rate=0.1, taskmap="vmap")
    tasks = plateaus(features=3, queries=10)
    before = evaluate(learner, learner.init(None), tasks, episodes=100).mean
    for record in fit(learner, tasks, steps=60, optimizer=lambda tensors: torch.optim.Adam(tensors, lr=0.02)):
        last = record
    assert evaluate(learner, last.state.meta, tasks, episodes=100).mean < 0.85 * before
