"""The atoms that rules are chained of: step sizes, running averages, clipping, pulls, and learned linear maps.

Step sizes are one, or learned ones in M, by tensor, inner step and weight. With ``positive=True`` M holds the logarithm
of a rate, so that no outer step can turn its sign; it is then called ``log_rate`` where it would be ``rate``.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.rule import Rule, require_fraction, require_positive, stateless
from headstart.errors import UsageError
from headstart.types import Params, Tree


def scale(rate: float, *, learn: bool = False, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply by a step size: α g. With ``learn``, α is part of M as ``name``, kept ``positive`` if asked for."""
    require_positive("rate", rate)
    if not learn:
        return stateless(lambda m, grads, params: {k: rate * g for k, g in grads.items()})
    key = f"log_{name}" if positive else name

    def rate_of(m: Params) -> Tensor:
        return m[key].exp() if positive else m[key]

    def structure(params: Params, generator: Generator | None) -> Params:
        start = next(iter(params.values())).new_full((), rate)
        return {key: start.log() if positive else start}

    rule = stateless(lambda m, grads, params: {k: rate_of(m) * g for k, g in grads.items()})
    return rule._replace(structure=structure, shown=lambda m: {name: rate_of(m)})


def per_tensor(rate: float, *, steps: int | None = None, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each parameter tensor's gradient by its own learned step size, α_w g_w, or α_{w,t} g_w at step t.

    Args:
        rate: where every α starts, positive.
        steps: T: with it, every tensor has one α for each of the steps 0 … T − 1, ``(T,)`` in M (LSLR, as in MAML++);
            later steps go by the last one. Without it, one for all steps.
        positive: keep every α positive.
        name: of the part of M.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, for ``steps``.
    """
    require_positive("rate", rate)
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    shape = () if steps is None else (steps,)
    return _rated(lambda value, generator: value.new_full(shape, rate), positive, name, steps)


def per_weight(rate: float | tuple[float, float] = (0.005, 0.1), *, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each weight's gradient by its own learned step size, α ∘ g with α shaped like θ (Meta-SGD).

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        positive: keep every α positive (the paper's may change sign).
        name: of the part of M.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rate if isinstance(rate, tuple) else (rate, rate)
    require_positive("rate", low)
    if low > high:
        raise UsageError(f"rate goes from {low} to {high}; give the lower end first")

    def start(value: Tensor, generator: Generator | None) -> Tensor:
        if low == high:
            return torch.full_like(value, low)
        # drawn on the CPU, so that a seed means the same numbers on every device
        draw = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * draw).to(value)

    return _rated(start, positive, name)


def _rated(
    start: Callable[[Tensor, Generator | None], Tensor], positive: bool, name: str, steps: int | None = None
) -> Rule:
    """Return the rule of a learned rate, or one for each step, of each parameter, which starts at ``start`` of it."""
    key = f"log_{name}" if positive else name

    def rate_of(m: Params, parameter: str) -> Tensor:
        value = m[f"{key}.{parameter}"]
        return value.exp() if positive else value

    def structure(params: Params, generator: Generator | None) -> Params:
        rates = {f"{key}.{k}": start(value, generator) for k, value in params.items()}
        return {k: rate.log() for k, rate in rates.items()} if positive else rates

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        if steps is None:
            return {k: rate_of(m, k) * g for k, g in grads.items()}, state
        return {k: rate_of(m, k)[min(step, steps - 1)] * g for k, g in grads.items()}, state

    return Rule(
        update, structure=structure, shown=lambda m: {f"{name}.{k}": rate_of(m, k) for k in tree.within(m, key)}
    )


def momentum(decay: float = 0.9, *, nesterov: bool = False, learn: bool = False, name: str = "momentum") -> Rule:
    """Accumulate: v ← μ v + g, and step by v, or by g + μ v with Nesterov's look-ahead; equals torch.optim.SGD.

    Args:
        decay: μ, in [0, 1); where a learned one starts, in (0, 1).
        nesterov: whether to look ahead.
        learn: whether the outer loop learns μ; M then holds its logit, ``logit_momentum``, so that it stays in (0, 1).
        name: of the part of M.
    """
    require_fraction("decay", decay)
    if learn and decay == 0:
        raise UsageError("a learned decay must start above 0, since its logit would be infinite; got 0")

    def structure(params: Params, generator: Generator | None) -> Params:
        return {f"logit_{name}": next(iter(params.values())).new_tensor(decay).logit()} if learn else {}

    def shown(m: Params) -> Params:
        return {name: m[f"logit_{name}"].sigmoid()} if learn else {}

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        kept = shown(m).get(name, decay)
        state = {k: kept * state[k] + g for k, g in grads.items()}
        return ({k: g + kept * state[k] for k, g in grads.items()} if nesterov else state), state

    return Rule(update, lambda m, params, seed: tree.zeros_like(params), structure, shown=shown)


def adam(decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Normalise by running moments: m̂ / (√v̂ + ε); follow with `scale`. Equals torch.optim.Adam.

    The derivative of √v̂ at 0 is taken as 0, so that a weight without gradient does not make the meta-gradient NaN.

    Reference: Kingma, Ba 2014, arXiv:1412.6980.
    """
    require_fraction("decay", decay)
    require_fraction("square_decay", square_decay)
    require_positive("epsilon", epsilon)

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        first = {k: decay * state[0][k] + (1 - decay) * g for k, g in grads.items()}
        second = {k: square_decay * state[1][k] + (1 - square_decay) * g.square() for k, g in grads.items()}
        bias, square_bias = 1 - decay ** (step + 1), 1 - square_decay ** (step + 1)
        out = {k: (first[k] / bias) / (tree.safe_sqrt(second[k] / square_bias) + epsilon) for k in grads}
        return out, (first, second)

    return Rule(update, lambda m, params, seed: (tree.zeros_like(params), tree.zeros_like(params)))


def clip(*, value: float | None = None, norm: float | None = None) -> Rule:
    """Clip each element to [−value, value], or each task's whole gradient to Euclidean length ``norm``."""
    if (value is None) == (norm is None):
        raise UsageError(f"clip takes either value= or norm=, got value={value} and norm={norm}")
    if value is not None:
        require_positive("value", value)
        return stateless(lambda m, grads, params: {k: g.clamp(-value, value) for k, g in grads.items()})
    longest = float(norm or 0)
    require_positive("norm", longest)

    def shorten(m: Params, grads: Params, params: Params) -> Params:
        length = tree.per_task_norm(grads)
        factor = longest / length.clamp(min=longest)
        return {k: g * tree.over_tasks(factor, g) for k, g in grads.items()}

    return stateless(shorten)


def weight_decay(strength: float, *, learn: bool = False, name: str = "weight_decay") -> Rule:
    """Pull towards zero: g + λ θ; before `momentum` and `adam`, as in torch.optim.

    Args:
        strength: λ, positive; where the learned ones start.
        learn: whether the outer loop learns a λ_w for each parameter tensor; M then holds their logarithms
            (``log_weight_decay.<parameter>``).
        name: of the part of M.
    """
    return _pulled(strength, learn, name, lambda m, params, seed: {})


def proximal(strength: float, *, learn: bool = False, name: str = "proximal") -> Rule:
    """Pull towards where the task started: g + λ (θ_t − θ⁰), the gradient of the loss + λ/2 ‖θ_t − θ⁰‖², also for θ⁰.

    Args:
        strength: λ, positive; where the learned ones start.
        learn: whether the outer loop learns a λ_w for each parameter tensor; M then holds their logarithms
            (``log_proximal.<parameter>``).
        name: of the part of M.

    Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630, equation 3.
    """
    return _pulled(strength, learn, name, lambda m, params, seed: dict(params))


def _pulled(strength: float, learn: bool, name: str, start: Callable[[Params, Params, Tensor | None], Params]) -> Rule:
    """Return the rule that adds a pull by λ, or by each tensor's λ_w from M, towards where ``start`` says, or zero."""
    require_positive("strength", strength)
    pull = per_tensor(strength, positive=True, name=name) if learn else scale(strength)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        away = {k: params[k] - state[k] if state else params[k] for k in grads}
        pulled = pull.update(m, {}, away, params, step)[0]
        return {k: g + pulled[k] for k, g in grads.items()}, state

    return Rule(update, start, pull.structure, shown=pull.shown)


def generated_rates(
    rate: float, *, steps: int | None = None, decay: float = 0.0, hidden: int | None = None, name: str = "alfa"
) -> Rule:
    """Step by a learning rate and a weight decay of each parameter tensor that a network generates (ALFA's rule).

    ``θ_w ← β_w θ_w − α_w g_w`` with ``α_w = α⁰_w a_w``, ``β_w = 1 − λ⁰_w b_w``. The network is
    ``(a, b) = W₂ relu(W₁ τ + c₁) + c₂``, and τ holds the means over each of the L tensors of its gradient and of its
    weights, 2L numbers of each task at each step. It goes last in a chain.

    M holds the base values α⁰_w (``alfa.rate.<parameter>``) and λ⁰_w (``alfa.decay.<parameter>``), W₁ and c₁
    (``alfa.hidden.weight``, ``….bias``), W₂ and c₂ (``alfa.output.weight``, ``….bias``). W₂ starts at zero and c₂ at
    one, so that adaptation starts as gradient descent with ``rate`` and ``decay``; W₁ and c₁ are drawn uniformly in
    ±1/√(2L). The authors' code draws W₂ and c₂, too. β is one minus a decay, as there.

    Args:
        rate: where every α⁰ starts, positive.
        steps: T: with it, base values ``(T,)`` for each of the steps 0 … T − 1, as in the paper; later steps go by
            the last ones. Without it, one for all steps.
        decay: where every λ⁰ starts, in [0, 1): the part of a weight that a step takes away.
        hidden: the size of the hidden layer, by default 2L.
        name: of the part of M.

    Reference: Baik, Choi, Choi, Kim, Lee 2020, arXiv:2011.00209.
    """
    require_positive("rate", rate)
    require_fraction("decay", decay)
    for what, value in (("steps", steps), ("hidden", hidden)):
        if value is not None and value < 1:
            raise UsageError(f"{what} must be at least 1, got {value}")
    shape = () if steps is None else (steps,)

    def structure(params: Params, generator: Generator | None) -> Params:
        bases = {
            f"{name}.{part}.{key}": value.new_full(shape, start)
            for part, start in (("rate", rate), ("decay", decay))
            for key, value in params.items()
        }
        network = _network(2 * len(params), hidden or 2 * len(params), generator, next(iter(params.values())))
        return bases | tree.prefixed(name, network)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        # in alphabetical order, which no way of storing M can change
        names = sorted(grads)
        rates, decays = _generated(tree.within(m, name), [grads[k] for k in names], [params[k] for k in names])
        at = () if steps is None else (min(step, steps - 1),)

        def moved(key: str, rate: Tensor, decay: Tensor) -> Tensor:
            alpha, taken = m[f"{name}.rate.{key}"][at] * rate, m[f"{name}.decay.{key}"][at] * decay
            gradient, value = grads[key], params[key]
            return tree.over_tasks(alpha, gradient) * gradient + tree.over_tasks(taken, value) * value

        return {k: moved(k, rates[:, place], decays[:, place]) for place, k in enumerate(names)}, state

    def shown(m: Params) -> Params:
        return {k: v for k, v in m.items() if k.startswith((f"{name}.rate.", f"{name}.decay."))}

    return Rule(update, structure=structure, shown=shown)


def _network(size: int, hidden: int, generator: Generator | None, like: Tensor) -> Params:
    """Return a network from ``size`` numbers to as many, whose output is 1 whatever comes in."""

    def draw(*shape: int) -> Tensor:
        # drawn on the CPU, so that a seed means the same numbers on every device
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * uniform - 1) / size**0.5).to(like)

    return {
        "hidden.weight": draw(hidden, size),
        "hidden.bias": draw(hidden),
        "output.weight": like.new_zeros(size, hidden),
        "output.bias": like.new_ones(size),
    }


def _generated(network: Params, grads: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the multipliers of rates and of decays, each ``(B, L)``."""
    task = torch.stack([tensor.reshape(len(tensor), -1).mean(1) for tensor in (*grads, *values)], 1)
    inner = torch.relu(task @ network["hidden.weight"].T + network["hidden.bias"])
    rates, decays = (inner @ network["output.weight"].T + network["output.bias"]).chunk(2, 1)
    return rates, decays


def curvature(*, name: str = "curvature") -> Rule:
    """Transform each tensor's gradient by learned matrices along its axes: G ×₃ M_f ×₂ M_i ×₁ M_o (Meta-Curvature).

    A convolution's weight ``(out, in, *kernel)`` has an output factor M_o ``(out, out)``, an input factor M_i
    ``(in, in)`` and a filter factor M_f ``(d, d)`` with d the size of the kernel; a linear layer's ``(out, in)`` the
    first two; a vector, such as a bias, a diagonal. All start as identities, so that adaptation starts as without.

    Reference: Park, Oliva 2019, arXiv:1902.03356, their MC1.
    """

    def structure(params: Params, generator: Generator | None) -> Params:
        found: Params = {}
        for key, value in params.items():
            for factor, size in _factors(tuple(value.shape)).items():
                start = torch.ones(size) if factor == "diagonal" else torch.eye(size)
                found[f"{name}.{factor}.{key}"] = start.to(value)
        return found

    rule = stateless(lambda m, grads, params: {key: _curved(g, m, name, key) for key, g in grads.items()})
    return rule._replace(structure=structure, shown=lambda m: tree.prefixed(name, tree.within(m, name)))


def diagonal(*, name: str = "diagonal") -> Rule:
    """Multiply each weight's gradient by a learned positive number: a diagonal preconditioner, from the identity.

    M holds the logarithms (``log_diagonal.<parameter>``), so that every step goes downhill; a step size is to follow.
    """
    return per_weight(1.0, positive=True, name=name)


def kronecker(*, name: str = "kronecker") -> Rule:
    """Precondition each tensor's gradient by learned Kronecker factors: G → (A Aᵀ) G (B Bᵀ), from the identity.

    G is a tensor's gradient seen as a matrix ``(out, rest)``, A is ``(out, out)`` and B ``(rest, rest)``; a vector has
    a diagonal d and goes to d² ∘ g. Products with their own transposes are symmetric and positive semi-definite
    whatever the outer loop does to M, so a step never goes uphill. (`curvature` is not bound to that, and is smaller
    for convolutions: it splits ``rest`` into input and kernel.)

    M holds A, B and d as ``kronecker.output.<parameter>``, ``kronecker.input.…`` and ``kronecker.diagonal.…``.

    Reference: Martens, Grosse 2015, arXiv:1503.05671, for the structure (K-FAC). Here the outer loop learns the
    factors; they are not estimates of the Fisher matrix.
    """

    def structure(params: Params, generator: Generator | None) -> Params:
        found: Params = {}
        for key, value in params.items():
            if value.ndim < 2:
                found[f"{name}.diagonal.{key}"] = torch.ones_like(value)
            else:
                found[f"{name}.output.{key}"] = torch.eye(value.shape[0]).to(value)
                found[f"{name}.input.{key}"] = torch.eye(value[0].numel()).to(value)
        return found

    def conditioned(m: Params, key: str, gradient: Tensor) -> Tensor:
        if gradient.ndim < 3:
            return gradient * m[f"{name}.diagonal.{key}"].square()
        left, right = (_gram(m[f"{name}.{side}.{key}"]) for side in ("output", "input"))
        return (left @ gradient.flatten(2) @ right).view(gradient.shape)

    def shown(m: Params) -> Params:
        own = tree.within(m, name).items()
        return {f"{name}.{key}": v.square() if key.startswith("diagonal.") else _gram(v) for key, v in own}

    rule = stateless(lambda m, grads, params: {key: conditioned(m, key, g) for key, g in grads.items()})
    return rule._replace(structure=structure, shown=shown)


def _gram(factor: Tensor) -> Tensor:
    return factor @ factor.T


def _factors(shape: tuple[int, ...]) -> dict[str, int]:
    if len(shape) < 2:
        return {"diagonal": prod(shape)}
    factors = {"output": shape[0], "input": shape[1]}
    return factors | ({"filter": prod(shape[2:])} if len(shape) > 2 else {})


def _curved(gradient: Tensor, m: Params, name: str, key: str) -> Tensor:
    if gradient.ndim < 3:
        return gradient * m[f"{name}.diagonal.{key}"].view(gradient.shape[1:])
    # (B, out, in, d): each matrix product takes one axis
    curved = gradient.flatten(3) if gradient.ndim > 4 else gradient
    if gradient.ndim > 3:
        curved = curved @ m[f"{name}.filter.{key}"].T
        curved = torch.einsum("ji,boid->bojd", m[f"{name}.input.{key}"], curved)
        curved = torch.einsum("po,boid->bpid", m[f"{name}.output.{key}"], curved)
    else:
        curved = m[f"{name}.output.{key}"] @ curved @ m[f"{name}.input.{key}"].T
    return curved.view(gradient.shape)
