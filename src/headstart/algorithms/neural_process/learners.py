"""Neural processes: networks that read a support set and answer with a distribution, in one forward pass."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.algorithms.gaussians import marginal_loss
from headstart.algorithms.neural_process.networks import (
    CrossAttention,
    Decoder,
    ExampleEncoder,
    LatentEncoder,
    SetEncoder,
    Sizes,
    layers,
)
from headstart.algorithms.neural_process.parts import Networks, checked, examples, flat, gaussian, networks, there
from headstart.core import losses
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.core.philox import WORD, philox
from headstart.errors import UsageError
from headstart.forward.task_map import TaskMap
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Tree


def cnp(
    *,
    inputs: int,
    outputs: int = 1,
    hidden: int = 128,
    depth: int = 4,
    floor: float = 0.01,
    taskmap: str | TaskMap = "vmap",
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
        hidden: units of a layer, and of r.
        depth: linear layers of h, and of g; at least 2.
        floor: f, the least standard deviation, in units of y. The authors' code has 0.1; less lets a
            well-known target be predicted with little noise.
        taskmap: ``"vmap"`` (these networks always can), ``"loop"`` or ``"auto"``.
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

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        adapted, info = adapt(meta, episodes.support)
        query = present(episodes.query)
        found = distribution(adapted, query.x)
        errors = learner.loss(found.mean.detach(), query)
        return marginal_loss(found, query.y, query.mask), info._replace(query_loss=errors)

    return Learner(
        init=lambda generator=None: Meta(made.start(generator), {}),
        adapt=adapt,
        predict=lambda adapted, x: distribution(adapted, x).mean,
        loss=losses.mse,
        gradient=backprop,
        objective=objective,
        distribution=distribution,
    )


def anp(
    *,
    inputs: int,
    outputs: int = 1,
    hidden: int = 128,
    depth: int = 4,
    heads: int = 8,
    latent: int | None = None,
    draws: int = 8,
    floor: float = 0.01,
    taskmap: str | TaskMap = "vmap",
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
        inputs, outputs, hidden, floor, taskmap, device, dtype: as for `cnp`.
        depth: linear layers of each h, and of g; k has 2.
        heads: of the attention; they divide ``hidden``.
        latent: the length of z; ``hidden`` by default.
        draws: of z, in a prediction.

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
    size = math.prod(shape[1:])
    own = torch.zeros(shape[0], dtype=torch.int64, device=like.device) if seed is None else seed
    lane = torch.arange(-(-size // 4), device=like.device).expand(shape[0], -1)
    low, high = (half.unsqueeze(1) + 0 * lane for half in (own & WORD, (own >> 32) & WORD))
    # 0x6E70, "np": other numbers than dropout's
    words = torch.stack(philox((lane, torch.full_like(lane, stream), low, high), (0x6E70, 0)))
    radius, angle = ((words[part].to(like.dtype) + 0.5) * 2.0**-32 for part in (slice(0, 2), slice(2, 4)))
    radius, angle = torch.sqrt(-2 * radius.log()), 2 * math.pi * angle
    both = torch.cat((radius * angle.cos(), radius * angle.sin()))
    return both.permute(1, 2, 0).flatten(1)[:, :size].reshape(shape)
