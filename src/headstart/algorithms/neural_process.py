"""Neural processes: networks that read a support set and answer with a distribution, in one forward pass."""

import math
from collections.abc import Mapping
from math import sqrt
from typing import Annotated, NamedTuple, TypeAlias

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Generator, Tensor, nn

from headstart.algorithms.adaptation import uniform
from headstart.algorithms.evolution import normals
from headstart.algorithms.gaussians import marginal_loss, predictive
from headstart.core import losses
from headstart.core.losses import present
from headstart.core.objective import backprop
from headstart.core.tree import prefixed, within
from headstart.errors import ShapeError, UsageError
from headstart.forward.functional import Functional, functional
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.schema import Count, Size, extends
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Params, Tree

Depth: TypeAlias = Annotated[int, Ge(2), Le(100)]


class Sizes(NamedTuple):
    """What the networks are built for."""

    inputs: int
    outputs: int
    hidden: int
    depth: int
    """Linear layers of an encoder, at least 2; a decoder has one less and its last."""


def layers(inputs: int, hidden: int, depth: int, outputs: int | None = None) -> nn.Sequential:
    """Return ``depth`` linear layers with ReLU between them, the last of ``outputs`` units (``hidden`` by default)."""
    sizes = [inputs] + [hidden] * (depth - 1) + [hidden if outputs is None else outputs]
    stack: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        stack += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


class ExampleEncoder(nn.Module):
    """rᵢ = h(xᵢ, yᵢ) for each support example."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = layers(sizes.inputs + sizes.outputs, sizes.hidden, sizes.depth)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, hidden)`` for ``x`` ``(n, inputs)`` and ``y`` ``(n, outputs)``."""
        return self.layers(torch.cat((x, y), -1))


class SetEncoder(nn.Module):
    """r = mean of h(xᵢ, yᵢ) over the support examples."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.each = ExampleEncoder(sizes)

    def forward(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """Return ``(hidden,)``; ``there`` ``(n,)`` is 1 for an example, 0 for padding, which counts nowhere."""
        return (self.each(x, y) * there.unsqueeze(-1)).sum(-2) / there.sum().clamp(min=1)


class LatentEncoder(nn.Module):
    """The normal distribution of the latent variable given a set: z ~ N(μ(s), σ(s)²), s the mean of h(xᵢ, yᵢ).

    σ = 0.1 + 0.9 sigmoid(·), as in the authors' code.
    """

    def __init__(self, sizes: Sizes, latent: int) -> None:
        super().__init__()
        self.set = SetEncoder(sizes)
        middle = (sizes.hidden + latent) // 2
        self.head = nn.Sequential(nn.Linear(sizes.hidden, middle), nn.ReLU(), nn.Linear(middle, 2 * latent))

    def forward(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """Return ``(2, latent)``: the mean and the standard deviation."""
        mean, raw = self.head(self.set(x, y, there)).chunk(2, -1)
        return torch.stack((mean, 0.1 + 0.9 * raw.sigmoid()))


class CrossAttention(nn.Module):
    """Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) of queries to the support examples."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor) -> Tensor:
        """Return ``(m, width)`` for ``query`` ``(m, width)`` and ``key``, ``value`` ``(n, width)``.

        ``there`` ``(n,)`` is 1 for an example and 0 for padding, which gets no weight; where nothing is there, so is
        the answer.
        """
        heads = (self.query(query), self.key(key), self.value(value))
        asked, known, told = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in heads)
        scores = asked @ known.transpose(1, 2) / sqrt(asked.shape[-1])
        scores = scores.masked_fill(there < 0.5, torch.finfo(scores.dtype).min)
        return self.output(((scores.softmax(-1) * there) @ told).transpose(0, 1).flatten(1))


class Decoder(nn.Module):
    """What is known of a target at x: the mean and the raw spread of a normal distribution."""

    def __init__(self, sizes: Sizes, context: int) -> None:
        super().__init__()
        self.layers = layers(context + sizes.inputs, sizes.hidden, sizes.depth, 2 * sizes.outputs)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Return ``(…, m, 2 outputs)`` for a context ``(…, m or 1, context)`` and ``x`` ``(m, inputs)``."""
        shape = (*context.shape[:-2], len(x))
        return self.layers(torch.cat((context.expand(*shape, -1), x.expand(*shape, -1)), -1))


class Networks(NamedTuple):
    """Several modules as pure functions of one θ, in which each has its name for a prefix."""

    parts: dict[str, Functional]
    like: Tensor
    """An empty tensor of their type, on their device."""
    modules: dict[str, nn.Module]
    """Their structure, without weights."""

    def start(self, generator: Generator | None) -> Params:
        """Draw θ to start from."""
        weights: Params = {}
        for name, module in self.modules.items():
            weights |= prefixed(name, _drawn(module, self.like, generator))
        return weights

    def run(self, name: str, meta: Meta, *x: Tensor) -> Tensor:
        """Return the outputs of a module on B tasks."""
        return self.parts[name].apply(within(meta.params, name), {}, x)[0]


def _drawn(module: nn.Module, like: Tensor, generator: Generator | None) -> Params:
    """Return weights uniform in ±√(6 / (inputs + outputs of a layer)) (Glorot, Bengio 2010), and biases of 0.

    As in the authors' code; with the smaller weights of ``nn.Linear``, little of a support set reaches the targets.
    """
    weights: Params = {}
    for name, value in module.named_parameters():
        bound = math.sqrt(6 / sum(value.shape))
        weights[name] = like.new_zeros(value.shape) if value.ndim == 1 else uniform(value.shape, bound, like, generator)
    return weights


def networks(modules: Mapping[str, nn.Module], taskmap: TaskMapName | TaskMap, like: Tensor) -> Networks:
    """Return modules on the ``meta`` device as pure functions, of weights like ``like`` in type and place."""
    parts = {name: functional(module, taskmap=taskmap) for name, module in modules.items()}
    return Networks(parts, like, dict(modules))


def checked(sizes: Sizes, floor: float) -> Sizes:
    """Return the sizes, or raise `UsageError` where there is no such network."""
    if min(sizes) < 1 or sizes.depth < 2 or not 0 < floor < 1:
        raise UsageError(
            f"a neural process needs inputs, outputs and hidden of at least 1, a depth of at least 2 and a floor "
            f"between 0 and 1; got {', '.join(f'{name}={size}' for name, size in sizes._asdict().items())}, "
            f"floor={floor}"
        )
    return sizes


def examples(batch: Batch, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` ``(B, n, inputs)``, ``y`` ``(B, n, outputs)`` and 1 where there is such an example, ``(B, n)``."""
    batch = present(batch)
    y = batch.y
    if not y.is_floating_point() or tuple(y.shape[2:]) != (sizes.outputs,):
        raise ShapeError(
            f"a neural process of {sizes.outputs} target values needs floating targets (tasks, examples, "
            f"{sizes.outputs}); got y {tuple(y.shape)} of {y.dtype}"
        )
    return flat(batch.x, sizes), y, there(batch, y)


def flat(x: Tree, sizes: Sizes) -> Tensor:
    """Return inputs as vectors, ``(B, n, inputs)``."""
    if not isinstance(x, Tensor) or math.prod(x.shape[2:]) != sizes.inputs:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"a neural process of {sizes.inputs} inputs needs a tensor x (tasks, examples, *features) with as many "
            f"features; got {got}"
        )
    return x.flatten(2)


def there(batch: Batch, like: Tensor) -> Tensor:
    """Return 1 where there is such an example and 0 where not, ``(B, n)``."""
    return like.new_ones(batch.y.shape[:2]) if batch.mask is None else batch.mask.to(like.dtype)


def gaussian(raw: Tensor, floor: float) -> Gaussian:
    """Return what a decoder says: the mean, and σ² with σ = floor + (1 − floor) softplus(s)."""
    mean, spread = raw.chunk(2, -1)
    return Gaussian(mean, (floor + (1 - floor) * nn.functional.softplus(spread)).square())


def cnp(
    *,
    inputs: int,
    outputs: int = 1,
    hidden: Size = 128,
    depth: Depth = 4,
    floor: Annotated[float, Gt(0), Lt(1)] = 0.01,
    taskmap: TaskMapName | TaskMap = "vmap",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """The conditional neural process: a support set becomes one vector, from which every query is answered.

    r = mean of h(xᵢ, yᵢ) over the support set;  y | x ~ N(μ, σ²) with (μ, s) = g(r, x), σ = f + (1 − f) softplus(s).

    h and g are networks of ``depth`` layers with ReLU. The outer loop minimises −log N(y; μ, σ²) of the query set.
    In the paper the targets contain the support points too; here they are the query set alone.

    Args:
        inputs: number of values of one x; inputs of other shapes are flattened.
        outputs: number of target values of one y.
        hidden: units of a layer, and of the vector r that a support set becomes.
        depth: linear layers of the encoder h, and of the decoder g.
        floor: f, the least standard deviation, in units of y; the authors' code has 0.1, and less lets a well-known
            target be predicted with little noise.
        taskmap: how the tasks of a step go through the networks: at once (``"vmap"``), one by one (``"loop"``), or as
            is measured to be faster (``"auto"``: two runs may then differ in rounding).
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
    sizes = checked(Sizes(inputs, outputs, hidden, depth), floor)
    with torch.device("meta"):  # weights are drawn by `init`, so none are drawn here
        modules = {"encoder": SetEncoder(sizes), "decoder": Decoder(sizes, hidden)}
    made = networks(modules, taskmap, torch.empty(0, dtype=dtype, device=device))

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        x, y, known = examples(support, sizes)
        representation = made.run("encoder", meta, x, y, known)
        adapted = Adapted(meta, {"representation": representation}, {}, support.seed)
        return adapted, Info(representation.new_zeros(0, len(y)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        context = adapted.params["representation"].unsqueeze(1)
        return gaussian(made.run("decoder", adapted.meta, context, flat(x, sizes)), floor)

    return Learner(
        init=lambda generator=None: Meta(made.start(generator), {}),
        adapt=adapt,
        predict=lambda adapted, x: distribution(adapted, x).mean,
        loss=losses.mse,
        gradient=backprop,
        objective=predictive,
        distribution=distribution,
    )


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
    floor: Annotated[float, Gt(0), Lt(1)] = 0.01,
    taskmap: TaskMapName | TaskMap = "vmap",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """The attentive neural process: queries attend to the support examples, and a latent variable draws the function.

    - deterministic path: rᵢ = h(xᵢ, yᵢ); r(x) = multi-head attention from k(x) to the pairs (k(xᵢ), rᵢ);
    - latent path: z ~ q(z | S) = N(μ(s), σ(s)²), s the mean over S of another h;
    - y | x, z ~ N(μ, σ²), (μ, s) = g(r(x), z, x), σ = f + (1 − f) softplus(s).

    The outer loop minimises, for each query value, the negative of the bound

        E_{z ~ q(z | S ∪ Q)} log p(y_Q | x_Q, r, z) − KL(q(z | S ∪ Q) ‖ q(z | S))

    with one draw of z a task, by its seed (`Batch.seed`). The likelihood is of the query set alone, as in the bound of
    Garnelo et al. 2018 (arXiv:1807.01622); the paper's authors count the support set too. As in their code for curves,
    there is no self-attention among the support examples.

    The distribution that is predicted is a mixture over z ~ q(z | S); it is given by the normal of its mean and
    variance, over ``draws`` draws: by the seed of the support set, or where it has none, the same for every task.

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
    sizes = checked(Sizes(inputs, outputs, hidden, depth), floor)
    length = hidden if latent is None else latent
    if heads < 1 or hidden % heads or length < 1 or draws < 1:
        raise UsageError(
            f"anp needs heads that divide hidden, a latent of at least 1 and at least 1 draw; got heads={heads}, "
            f"hidden={hidden}, latent={latent}, draws={draws}"
        )
    with torch.device("meta"):
        modules = {
            "encoder": ExampleEncoder(sizes),
            "latent": LatentEncoder(sizes, length),
            "key": layers(inputs, hidden, 2),
            "attention": CrossAttention(hidden, heads),
            "decoder": Decoder(sizes, hidden + length),
        }
    own = _Attentive(networks(modules, taskmap, torch.empty(0, dtype=dtype, device=device)), sizes, draws, floor)
    return Learner(
        init=lambda generator=None: Meta(own.networks.start(generator), {}),
        adapt=own.adapt,
        predict=lambda adapted, x: own.distribution(adapted, x).mean,
        loss=losses.mse,
        gradient=backprop,
        objective=own.objective,
        distribution=own.distribution,
    )


class _Attentive(NamedTuple):
    """The functions of `anp`."""

    networks: Networks
    sizes: Sizes
    draws: int
    floor: float

    def adapt(self, meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        x, y, known = _without_padding(examples(support, self.sizes), support.mask)
        found = {
            "key": self.networks.run("key", meta, x),
            "value": self.networks.run("encoder", meta, x, y),
            "there": known,
            "latent": self.networks.run("latent", meta, x, y, known),
        }
        return Adapted(meta, found, {}, support.seed), Info(y.new_zeros(0, len(y)))

    def decoded(self, adapted: Adapted, x: Tree, z: Tensor) -> Gaussian:
        """Return the distributions ``(B, draws, n, outputs)`` for each of the draws ``z`` ``(B, draws, latent)``."""
        meta, own, x = adapted.meta, adapted.params, flat(x, self.sizes)
        asked = self.networks.run("key", meta, x)
        attended = self.networks.run("attention", meta, asked, own["key"], own["value"], own["there"])
        shape = (*z.shape[:2], x.shape[1], -1)
        context = torch.cat((attended.unsqueeze(1).expand(shape), z.unsqueeze(2).expand(shape)), -1)
        return gaussian(self.networks.run("decoder", meta, context, x), self.floor)

    def distribution(self, adapted: Adapted, x: Tree) -> Gaussian:
        mean, deviation = adapted.params["latent"].unbind(1)
        white = _white(adapted.seed, (len(mean), self.draws, mean.shape[1]), mean, stream=1)
        each = self.decoded(adapted, x, mean.unsqueeze(1) + deviation.unsqueeze(1) * white)
        # the mixture's variance: that of its parts, and that between them
        return Gaussian(each.mean.mean(1), each.variance.mean(1) + each.mean.var(1, correction=0))

    def objective(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        adapted, info = self.adapt(meta, episodes.support)
        query = present(episodes.query)
        support_and_query = zip(*(examples(batch, self.sizes) for batch in episodes))
        posterior = self.networks.run("latent", meta, *(torch.cat(parts, 1) for parts in support_and_query))
        mean, deviation = posterior.unbind(1)
        z = mean + deviation * _white(query.seed, tuple(mean.shape), mean, stream=0)
        drawn_once = Gaussian(*(part.squeeze(1) for part in self.decoded(adapted, query.x, z.unsqueeze(1))))
        nats = marginal_loss(drawn_once, query.y, query.mask)
        values = self.sizes.outputs * there(query, mean).sum(1).clamp(min=1)
        bound = nats + _divergence(posterior, adapted.params["latent"]) / values
        return bound, info._replace(query_loss=learner.loss(drawn_once.mean.detach(), query))


def _without_padding(parts: tuple[Tensor, ...], mask: Tensor | None) -> tuple[Tensor, ...]:
    """Return tensors ``(B, n, …)`` without the places in which no task has an example."""
    return parts if mask is None else tuple(part[:, mask.any(0)] for part in parts)


def _divergence(posterior: Tensor, prior: Tensor) -> Tensor:
    """Return KL(posterior ‖ prior) ``(B,)`` of normals given as ``(B, 2, latent)``, mean and standard deviation."""
    (mean, deviation), (other, width) = posterior.unbind(1), prior.unbind(1)
    ratio = deviation / width
    return 0.5 * (ratio.square() + ((mean - other) / width).square() - 1 - 2 * ratio.log()).sum(1)


def _white(seed: Tensor | None, shape: tuple[int, ...], like: Tensor, stream: int) -> Tensor:
    """Return standard normal numbers ``(B, …)`` that are functions of the task's seed (0 where there is none)."""
    own = torch.zeros(shape[0], dtype=torch.int64, device=like.device) if seed is None else seed
    # 0x6E70, "np": other numbers than dropout's
    drawn = normals(math.prod(shape[1:]), range(stream, stream + 1), own, (0x6E70, 0), torch.float64)
    return drawn.view(shape).to(like)
