"""Hyperparameters that a small network generates at every inner step, from the task's own gradients and weights."""

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.rule import Rule, of_step, require_fraction, require_positive
from headstart.errors import UsageError
from headstart.types import Params


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

        def base(key: str) -> Tensor:
            return m[f"{name}.{key}"] if steps is None else of_step(m[f"{name}.{key}"], step)

        def moved(key: str, rate: Tensor, decay: Tensor) -> Tensor:
            alpha, taken = base(f"rate.{key}") * rate, base(f"decay.{key}") * decay
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
