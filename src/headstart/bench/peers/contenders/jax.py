"""JAX, the comparator: the whole outer step in one jitted function, tasks mapped by ``vmap``, Adam written out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.bench.peers.case import OUTER_RATE, Case, arrays, case_of, module
from headstart.bench.peers.prepared import Arrays, Prepared


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return the jitted outer step, compiled; its parameters and optimiser state are donated."""
    import jax  # pyrefly: ignore
    import jax.numpy as jnp  # pyrefly: ignore

    case = case_of(values)
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    params = {name: jnp.asarray(value.detach().numpy()) for name, value in module(case).named_parameters()}
    data = {name: jnp.asarray(value) for name, value in arrays(case).items()}
    gradient = jax.value_and_grad(lambda now: _meta_loss(case, now, data))

    def outer(state: tuple[Any, Any, Any, Any]) -> tuple[Any, Any]:
        now, first, second, count = state
        value, slopes = gradient(now)
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
        box[0], value = jitted(box[0])
        value.block_until_ready()

    def answer() -> Arrays:
        # after one step from zero, Adam's first moment is a tenth of the gradient
        (_, first, _, _), _ = jitted(fresh())
        return {name: np.asarray(value) * 10 for name, value in first.items()}

    return Prepared(step, answer)


def _meta_loss(case: Case, params: Any, data: Any) -> Any:
    import jax  # pyrefly: ignore

    def task(support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        now = params
        for _ in range(case.steps):
            slopes = jax.grad(lambda p: _loss(case, p, support_x, support_y))(now)
            now = {name: value - case.rate * slopes[name] for name, value in now.items()}
        return _loss(case, now, query_x, query_y)

    return jax.vmap(task)(data["support_x"], data["support_y"], data["query_x"], data["query_y"]).mean()


def _loss(case: Case, params: Any, x: Any, y: Any) -> Any:
    import jax  # pyrefly: ignore
    import jax.numpy as jnp  # pyrefly: ignore

    if case.model == "mlp":
        for layer in ("hidden1", "hidden2"):
            x = jax.nn.relu(x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
    else:
        for block in range(1, 5):
            x = _block(x, *(params[f"block{block}.{name}"] for name in _BLOCK))
        x = x.reshape(len(x), -1)
    outputs = x @ params["head.weight"].T + params["head.bias"]
    if not case.ways:
        return jnp.mean((outputs - y) ** 2)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1))


_BLOCK = ("conv.weight", "conv.bias", "norm.weight", "norm.bias")


def _block(x: Any, kernel: Any, bias: Any, scale: Any, shift: Any) -> Any:
    import jax  # pyrefly: ignore
    import jax.numpy as jnp  # pyrefly: ignore

    channels = (1, -1, 1, 1)
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    x = x + bias.reshape(channels)
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    x = (x - mean) / jnp.sqrt(variance + 1e-5) * scale.reshape(channels) + shift.reshape(channels)
    windows = (1, 1, 2, 2)
    return jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, windows, windows, "VALID")
