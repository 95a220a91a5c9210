"""MAML for Keras models, and the methods that differ from it in one choice.

Lᵢ(θ) = loss on the query set Qᵢ of θᵢ, with θᵢ = the result of T steps θ ← θ − rule(∇ loss on the support set Sᵢ).
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from headstart.core.rules import Rule
from headstart.core.rules.rule import nothing_to_move
from headstart.errors import UsageError, check_known
from headstart.integrations.keras import losses, rules
from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.clones import adapted_model
from headstart.integrations.keras.forward import QUERY_DRAW, Buffers, Functional, dense, functional, names_of
from headstart.integrations.keras.inner import AdjointName, Inner, solve
from headstart.integrations.keras.learner import Gradient, Learner, backprop, tensors
from headstart.integrations.keras.task_map import TaskMap, TaskMapName
from headstart.schema import extends
from headstart.types import Adapted, Batch, Episodes, Info, Meta


def maml(
    model: Any,
    *,
    loss: Any = "cross_entropy",
    loss_weights: Any = None,
    steps: int = 5,
    rate: float = 0.01,
    rule: Rule | None = None,
    adjoint: AdjointName = "unrolled",
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    training: bool = True,
    check: bool = True,
) -> Learner:
    """Learn initial weights θ from which ``steps`` gradient steps adapt to a task, and whatever M there is.

    ``θᵢ ← θᵢ − rate · ∇loss(θᵢ, Sᵢ)``, T times from θᵢ = θ; L(θ) = meanᵢ loss(θᵢ, Qᵢ), differentiated through the
    steps. M is what the rule learns. The model's own penalties (regularizers, ``add_loss``) are part of the loss that
    adaptation lowers.

    Args:
        model: a built ``keras.Model``; its trainable variables are θ. It is read, never changed.
        loss: ``"cross_entropy"`` (class ids and logits), ``"mse"``, or what Keras's ``compile`` takes; a list or dict
            of these for several outputs, added by ``loss_weights``.
        steps: T, the gradient steps of an adaptation.
        rate: the inner step size α, by which a task's loss, a mean over its examples, moves the weights.
        rule: the inner update, by default `headstart.integrations.keras.rules.scale` (rate), which it takes the place
            of.
        adjoint: how to differentiate through the steps: ``"unrolled"``, ``"checkpointed"`` (each step is computed again
            on the way back, so that memory hardly grows with them) or ``"first_order"`` (inner gradients as constants).
        taskmap: how the tasks of a step go through the model: at once (``"vectorized"``), one by one (``"loop"``), one
            by one in a loop of the graph (``"while"``), or at once where all of its operations can be, and else one by
            one (``"auto"``).
        buffers: what `BatchNormalization` goes by: the batch at hand (``"batch"``: the query set by its own
            statistics, as in the paper), the model's moving statistics (``"frozen"``), or those of each task's support
            set (``"task"``), kept with the layer's own ``momentum``: 0 for those of the support set alone.
        training: whether meta-training runs the model in training mode, in which dropout drops; `evaluate` and `adapt`
            run it in evaluation mode always.
        check: whether to refuse layers whose second derivatives are not right; without a check, derivatives are those
            of the operations as they are.

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400.
    """
    check_known("adjoint", adjoint, get_args(AdjointName))
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise UsageError(f"steps is a whole number from 0 up, got {steps!r}")
    looked = check and adjoint != "first_order"
    how: dict[str, Any] = {"taskmap": taskmap, "buffers": buffers, "training": training}
    function = functional(model, **how, check=looked, masked=not check)
    inner_rule = rules.scale(rate) if rule is None else rule
    leaves = function.leaves
    moving = inner_rule.moves(leaves)
    if not moving:
        raise nothing_to_move(leaves)
    made = Adaptation(function, moving, inner_rule, losses.resolve(loss, loss_weights), adjoint, steps)
    return Learner(
        made.init, made.adapt, made.predict, made.task_loss, backprop, made.to_model, made.look, steps, made.shown
    )


class Adaptation:
    """Adaptation by gradient steps: the functions of every learner that `maml` makes."""

    def __init__(
        self, model: Functional, moving: frozenset[str], rule: Rule, loss: losses.TaskLoss, adjoint: Any, steps: int
    ) -> None:
        self.model, self.moving, self.rule, self.adjoint, self.steps = model, moving, rule, adjoint, steps
        self.loss = loss

    def init(self, seed: int = 0) -> Meta:
        """Return θ, the model's variables as they are, and M to start from."""
        params = self.model.params
        moved = {name: variable for name, variable in params.items() if name in self.moving}
        random: Any = np.random.default_rng(seed)  # where PyTorch has a generator of its own
        made = self.rule.structure(moved, random)
        dtype = next(iter(params.values())).dtype
        structure = {name: tf.constant(np.asarray(value), dtype) for name, value in made.items()}
        return Meta({name: tf.convert_to_tensor(variable) for name, variable in params.items()}, structure)

    def task_loss(self, outputs: Any, batch: Batch) -> Any:
        """Return one loss a task ``(B,)``; padding is refused where it would go into statistics."""
        if batch.mask is not None and (where := self.model.batch_statistics):
            raise UsageError(
                f"tasks have different numbers of examples, and the layer at {where!r} normalises by all of them, "
                "padding included; use LayerNormalization or GroupNormalization, buffers='frozen', or as many examples "
                "in every task"
            )
        return self.loss(outputs, batch)

    def adapt(self, meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        """Take ``steps`` inner steps, by default the learner's own number."""
        model, steps = self.model, self.steps if steps is None else steps
        support = tensors(support)
        if self.adjoint != "first_order" and steps:
            model.certify(support.x)
        if support.mask is not None and steps and (where := model.example_penalties(support.x)):
            raise UsageError(
                f"tasks have different numbers of examples, and the layer at {where!r} adds a penalty for them "
                "(activity_regularizer, add_loss), which would go by padding, too; make it a part of the loss, or give "
                "every task as many examples"
            )
        tasks = tf.shape(tf.nest.flatten(support.y)[0])[0]
        static = tf.nest.flatten(support.y)[0].shape[0]
        own = {name: _expanded(value, tasks, static) for name, value in meta.params.items() if name in self.moving}
        statistics = {name: _expanded(tf.convert_to_tensor(v), tasks, static) for name, v in model.own.items()}
        shared = {name: value for name, value in meta.params.items() if name not in self.moving}
        fixed = model.constants()

        def support_loss(given: Mapping[str, Any], moved: Any, statistics: Any, step: Any) -> tuple[Any, Any]:
            weights = {**{name: given[f"shared.{name}"] for name in shared}, **moved}
            outputs, after, penalty = model.apply(
                weights, statistics, support.x, fixed=fixed, seed=support.seed, draw=step
            )
            return self.task_loss(outputs, support) + penalty, after

        given = {**meta.structure, **{f"shared.{name}": value for name, value in shared.items()}}
        start = Inner(own, self.rule.state(meta.structure, own, support), statistics)
        inner, before = solve(support_loss, given, start, self.rule, steps, self.adjoint)
        if before is None:
            before = tf.zeros([0, static or 1], next(iter(own.values())).dtype)
        return Adapted(meta, inner.params, inner.statistics, support.seed, steps), Info(before)

    def predict(self, adapted: Adapted, x: Any) -> Any:
        """Return the adapted models' outputs."""
        weights = {**adapted.meta.params, **adapted.params}
        x = dense(x, "inputs")
        return self.model.apply(weights, adapted.buffers, x, seed=adapted.seed, draw=QUERY_DRAW, phase="query")[0]

    def look(self, episodes: Episodes) -> None:
        """Stop at labels that are no classes."""
        for batch in map(tensors, episodes):
            self.loss(self.model.blank(batch.x), batch)

    def shown(self, meta: Meta) -> dict[str, Any]:
        """Return M in the units in which it acts."""
        return dict(self.rule.shown(meta.structure))

    def to_model(self, adapted: Adapted, x: Any) -> Any:
        """Return an ordinary Keras model with the weights of the one task that was adapted to."""
        return adapted_model(self.model, {**adapted.meta.params, **adapted.params}, adapted.buffers, x)


def _expanded(value: Any, tasks: Any, static: int | None) -> Any:
    """Return ``value`` for each task, ``(B, *shape)``."""
    made = tf.tile(value[None], tf.concat([[tasks], tf.ones([len(value.shape)], tf.int32)], 0))
    return tf.ensure_shape(made, [static, *value.shape])


@extends(maml, without=("adjoint",))
def fomaml(model: Any, **options: Any) -> Learner:
    """First-order MAML: `maml` with the inner gradients taken as constants.

    Reference: Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.2.
    """
    return maml(model, adjoint="first_order", **options)


@extends(maml, without=("rule",))
def anil(model: Any, *, head: str | None = None, rate: float = 0.01, **options: Any) -> Learner:
    """Almost no inner loop: `maml` whose inner loop moves the ``head`` only.

    Args:
        head: which variables are the head, by name (such as ``"dense_2"``); by default those of the last layer.
        rate: the inner step size.
        options: those of `maml`.

    Reference: Raghu, Raghu, Bengio, Vinyals 2019, arXiv:1909.09157.
    """
    return maml(model, rule=rules.chain(rules.only(head or head_of(model)), rules.scale(rate)), **options)


@extends(maml, without=("rule",))
def boil(model: Any, *, head: str | None = None, rate: float = 0.01, **options: Any) -> Learner:
    """Body only inner loop: `maml` whose inner loop moves everything but the ``head``.

    Args:
        head: which variables are the head, by name (such as ``"dense_2"``); by default those of the last layer.
        rate: the inner step size.
        options: those of `maml`.

    Reference: Oh, Yoo, Kim, Yun 2020, arXiv:2008.08882.
    """
    return maml(model, rule=rules.chain(rules.exclude(head or head_of(model)), rules.scale(rate)), **options)


@extends(maml, without=("rule",))
def meta_sgd(model: Any, *, rate: float | tuple[float, float] = (0.005, 0.1), **options: Any) -> Learner:
    """Meta-SGD: `maml` with a learned step size for every weight, θᵢ = θ − α ∘ ∇loss(θ, Sᵢ); M = α.

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        options: those of `maml`.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (one inner step there; ``steps`` says how many here).
    """
    return maml(model, rule=rules.per_weight(rate), **options)


@extends(maml, without=("adjoint",))
def reptile(model: Any, *, steps: int = 5, rate: float = 0.001, rule: Rule | None = None, **options: Any) -> Learner:
    """Move θ towards the weights that each task adapts to: θ ← θ + ε · meanᵢ (θᵢ − θ).

    Support and query examples are all adapted to. The outer step size ε is the outer optimiser's (plain SGD in the
    paper, with ε falling linearly to 0).

    Args:
        steps: the inner steps of an adaptation, each on all examples of the task.
        rate: the inner step size, of Adam unless ``rule`` is given.
        rule: the inner update; by default Adam without momentum (β₁ = 0), as in the paper.
        options: those of `maml`.

    Reference: Nichol, Achiam, Schulman 2018, arXiv:1803.02999.
    """
    inner_rule = rules.chain(rules.adam(decay=0.0), rules.scale(rate)) if rule is None else rule
    learner = maml(model, steps=steps, rule=inner_rule, adjoint="first_order", **options)
    return learner._replace(gradient=_moved)


def _moved(learner: Learner, meta: Meta, episodes: Episodes) -> Gradient:
    """Return θ − meanᵢ θᵢ in place of a gradient."""
    adapted, info = learner.adapt(meta, joined(episodes))
    query = tensors(episodes.query)
    outputs = learner.predict(adapted, query.x)
    info = info._replace(query_loss=learner.loss(outputs, query))
    moved = {name: meta.params[name] - tf.reduce_mean(value, 0) for name, value in adapted.params.items()}
    zeros = tf.nest.map_structure(tf.zeros_like, meta)
    return Gradient(Meta({**zeros.params, **moved}, zeros.structure), info, outputs)


def joined(episodes: Episodes) -> Batch:
    """Return support and query examples as one batch."""
    support, query = map(tensors, episodes)
    x, y = tf.nest.map_structure(lambda a, b: tf.concat([a, b], 1), (support.x, support.y), (query.x, query.y))
    if support.mask is None and query.mask is None:
        return Batch(x, y, None, support.seed)
    masks = (tf.ones_like(b.y, tf.bool) if b.mask is None else b.mask for b in (support, query))
    return Batch(x, y, tf.concat([*masks], 1), support.seed)


def head_of(model: Any) -> str:
    """Return the name of the model's head: the layer ``head``, else the last one with variables of its own.

    Raises:
        UsageError: nothing stands before it.
    """
    names = names_of(model, model.trainable_variables)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    if len(layers) < 2:
        raise UsageError(
            f"{model.name!r} has no head apart from its body: it would be the last layer with trainable variables, "
            "behind others; name the variables with head="
        )
    return "head" if "head" in layers else layers[-1]
