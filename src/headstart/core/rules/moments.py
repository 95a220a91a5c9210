"""Running averages of gradients: momentum and Adam."""

from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.rule import Rule, require_fraction, require_positive
from headstart.errors import UsageError
from headstart.types import Params, Tree


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

    def decay_of(m: Params) -> Tensor | float:
        return m[f"logit_{name}"].sigmoid() if learn else decay

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        kept = decay_of(m)
        state = {k: kept * state[k] + g for k, g in grads.items()}
        return ({k: g + kept * state[k] for k, g in grads.items()} if nesterov else state), state

    rule = Rule(update, lambda m, params, seed: tree.zeros_like(params), affine=not learn)
    if not learn:
        return rule

    def structure(params: Params, generator: Generator | None) -> Params:
        return {f"logit_{name}": next(iter(params.values())).new_tensor(decay).logit()}

    return rule._replace(structure=structure, shown=lambda m: {name: m[f"logit_{name}"].sigmoid()})


def adam(decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Normalise by running moments: m̂ / (√v̂ + ε); follow with `scale`. Equals torch.optim.Adam.

    The derivative of √v̂ at 0 is taken as 0, so that a weight without gradient does not make the meta-gradient NaN.

    Reference: Kingma, Ba 2014, arXiv:1412.6980.
    """
    require_fraction("decay", decay)
    require_fraction("square_decay", square_decay)
    require_positive("epsilon", epsilon)

    def state(m: Params, params: Params, seed: Tensor | None) -> Tree:
        return tree.zeros_like(params), tree.zeros_like(params)

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        first = {k: decay * state[0][k] + (1 - decay) * g for k, g in grads.items()}
        second = {k: square_decay * state[1][k] + (1 - square_decay) * g.square() for k, g in grads.items()}
        bias, square_bias = 1 - decay ** (step + 1), 1 - square_decay ** (step + 1)
        out = {k: (first[k] / bias) / (tree.safe_sqrt(second[k] / square_bias) + epsilon) for k in grads}
        return out, (first, second)

    return Rule(update, state)
