import pytest
import torch

import headstart
from headstart.errors import DataError, DivergenceError, ShapeError, UsageError


def lines(count, sizes=(12,)):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.rand(sizes[i % len(sizes)], 1, generator=generator) * 2 - 1 for i in range(count)]
    return xs, [slope * x for slope, x in zip(torch.linspace(-3, 3, count), xs)]


def loss_after_one_step(model, rate):
    learner = headstart.maml(model, loss="mse", steps=1, rate=rate)
    x, y = (torch.stack(values) for values in lines(20))
    with torch.no_grad():
        adapted, _ = learner.adapt(learner.init(None), headstart.Batch(x[:, :6], y[:, :6]))
        return float(learner.loss(learner.predict(adapted, x[:, 6:]), headstart.Batch(x[:, 6:], y[:, 6:])).mean())


def tiny():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def test_it_learns_to_adapt_and_leaves_the_model_alone():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = headstart.maml_train(model, *lines(40), learning_rate=0.02, iterations=150, inner_rate=0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert loss_after_one_step(trained, 0.5) < 0.3 * loss_after_one_step(model, 0.5)


def test_it_is_second_order():
    """One iteration moves θ as Adam does with the exact meta-gradient, and not with the first-order one."""
    x, y = lines(4)
    model = tiny().double()
    x, y = [v.double() for v in x], [v.double() for v in y]
    trained = headstart.maml_train(model, x, y, learning_rate=0.1, iterations=1, inner_rate=0.5, inner_steps=2)
    moved = {n: v - dict(model.named_parameters())[n] for n, v in trained.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    from headstart.algorithms.maml_train import _episodes

    numbers = torch.randperm(4, generator=generator).tolist()
    episodes = _episodes([(x[i], y[i]) for i in numbers], None, generator)
    learner = headstart.maml(model, loss="mse", steps=2, rate=0.5)
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), episodes)
    for name, value in moved.items():  # Adam's first step is the sign of the gradient times the rate
        torch.testing.assert_close(value, -0.1 * gradient.params[name].sign(), rtol=1e-3, atol=1e-5)


def test_the_seed_decides_everything():
    def weights(seed):
        trained = headstart.maml_train(tiny(), *lines(20), 0.01, 5, tasks_per_step=4, seed=seed)
        return torch.cat([value.flatten() for value in trained.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_tasks_of_different_sizes_and_class_ids():
    headstart.maml_train(tiny(), *lines(9, sizes=(4, 7, 12)), 0.01, 3)
    x = [torch.randn(6, 2) for _ in range(5)]
    y = [torch.tensor([0, 1, 2, 0, 1, 2]) for _ in x]
    assert headstart.maml_train(torch.nn.Linear(2, 3), x, y, 0.01, 2)(x[0]).shape == (6, 3)


def test_bad_input_is_named():
    x, y = lines(3)
    with pytest.raises(DataError, match="3 and 2"):
        headstart.maml_train(tiny(), x, y[:2], 0.1, 1)
    with pytest.raises(DataError, match="task 1 has 1 examples"):
        headstart.maml_train(tiny(), [x[0], x[1][:1], x[2]], [y[0], y[1][:1], y[2]], 0.1, 1)
    with pytest.raises(ShapeError, match="task 2 has 12 inputs but 11 targets"):
        headstart.maml_train(tiny(), x, [*y[:2], y[2][:-1]], 0.1, 1)
    with pytest.raises(DataError, match="inputs of task 0 hold NaN"):
        headstart.maml_train(tiny(), [x[0] * torch.nan, *x[1:]], y, 0.1, 1)
    with pytest.raises(UsageError, match="learning_rate"):
        headstart.maml_train(tiny(), x, y, 0.0, 1)
    with pytest.raises(DivergenceError, match="iteration 0"):
        headstart.maml_train(tiny(), x, [v * 1e30 for v in y], 0.1, 1)


def test_running_statistics_are_those_of_the_tasks():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    x, y = lines(20)
    trained = headstart.maml_train(model, x, y, 0.01, 3)
    hidden = trained[0](torch.cat(x))
    torch.testing.assert_close(trained[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert trained[1].momentum == 0.1 and trained.training
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_padding_is_refused_under_batch_statistics():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with pytest.raises(UsageError, match="the layer at '1' normalises by all of them, padding included"):
        headstart.maml_train(model, *lines(9, sizes=(4, 12)), 0.01, 1)


def test_what_is_no_tensor_is_refused():
    x, y = lines(3)
    with pytest.raises(ShapeError, match="task 0 must be two tensors .* ndarray"):
        headstart.maml_train(tiny(), [x[0].numpy(), *x[1:]], y, 0.1, 1)
    with pytest.raises(ShapeError, match="float64"):
        headstart.maml_train(tiny(), [value.double() for value in x], y, 0.1, 1)
