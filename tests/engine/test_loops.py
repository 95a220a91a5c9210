import logging

import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.algorithms.adaptation import InnerLoss
from headstart.core.objective import backprop, meta_loss, query_losses
from headstart.core.rules import Rule
from headstart.core.tree import mapped
from headstart.engine.loops import counted, in_steps, step_by_step
from headstart.engine.record import Recorded, Way, differing, replayed
from headstart.engine.tracing import recorded
from headstart.errors import DifferentiationError, ShapeError
from headstart.testing import random_episodes
from headstart.types import Meta

SOON = Way("replayed", replayed, after=0, most=2000, same=True, level=logging.WARNING)


def net():
    return headstart.mlp(4, 3, hidden=(8,)).double()


def images():
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 3)).double()


def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).double()


def tabled():
    """A rate that Python finds by the number of the step."""
    return Rule(
        lambda m, state, grads, params, step: (
            {k: g * (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)[step % 7] for k, g in grads.items()},
            state,
        )
    )


def by_number_of_the_middle(is_middle):
    """A step between others that differs from them for large gradients alone."""

    def update(m, state, grads, params, step):
        bound = 0.1 if is_middle(step) else 100.0
        return {k: 0.5 * g.clamp(-bound, bound) for k, g in grads.items()}, state

    return Rule(update)


def of_biases():
    """A rule that moves nothing else."""

    def update(m, state, grads, params, step):
        return {name: 0.1 * g for name, g in grads.items() if name.endswith("bias")}, state

    return Rule(update)


def maml(rule=None, module=net, **options):
    return lambda steps: headstart.maml(module(), steps=steps, rule=rule and rule(), taskmap="vmap", **options)


def elsewhere():
    """Keep states as copies, without history and layout."""

    def keep(inner):
        copies = mapped(lambda value: value.detach().clone(memory_format=torch.contiguous_format), inner)
        return lambda: copies

    return keep


LEARNERS = {
    "maml": maml(),
    "anil": lambda steps: headstart.anil(net(), steps=steps),
    "meta_curvature": lambda steps: headstart.meta_curvature(net(), steps=steps),
    "fomaml": lambda steps: headstart.fomaml(net(), steps=steps),
    "truncated": maml(adjoint=headstart.Truncated(2)),
    "checkpointed": maml(adjoint=headstart.Checkpointed()),
    "kept elsewhere": maml(module=images, rate=0.1, adjoint=headstart.Checkpointed(every=1, place=elsewhere)),
    "little memory": maml(adjoint=headstart.Checkpointed(memory=20_000)),
    "imaml": lambda steps: headstart.imaml(net(), steps=steps, rate=0.1),
    "alfa": lambda steps: headstart.alfa(net(), steps=steps),
    "adam": maml(lambda: rules.chain(rules.adam(), rules.scale(0.1))),
    "per_tensor": maml(lambda: rules.per_tensor(0.1, steps=3)),
    "statistics": maml(module=images, rate=0.1, buffers="task"),
    "dropout": maml(module=dropping),
    "biases": maml(of_biases, module=images),
}
SHAPES = dict.fromkeys(("statistics", "kept elsewhere", "biases"), (1, 4, 4))


def problem(name, steps):
    torch.manual_seed(0)
    learner = LEARNERS[name](steps)
    episodes = random_episodes(SHAPES.get(name, (4,)))
    if name == "dropout":
        episodes = headstart.Episodes(*(batch._replace(seed=torch.arange(3) + 5) for batch in episodes))
    return learner, learner.init(torch.Generator().manual_seed(0)), episodes


def recorded_once(learner, meta, episodes):
    """Return the learner with a record that holds a step once, after checking that it has the bits of the steps."""
    recording = learner._replace(gradient=Recorded(SOON))
    expected = in_steps(learner, meta, episodes)
    for _ in range(2):
        assert differing(headstart.meta_gradient(recording, meta, episodes), expected, 0.0) == ""
    (program,) = recording.gradient.programs.values()
    assert program.steps
    return recording


@pytest.mark.parametrize("name", LEARNERS)
def test_a_record_holds_a_step_once_and_has_the_bits_of_the_steps(name):
    recorded_once(*problem(name, 5))


def test_a_record_does_not_grow_with_the_steps():
    two, many = (recorded(*problem("per_tensor", steps)) for steps in (2, 40))
    assert two.operations == many.operations


@pytest.mark.parametrize("label", [None, 7])
def test_of_ragged_tasks_a_step_is_recorded_once_and_labels_that_count_are_checked(label):
    learner = maml(adjoint=headstart.Checkpointed())(5)
    meta, (support, query) = learner.init(None), random_episodes((4,))
    mask = torch.ones(support.y.shape, dtype=torch.bool)
    mask[0, -1] = False
    y = support.y.clone()
    y[0, -1] = 99  # nobody's label
    episodes = headstart.Episodes(support._replace(y=y, mask=mask), query)
    recording = recorded_once(learner, meta, episodes)
    if label is not None:
        y[1, -1] = label
        with pytest.raises(ShapeError, match="labels go from 0 to 7, but the model has 3 outputs"):
            headstart.meta_gradient(recording, meta, episodes)


@pytest.mark.parametrize("name", LEARNERS)
def test_going_back_step_by_step_is_exact(name):
    learner, meta, episodes = problem(name, 4)
    assert differing(in_steps(learner, meta, episodes), backprop(learner, meta, episodes), 1e-12) == ""


def test_what_python_does_with_the_number_of_a_step_is_recorded_step_by_step():
    learner = maml(tabled)(5)
    meta, episodes = learner.init(None), random_episodes((4,))
    program = recorded(learner, meta, episodes)
    assert not program.steps
    recording = learner._replace(gradient=Recorded(SOON))
    for _ in range(2):
        got = headstart.meta_gradient(recording, meta, episodes)
        assert differing(got, backprop(learner, meta, episodes), 1e-12) == ""


@pytest.mark.parametrize(
    "is_middle",
    [lambda step: step == 1, lambda step: step % 2, lambda step: step in {1, 2}, [0, 1, 1, 1, 0].__getitem__],
)
def test_what_differs_in_the_middle_of_a_loop_is_seen_where_it_does_not_differ_at_first(is_middle):
    learner = maml(lambda: by_number_of_the_middle(is_middle))(5)
    meta, episodes = learner.init(None), random_episodes((4,))
    recording = learner._replace(gradient=Recorded(SOON))
    for factor in (0.001, 10.0):
        scaled = headstart.Episodes(*(batch._replace(x=factor * batch.x) for batch in episodes))
        got = headstart.meta_gradient(recording, meta, scaled)
        assert differing(got, backprop(learner, meta, scaled), 1e-12) == ""
    (program,) = recording.gradient.programs.values()
    assert program is not None and not program.steps


class Writing(nn.Module):
    """Writes into what it is given through a view of it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = x.clone()
        x[..., 0] = x[..., 0].clamp(max=2.0)
        return self.head(x)


def test_a_step_that_writes_into_a_view_is_recorded_as_it_is():
    learner = maml(module=lambda: Writing().double(), rate=0.1)(3)
    meta, episodes = learner.init(None), random_episodes((4,))
    recording = learner._replace(gradient=Recorded(SOON))
    for factor in (0.1, 10.0):  # what is written is what was there, and is not
        scaled = headstart.Episodes(*(batch._replace(x=factor * batch.x) for batch in episodes))
        got = headstart.meta_gradient(recording, meta, scaled)
        assert differing(got, backprop(learner, meta, scaled), 1e-12) == ""
    assert all(recording.gradient.programs.values())


def differentiated_twice(learner, meta, episodes):
    """Losses that are weighted by how steep they are."""
    adapted, info = learner.adapt(meta, episodes.support)
    losses = query_losses(learner, adapted, episodes.query)
    slopes = torch.autograd.grad(losses.sum(), list(meta.params.values()), retain_graph=True)
    return losses / (1 + sum(slope.square().sum() for slope in slopes)), info._replace(query_loss=losses.detach())


def test_a_loop_is_differentiated_as_often_as_its_graph_is_retained():
    learner = maml()(3)._replace(objective=differentiated_twice)
    meta, episodes = learner.init(None), random_episodes((4,))
    expected = backprop(learner, meta, episodes)
    assert differing(in_steps(learner, meta, episodes), expected, 1e-12) == ""
    recording = learner._replace(gradient=Recorded(SOON))
    for _ in range(2):
        assert differing(headstart.meta_gradient(recording, meta, episodes), expected, 1e-12) == ""
    (program,) = recording.gradient.programs.values()
    assert program.steps


def test_a_loop_whose_graph_is_gone_is_told():
    learner, meta, episodes = problem("maml", 3)
    leaves = meta._replace(params={name: value.requires_grad_() for name, value in meta.params.items()})
    with step_by_step():
        loss, _ = meta_loss(learner, leaves, episodes)
    loss.backward(inputs=list(leaves.params.values()))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward(inputs=list(leaves.params.values()))


class Turning(nn.Module):
    """Complex weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4).double()
        self.turn = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))

    def forward(self, x):
        return (self.first(x).to(self.turn.dtype) @ self.turn).abs()


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("adjoint", [headstart.Unrolled(), headstart.Checkpointed(every=1)])
def test_complex_weights_have_derivatives(adjoint):
    torch.manual_seed(0)
    module, episodes = Turning(), random_episodes((4,))
    expected = maml(module=lambda: module)(3)
    meta = expected.init(None)
    learner = maml(module=lambda: module, adjoint=adjoint)(3)
    assert differing(in_steps(learner, meta, episodes), backprop(expected, meta, episodes), 1e-12) == ""


def test_long_loops_of_steps_of_their_own_are_not_recorded(caplog):
    learner = maml(tabled)(30)
    recording = learner._replace(gradient=Recorded(SOON))
    with caplog.at_level(logging.WARNING):
        headstart.meta_gradient(recording, learner.init(None), random_episodes((4,)))
    assert "operations, more than 2000" in caplog.text


def test_a_loop_counts_as_one_step():
    counts = [counted(*problem("maml", steps)) for steps in (2, 50)]
    assert counts[0] == counts[1]


def test_a_label_out_of_range_is_told_by_a_record_of_a_loop():
    learner, meta, episodes = problem("maml", 3)
    recording = learner._replace(gradient=Recorded(SOON))
    headstart.meta_gradient(recording, meta, episodes)
    wrong = episodes._replace(support=episodes.support._replace(y=episodes.support.y + 3))
    with pytest.raises(headstart.errors.ShapeError, match="labels"):
        headstart.meta_gradient(recording, meta, wrong)


def with_second_derivatives(learner, meta, episodes):
    """Losses with a penalty for how steep they are."""
    adapted, info = learner.adapt(meta, episodes.support)
    losses = query_losses(learner, adapted, episodes.query)
    slopes = torch.autograd.grad(losses.sum(), list(meta.params.values()), create_graph=True)
    return losses + sum(slope.square().sum() for slope in slopes), info._replace(query_loss=losses.detach())


def test_an_objective_may_take_second_derivatives():
    learner = maml()(3)._replace(objective=with_second_derivatives)
    meta, episodes = learner.init(None), random_episodes((4,))
    assert differing(in_steps(learner, meta, episodes), backprop(learner, meta, episodes), 0.0) == ""


def adapting_within(m, outputs, support, step, now):
    """The squares of outputs, and of those of what they are adapted to once more."""
    again = maml()(2)
    adapted, _ = again.adapt(Meta({name: value.mean(0) for name, value in now.params.items()}, {}), support)
    return outputs.square().mean((1, 2)) + again.predict(adapted, support.x).square().mean((1, 2))


def test_a_step_may_hold_a_loop():
    learner = maml(inner_loss=InnerLoss(adapting_within, lambda params, generator: {}))(3)
    meta, episodes = learner.init(None), random_episodes((4,))
    with step_by_step():
        found = backprop(learner, meta, episodes)
    assert differing(found, backprop(learner, meta, episodes), 1e-12) == ""


def with_torch_func(learner, meta, episodes):
    """Losses and how steep they are, by function transforms."""

    def of(params):
        adapted, info = learner.adapt(Meta(params, meta.structure), episodes.support)
        losses = query_losses(learner, adapted, episodes.query)
        return losses.sum(), (losses, info._replace(query_loss=losses.detach()))

    slopes, (losses, info) = torch.func.grad(of, has_aux=True)(meta.params)
    return losses + sum(slope.square().sum() for slope in slopes.values()), info


def test_an_objective_may_transform_the_function_of_a_loop():
    learner = maml()(3)._replace(objective=with_torch_func)
    meta, episodes = learner.init(None), random_episodes((4,))
    assert differing(in_steps(learner, meta, episodes), backprop(learner, meta, episodes), 0.0) == ""


def test_second_derivatives_of_the_meta_gradient_are_refused_step_by_step():
    learner, meta, episodes = problem("maml", 3)
    leaves = meta._replace(params={name: value.requires_grad_() for name, value in meta.params.items()})
    with step_by_step():
        loss, _ = meta_loss(learner, leaves, episodes)
    with pytest.raises(DifferentiationError, match="first derivatives only"):
        torch.autograd.grad(loss, list(leaves.params.values()), create_graph=True)


def test_what_an_objective_hands_a_step_behind_its_back_has_its_derivative():
    plain, meta, episodes = problem("per_tensor", 3)
    key = next(iter(meta.structure))

    def objective(learner, meta, episodes):
        rate = meta.structure[key].mean()

        def update(m, state, grads, params, step):
            return {name: slope * rate for name, slope in grads.items()}, state

        own = headstart.maml(net(), steps=3, rule=Rule(update))
        adapted, info = own.adapt(meta._replace(structure={}), episodes.support)
        return own.loss(own.predict(adapted, episodes.query.x), episodes.query), info

    learner = plain._replace(objective=objective, penalty=None)
    expected = backprop(learner, meta, episodes)
    assert expected[0].structure[key].abs().max() > 0
    assert differing(in_steps(learner, meta, episodes), expected, 1e-12) == ""
    recording = learner._replace(gradient=Recorded(SOON))
    for _ in range(2):
        assert differing(headstart.meta_gradient(recording, meta, episodes), expected, 1e-12) == ""


def test_a_rule_that_rounds_the_number_of_a_step_is_recorded_step_by_step():
    def update(m, state, grads, params, step):
        return {name: slope * 0.9**step for name, slope in grads.items()}, state

    learner = headstart.maml(net(), steps=4, rule=Rule(update), taskmap="vmap")
    meta, episodes = learner.init(None), random_episodes((4,))
    recording = learner._replace(gradient=Recorded(SOON))
    for _ in range(2):
        found = headstart.meta_gradient(recording, meta, episodes)
    (program,) = recording.gradient.programs.values()
    assert program is not None and not program.steps
    assert differing(found, in_steps(learner, meta, episodes), 0.0) == ""
