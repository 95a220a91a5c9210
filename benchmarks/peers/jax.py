"""JAX, the comparator: the whole outer step in one jitted function, tasks mapped by ``vmap``, Adam written out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.peers.case import OUTER_RATE, Case, arrays, case_of, module
from benchmarks.peers.prepared import Arrays, Prepared

#: From so many inner steps on they are a loop in the compiled program, which unrolled would take minutes to compile.
_LOOP = 10


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return the jitted outer step; its parameters and optimiser state are donated.

    Raises:
        ValueError: a model other than the MLP.
    """
    import jax  # pyrefly: ignore
    import jax.numpy as jnp  # pyrefly: ignore

    case = case_of(values)
    if case.model != "mlp":
        raise ValueError(f"the comparator in JAX is written for the MLP alone, not for {case.model}")
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in module(case).named_parameters()}
    data = {name: jnp.asarray(value) for name, value in arrays(case).items()}
    gradient = jax.value_and_grad(lambda now, given: _meta_loss(case, now, given))

    def outer(state: tuple[Any, Any, Any, Any], given: Any) -> tuple[Any, Any]:
        now, first, second, count = state
        value, slopes = gradient(now, given)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slopes)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, slopes)

        def moved(p: Any, m: Any, v: Any) -> Any:
            return p - OUTER_RATE * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

        return (jax.tree.map(moved, now, first, second), first, second, count), value

    jitted = jax.jit(outer, donate_argnums=0)

    def fresh() -> tuple[Any, Any, Any, Any]:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return jax.tree.map(jnp.copy, params), *zeros, jnp.zeros((), case.dtype)

    box = [fresh()]

    def step() -> None:
        box[0], value = jitted(box[0], data)
        jax.block_until_ready((box[0], value))

    def answer() -> Arrays:
        # after one step from zero, Adam's first moment is a tenth of the gradient
        (_, first, _, _), _ = jitted(fresh(), data)
        return {name: np.asarray(value) * 10 for name, value in first.items()}

    return Prepared(step, answer, "inner steps in lax.scan" if case.steps >= _LOOP else "")


def _meta_loss(case: Case, params: Any, data: Any) -> Any:
    import jax  # pyrefly: ignore

    def task(support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        def stepped(now: Any, _: Any) -> tuple[Any, None]:
            slopes = jax.grad(lambda p: _loss(case, p, support_x, support_y))(now)
            return {name: value - case.rate * slopes[name] for name, value in now.items()}, None

        now = params
        if case.steps >= _LOOP:
            now, _ = jax.lax.scan(stepped, now, None, length=case.steps)
        else:
            for _ in range(case.steps):
                now, _ = stepped(now, None)
        return _loss(case, now, query_x, query_y)

    return jax.vmap(task)(data["support_x"], data["support_y"], data["query_x"], data["query_y"]).mean()


def _loss(case: Case, params: Any, x: Any, y: Any) -> Any:
    import jax  # pyrefly: ignore
    import jax.numpy as jnp  # pyrefly: ignore

    x = x.reshape(len(x), -1)
    for layer in range(1, len(case.hidden) + 1):
        x = jax.nn.relu(x @ params[f"hidden{layer}.weight"].T + params[f"hidden{layer}.bias"])
    outputs = x @ params["head.weight"].T + params["head.bias"]
    if not case.ways:
        return jnp.mean((outputs - y) ** 2)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1))
