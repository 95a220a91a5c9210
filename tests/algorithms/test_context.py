import pytest
import torch
from torch import nn
from torch.func import functional_call

import headstart
from headstart import FirstOrder, Unrolled
from headstart.algorithms.context import cavia
from headstart.core.parameters import Context, Structural
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes

PHI = "hidden1.after.context.values"
V = "hidden1.after.weight"


def net():
    return headstart.mlp(2, 3, hidden=(5, 4)).double()


def images(norm=True):
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4) if norm else nn.Identity(), nn.Tanh()]
    layers += [nn.Conv2d(4, 3, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)]
    return nn.Sequential(*layers).double()


MODELS = {"input": (net, (2,)), "film": (net, (2,)), "convolutions": (images, (1, 4, 4))}


def test_an_inner_loop_moves_the_context_and_nothing_else():
    learner, episodes = cavia(net(), size=4, steps=3), random_episodes((2,))
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    assert adapted.params.keys() == {PHI}
    assert adapted.params[PHI].shape == (3, 4)
    assert (adapted.params[PHI] != 0).all()


def test_context_starts_at_zero_in_every_task_and_is_not_learned():
    learner, episodes = cavia(net(), steps=3), random_episodes((2,))
    meta = learner.init(None)
    assert PHI not in meta.params and not meta.structure
    first, _ = learner.adapt(meta, episodes.support)
    assert (first.params[PHI] != 0).any()
    start, _ = learner.adapt(meta, episodes.support, steps=0)
    assert torch.equal(start.params[PHI], torch.zeros(3, 5, dtype=torch.float64))


def test_context_inputs_equal_concatenation():
    """One inner step, against a plain network whose inputs are x and φ side by side."""
    module, episodes = net(), random_episodes((2,), tasks=1)
    learner = cavia(module, size=3, steps=1, rate=0.7)
    meta = learner.init(torch.Generator().manual_seed(1))
    wide = headstart.mlp(5, 3, hidden=(5, 4)).double()
    values = {k.replace(".layer", ""): v for k, v in meta.params.items() if k != V}
    values["hidden1.weight"] = torch.cat([meta.params["hidden1.layer.weight"], meta.params[V]], 1)

    def outputs(phi, x):
        return functional_call(wide, values, (torch.cat([x, phi.expand(len(x), 3)], 1),))

    phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    loss = nn.functional.cross_entropy(outputs(phi, episodes.support.x[0]), episodes.support.y[0])
    phi = phi - 0.7 * torch.autograd.grad(loss, phi)[0]
    adapted, _ = learner.adapt(meta, episodes.support)
    assert torch.allclose(adapted.params[PHI][0], phi, rtol=1e-12, atol=0)
    expected = outputs(phi, episodes.query.x[0])
    assert torch.allclose(learner.predict(adapted, episodes.query.x)[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("model", MODELS)
def test_without_inner_steps_predictions_are_the_modules_own(model):
    make, shape = MODELS[model]
    module, episodes = make(), random_episodes(shape)
    learner = cavia(module, where="film" if model == "film" else None)
    adapted, _ = learner.adapt(learner.init(None), episodes.support, steps=0)
    expected = torch.stack([module(x) for x in episodes.query.x])
    assert torch.allclose(learner.predict(adapted, episodes.query.x), expected, rtol=1e-12, atol=1e-14)


def test_convolutions_take_film_behind_their_normalisation_and_vectors_take_inputs():
    names = cavia(images()).init(None).params
    assert {name for name in names if ".after." in name} == {"1.after.weight", "3.after.weight"}
    assert names["1.after.weight"].shape == (8, 5) and names["3.after.weight"].shape == (6, 5)
    assert V in cavia(net()).init(None).params


def test_one_context_is_read_by_all_layers():
    learner, episodes = cavia(net(), where="film", size=2), random_episodes((2,))
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    assert adapted.params.keys() == {PHI}


def test_layers_that_read_the_context_can_be_chosen():
    assert "head.after.weight" in cavia(net(), what="head").init(None).params
    with pytest.raises(UnknownNameError, match="hidden2"):
        cavia(net(), what="hiden2")


def test_a_single_linear_layer_takes_context_inputs():
    module = nn.Linear(2, 3).double()
    check_learner(
        lambda taskmap: cavia(module, steps=2, taskmap=taskmap), random_episodes((2,)), module=module, directions=1
    )


def test_the_maps_start_by_the_generator_in_the_bounds_of_a_linear_layer():
    learner = cavia(headstart.mlp(4, 1, hidden=(200,)), size=5)
    first, second, same = (learner.init(torch.Generator().manual_seed(k)).params[V] for k in (0, 1, 0))
    assert torch.equal(first, same) and not torch.equal(first, second)
    assert 0.3 < first.abs().max() <= 1 / 3


def test_context_modules_of_the_model_itself_move_too():
    class Own(Context):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3).double())

        def forward(self, y):
            return y + self.bias

    learner, episodes = cavia(nn.Sequential(net(), Own())), random_episodes((2,))
    adapted, _ = learner.adapt(learner.init(None), episodes.support)
    assert adapted.params.keys() == {"0.hidden1.after.context.values", "1.bias"}


def test_first_order_leaves_out_what_goes_through_the_context():
    """θ reaches the query loss directly and through φ; first order keeps the direct part."""
    module, episodes = net(), random_episodes((2,))
    exact, first = (cavia(module, steps=2, adjoint=adjoint) for adjoint in (Unrolled(), FirstOrder()))
    meta = exact.init(torch.Generator().manual_seed(0))
    gradients = [headstart.meta_gradient(learner, meta, episodes)[0].params for learner in (exact, first)]
    assert all((gradients[1][name] != 0).any() for name in meta.params)
    assert not torch.allclose(gradients[0][V], gradients[1][V], rtol=1e-3)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(UsageError, match="at least 1, got 0"):
        cavia(net(), size=0)
    with pytest.raises(UnknownNameError, match="'film'"):
        cavia(net(), where="filn")
    with pytest.raises(UsageError, match="no linear layer"):
        cavia(nn.Identity())
    with pytest.raises(UsageError, match="where='film'"):
        cavia(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)), where="input")


@pytest.mark.parametrize("where", ["input", "film"])
def test_maps_behind_a_layer_in_m_are_in_m_and_drawn_as_well(where):
    model = torch.nn.Sequential(Structural(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
    learner = cavia(model, where=where, size=2)
    meta = learner.init(torch.Generator().manual_seed(0))
    assert meta.structure["0.layer.after.weight"].abs().min() > 0
    check_learner(learner, random_episodes((2,)), module=model)
