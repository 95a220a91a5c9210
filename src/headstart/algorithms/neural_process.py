"""Neural processes: networks that read a support set and answer with a distribution, in one forward pass."""

from math import prod, sqrt
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Generator, Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call

from headstart.algorithms import gaussians
from headstart.algorithms.adaptation import uniform
from headstart.algorithms.evolution import normals
from headstart.core.losses import present, there
from headstart.core.tree import within
from headstart.errors import ShapeError, UsageError
from headstart.schema import Count, Size, extends
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Params, Tree

Depth: TypeAlias = Annotated[int, Ge(2), Le(100)]
Floor: TypeAlias = Annotated[float, Gt(0), Lt(1)]


def layers(inputs: int, hidden: int, depth: int, outputs: int | None = None) -> nn.Sequential:
    """Return ``depth`` linear layers with ReLU between them, the last of ``outputs`` units (``hidden`` by default)."""
    sizes = [inputs] + [hidden] * (depth - 1) + [hidden if outputs is None else outputs]
    stack: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        stack += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


class CrossAttention(nn.Module):
    """Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) of queries to the support examples."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor) -> Tensor:
        """Return ``(…, m, width)`` for ``query`` ``(…, m, width)`` and ``key``, ``value`` ``(…, n, width)``.

        ``there`` ``(…, n)`` is 0 for padding, which gets no weight; where nothing is there, the answer is 0.
        """
        heads = (self.query(query), self.key(key), self.value(value))
        asked, known, told = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in heads)
        there = there[..., None, None, :]
        scores = (asked @ known.mT / sqrt(asked.shape[-1])).masked_fill(there < 0.5, torch.finfo(asked.dtype).min)
        return self.output(((scores.softmax(-1) * there) @ told).transpose(-3, -2).flatten(-2))


class Process(NamedTuple):
    """What both processes are made of: networks as functions of one θ, in which each has its name for a prefix."""

    inputs: int
    outputs: int
    floor: float
    networks: dict[str, nn.Module]
    """Without weights."""
    like: Tensor
    """An empty tensor of the weights' type, on their device."""

    def init(self, generator: Generator | None = None) -> Meta:
        """Draw weights uniform in ±√(6 / (inputs + outputs of a layer)) (Glorot, Bengio 2010), and biases of 0.

        As in the authors' code; with the smaller weights of ``nn.Linear``, little of a support set reaches the targets.
        """
        weights: Params = {}
        for part, network in self.networks.items():
            for name, value in network.named_parameters(prefix=part):
                if value.ndim == 1:
                    weights[name] = self.like.new_zeros(value.shape)
                else:
                    weights[name] = uniform(value.shape, sqrt(6 / sum(value.shape)), self.like, generator)
        return Meta(weights, {})

    def run(self, part: str, meta: Meta, *x: Tensor) -> Tensor:
        """Return the outputs of a network."""
        return functional_call(self.networks[part], within(meta.params, part), x)

    def examples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return ``[x, y]`` ``(B, n, inputs + outputs)`` and 1 where there is such an example, 0 else, ``(B, n)``."""
        x, y, _, _ = present(batch)
        if not y.is_floating_point() or tuple(y.shape[2:]) != (self.outputs,):
            raise ShapeError(
                f"a neural process of {self.outputs} target values needs floating targets (tasks, examples, "
                f"{self.outputs}); got y {tuple(y.shape)} of {y.dtype}"
            )
        return torch.cat((self.flat(x), y), -1), there(batch).to(y)

    def flat(self, x: Tree) -> Tensor:
        """Return inputs as vectors, ``(B, n, inputs)``."""
        if not isinstance(x, Tensor) or prod(x.shape[2:]) != self.inputs:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"a neural process of {self.inputs} inputs needs a tensor x (tasks, examples, *features) with as many "
                f"features; got {got}"
            )
        return x.flatten(2)

    def decoded(self, meta: Meta, *parts: Tensor) -> Gaussian:
        """Return N(μ, σ²) for what is known of targets, in parts that are broadcast: σ = f + (1 − f) softplus(s)."""
        shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        raw = self.run("decoder", meta, torch.cat([part.expand(*shape, -1) for part in parts], -1))
        mean, spread = raw.chunk(2, -1)
        return Gaussian(mean, (self.floor + (1 - self.floor) * nn.functional.softplus(spread)).square())


def _require(inputs: int, outputs: int, hidden: int, depth: int, floor: float) -> None:
    if min(inputs, outputs, hidden) < 1 or depth < 2 or not 0 < floor < 1:
        raise UsageError(
            f"a neural process needs inputs, outputs and hidden of at least 1, a depth of at least 2 and a floor "
            f"between 0 and 1; got inputs={inputs}, outputs={outputs}, hidden={hidden}, depth={depth}, floor={floor}"
        )


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Return the mean of ``(B, n, d)`` over the examples that are there, ``(B, d)``."""
    return (values * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


def cnp(
    *,
    inputs: int,
    outputs: int = 1,
    hidden: Size = 128,
    depth: Depth = 4,
    floor: Floor = 0.01,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """The conditional neural process: a support set becomes one vector, from which every query is answered.

    r = mean of h(xᵢ, yᵢ) over the support set;  y | x ~ N(μ, σ²) with (μ, s) = g(r, x), σ = f + (1 − f) softplus(s).

    h and g are networks of ``depth`` layers with ReLU. The outer loop minimises −log N(y; μ, σ²) of the query set; in
    the paper, of the support points too.

    Args:
        inputs: number of values of one x; inputs of other shapes are flattened.
        outputs: number of target values of one y.
        hidden: units of a layer, and of the vector r that a support set becomes.
        depth: linear layers of the encoder h, and of the decoder g.
        floor: f, the least standard deviation, in units of y; the authors' code has 0.1.
        device: where the weights are put.
        dtype: their type.

    Raises:
        UsageError: a size below 1, fewer than 2 layers, or a floor outside (0, 1).

    Reference: Garnelo et al. 2018, arXiv:1807.01613.

    >>> from headstart.data.curves.gp_curves import gp_curves
    >>> learner, episodes = cnp(inputs=1), gp_curves().sample("test", range(4))
    >>> adapted, _ = learner.adapt(learner.init(None), episodes.support)
    >>> learner.distribution(adapted, episodes.query.x).variance.shape
    torch.Size([4, 50, 1])
    """
    _require(inputs, outputs, hidden, depth, floor)
    with torch.device("meta"):  # weights are drawn by `init`, so none are drawn here
        networks: dict[str, nn.Module] = {
            "encoder": layers(inputs + outputs, hidden, depth),
            "decoder": layers(hidden + inputs, hidden, depth, 2 * outputs),
        }
    made = Process(inputs, outputs, floor, networks, torch.empty(0, dtype=dtype, device=device))

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        pairs, there = made.examples(support)
        representation = _mean(made.run("encoder", meta, pairs), there)
        adapted = Adapted(meta, {"representation": representation}, {}, support.seed)
        return adapted, Info(pairs.new_zeros(0, len(pairs)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        return made.decoded(adapted.meta, adapted.params["representation"].unsqueeze(1), made.flat(x))

    return gaussians.regressor(made.init, adapt, distribution, gaussians.predictive)


@extends(cnp)
def anp(
    *,
    inputs: int,
    outputs: int = 1,
    hidden: Size = 128,
    depth: Depth = 4,
    heads: Count = 8,
    latent: Size | None = None,
    draws: Count = 8,
    floor: Floor = 0.01,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """The attentive neural process: queries attend to the support examples, and a latent variable draws the function.

    - deterministic path: rᵢ = h(xᵢ, yᵢ); r(x) = multi-head attention from k(x) to the pairs (k(xᵢ), rᵢ);
    - latent path: z ~ q(z | S) = N(μ(s), σ(s)²), s the mean over S of another h;
    - y | x, z ~ N(μ, σ²), (μ, s) = g(r(x), z, x), σ = f + (1 − f) softplus(s).

    The outer loop minimises, for each query value, the negative of the bound

        E_{z ~ q(z | S ∪ Q)} log p(y_Q | x_Q, r, z) − KL(q(z | S ∪ Q) ‖ q(z | S))

    with one draw of z a task, by its seed (`Batch.seed`). The likelihood is of the query set alone, as in Garnelo et
    al. 2018 (arXiv:1807.01622); the paper's authors count the support set too. As in their code for curves, there is
    no self-attention among the support examples.

    Predicted is the normal of the mean and variance of the mixture over z ~ q(z | S), of ``draws`` draws: by the seed
    of the support set, or where it has none, the same for every task.

    Args:
        inputs, outputs, dtype, device: those of `cnp`, like all that is not named here.
        depth: linear layers of each encoder h, and of the decoder g.
        heads: heads of the attention, which divide ``hidden``.
        latent: the length of the latent variable z; by default ``hidden``.
        draws: how often z is drawn for a prediction.

    Raises:
        UsageError: a size below 1, fewer than 2 layers, heads that do not divide ``hidden``, a floor outside (0, 1).

    Reference: Kim et al. 2019, arXiv:1901.05761.
    """
    _require(inputs, outputs, hidden, depth, floor)
    length = hidden if latent is None else latent
    if heads < 1 or hidden % heads or length < 1 or draws < 1:
        raise UsageError(
            f"anp needs heads that divide hidden, a latent of at least 1 and at least 1 draw; got heads={heads}, "
            f"hidden={hidden}, latent={latent}, draws={draws}"
        )
    middle = (hidden + length) // 2
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "encoder": layers(inputs + outputs, hidden, depth),
            "latent": layers(inputs + outputs, hidden, depth),
            "latent_head": nn.Sequential(nn.Linear(hidden, middle), nn.ReLU(), nn.Linear(middle, 2 * length)),
            "key": layers(inputs, hidden, 2),
            "attention": CrossAttention(hidden, heads),
            "decoder": layers(hidden + length + inputs, hidden, depth, 2 * outputs),
        }
    made = Process(inputs, outputs, floor, networks, torch.empty(0, dtype=dtype, device=device))

    def latent_of(meta: Meta, pairs: Tensor, there: Tensor) -> Tensor:
        """Return μ(s) and σ(s), ``(B, 2, latent)``; σ = 0.1 + 0.9 sigmoid(·), as in the authors' code."""
        s = _mean(made.run("latent", meta, pairs), there)
        mean, raw = made.run("latent_head", meta, s).chunk(2, -1)
        return torch.stack((mean, 0.1 + 0.9 * raw.sigmoid()), 1)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        pairs, there = made.examples(support)
        if support.mask is not None:  # attention is over the places in which some task has an example
            some = support.mask.any(0)
            pairs, there = pairs[:, some], there[:, some]
        found = {
            "key": made.run("key", meta, pairs[..., :inputs]),
            "value": made.run("encoder", meta, pairs),
            "there": there,
            "latent": latent_of(meta, pairs, there),
        }
        return Adapted(meta, found, {}, support.seed), Info(pairs.new_zeros(0, len(pairs)))

    def decoded(adapted: Adapted, x: Tree, z: Tensor) -> Gaussian:
        """Return the distributions ``(B, draws, n, outputs)`` for each of the draws ``z`` ``(B, draws, latent)``."""
        meta, own, x = adapted.meta, adapted.params, made.flat(x)
        asked = made.run("key", meta, x)
        attended = made.run("attention", meta, asked, own["key"], own["value"], own["there"])
        return made.decoded(meta, attended.unsqueeze(1), z.unsqueeze(2), x.unsqueeze(1))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        mean, deviation = adapted.params["latent"].unsqueeze(2).unbind(1)
        white = _white(adapted.seed, (len(mean), draws, length), mean, stream=1)
        each = decoded(adapted, x, mean + deviation * white)
        # the mixture's variance: that of its parts, and that between them
        return Gaussian(each.mean.mean(1), each.variance.mean(1) + each.mean.var(1, correction=0))

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        adapted, info = adapt(meta, episodes.support)
        query = present(episodes.query)
        both = zip(*(made.examples(batch) for batch in episodes))
        posterior = latent_of(meta, *(torch.cat(parts, 1) for parts in both))
        mean, deviation = posterior.unbind(1)
        z = mean + deviation * _white(query.seed, tuple(mean.shape), mean, stream=0)
        drawn_once = Gaussian(*(part.squeeze(1) for part in decoded(adapted, query.x, z.unsqueeze(1))))
        nats = gaussians.marginal_loss(drawn_once, query.y, query.mask)
        values = outputs * there(query).sum(1).clamp(min=1)
        wide, narrow = (Normal(*both.unbind(1), validate_args=False) for both in (adapted.params["latent"], posterior))
        bound = nats + kl_divergence(narrow, wide).sum(1) / values
        return bound, info._replace(query_loss=learner.loss(drawn_once.mean.detach(), query))

    return gaussians.regressor(made.init, adapt, distribution, objective)


def _white(seed: Tensor | None, shape: tuple[int, ...], like: Tensor, stream: int) -> Tensor:
    """Return standard normal numbers ``(B, …)`` that are functions of the task's seed (0 where there is none)."""
    own = torch.zeros(shape[0], dtype=torch.int64, device=like.device) if seed is None else seed
    # 0x6E70, "np": other numbers than dropout's
    drawn = normals(prod(shape[1:]), range(stream, stream + 1), own, (0x6E70, 0), torch.float64)
    return drawn.view(shape).to(like)
