"""Linear mixed-effects models: fitted to the training tasks, predicted for new ones in closed form."""

import warnings
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Generator, Tensor

from headstart.algorithms.estimators import Array, check_targets, flat, required, time_of
from headstart.algorithms.table_baselines.pooled import training_rows
from headstart.core import losses
from headstart.core.losses import present, there
from headstart.errors import DivergenceError, UsageError, check_known
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Tasks, Tree

TRENDS = ("linear", "quadratic", "spline")


def mixed_effects(
    *,
    inputs: int,
    outputs: int = 1,
    trend: Literal["linear", "quadratic", "spline"] = "linear",
    knots: Annotated[int, Ge(3)] = 6,
) -> Learner:
    """Learn what all tasks share and how tasks vary: y = xᵀ β + zᵀ b_task + ε, b_task ~ N(0, G), ε ~ N(0, σ²).

    x is 1, the features and, as ``trend`` says, the square or a natural cubic spline of time (linear beyond its outer
    knots); z is 1 and time, with ``"quadratic"`` also its square. Time is the table's time column, or the only feature
    there is; without one, z is 1 and there is no trend but the features'.

    `Learner.prepare` estimates β, G and σ² by restricted maximum likelihood (statsmodels) from all rows of the training
    tasks. Where that does not converge, z loses its last part; M then has 0 there in G. A new task's b is its best
    linear unbiased prediction from the support rows, b̂ = G Zᵀ V⁻¹ (y − X β) with V = Z G Zᵀ + σ² I; the distribution
    of an observation adds the uncertainty of β, and the noise. Before anything has been read, β = 0, G = I, σ² = 1.

    Args:
        inputs: numbers in one input; inputs are flattened.
        outputs: number of target values, each with a model of its own.
        trend: how the target goes with time.
        knots: how many the spline has, at evenly spread quantiles of the different times.

    Raises:
        UnknownNameError: a trend that there is none of.
        UsageError: fewer than 3 knots; and in `Learner.prepare`, without statsmodels, or without a time for a trend.
        DivergenceError: in `Learner.prepare`, where the model converges not even with an intercept for each task.

    References: Laird, Ware 1982, doi:10.2307/2529876; Robinson 1991, doi:10.1214/ss/1177011926 (the predictor); Hastie,
    Tibshirani, Friedman 2009, "The Elements of Statistical Learning", equations 5.4 and 5.5 (the spline).
    """
    check_known("trend", trend, TRENDS)
    if inputs < 1 or outputs < 1 or knots < 3:
        raise UsageError(
            f"inputs and outputs must be at least 1 and knots at least 3, got {inputs}, {outputs}, {knots}"
        )
    fixed = 1 + inputs + {"linear": 0, "quadratic": 1, "spline": knots - 2}[trend]
    random = 3 if trend == "quadratic" else 2

    def init(generator: Generator | None = None) -> Meta:
        start = {
            "fixed": torch.zeros(outputs, fixed),
            "fixed_covariance": torch.zeros(outputs, fixed, fixed),
            "random_covariance": torch.eye(random).repeat(outputs, 1, 1),
            "noise": torch.ones(outputs),
            "time": torch.full((inputs,), float(inputs == 1)),
        }
        return Meta({}, start | ({"knots": torch.linspace(-1, 1, knots)} if trend == "spline" else {}))

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        check_targets(support, outputs, classifies=False)
        known = _double(meta.structure)
        # what is not there says nothing: its rows are zero, and so is their gain
        mask = there(support).unsqueeze(-1).cpu()
        x, z = ((part * mask).unsqueeze(1) for part in _design(known, flat(support.x, inputs), trend))
        y = support.y.detach().double().cpu().mT.unsqueeze(-1)
        g = known["random_covariance"]
        shared = z @ g
        v = shared @ z.mT + known["noise"].view(-1, 1, 1) * torch.eye(z.shape[2], dtype=z.dtype)
        gain = torch.linalg.solve(v, shared).mT
        found = {  # b̂ (B, o, q), its covariance (B, o, q, q), and how b̂ would move with β (B, o, q, p)
            "effects": (gain @ (y - x @ known["fixed"].unsqueeze(-1))).squeeze(-1),
            "covariance": g - gain @ shared,
            "explained": gain @ x,
        }
        values = {name: value.to(support.y) for name, value in found.items()}
        return Adapted(meta, values, {}, support.seed), Info(support.y.new_zeros(0, len(y)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        known, task = _double(adapted.meta.structure), _double(adapted.params)
        rows = flat(x, inputs)
        own, z = (part.unsqueeze(1) for part in _design(known, rows, trend))
        mean = own @ known["fixed"].unsqueeze(-1) + z @ task["effects"].unsqueeze(-1)
        lever = own - z @ task["explained"]
        spread = ((z @ task["covariance"]) * z).sum(-1) + ((lever @ known["fixed_covariance"]) * lever).sum(-1)
        variance = spread.clamp(min=0) + known["noise"].unsqueeze(-1)
        return Gaussian(*(part.transpose(1, 2).to(rows) for part in (mean.squeeze(-1), variance)))

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
        time = time_of(tasks, meta.structure["time"])
        if trend != "linear" and not bool(time.any()):
            raise UsageError(
                f"a {trend} trend goes with time, and nothing says which of {inputs} inputs that is; name the column"
                " with --time-column, or take the trend linear"
            )
        rows = training_rows(tasks)
        x = torch.from_numpy(rows.x)
        known = {"time": time.double()}
        if trend == "spline":
            different = (x @ known["time"].to(x)).unique()
            if len(different) < knots:
                raise UsageError(
                    f"a spline with {knots} knots needs as many different times, got {len(different)}; take the trend"
                    " quadratic or linear"
                )
            known["knots"] = torch.quantile(different, torch.linspace(0, 1, knots, dtype=different.dtype))
        own, z = (part[0].numpy() for part in _design(known, x.unsqueeze(0), trend))
        fits = [_estimate(values, own, z, rows.task) for values in rows.y.T]
        found = {name: torch.from_numpy(np.stack([fit[name] for fit in fits])) for name in fits[0]} | known
        return meta._replace(structure={name: found[name].to(value) for name, value in meta.structure.items()})

    def shown(meta: Meta) -> Params:
        names = {"fixed": "fixed", "random_covariance": "effects.time", "noise": "noise"}
        return {told: meta.structure[name] for name, told in names.items()}

    learner = Learner(init, adapt, lambda adapted, x: distribution(adapted, x).mean, losses.mse, None, exact=False)
    return learner._replace(distribution=distribution, prepare=prepare, shown=shown)


def _design(known: Params, rows: Tensor, trend: str) -> tuple[Tensor, Tensor]:
    """Return x ``(B, n, p)`` and z ``(B, n, q)`` of rows ``(B, n, inputs)``, float64 on the CPU."""
    rows = rows.detach().double().cpu()
    time = (rows @ known["time"].to(rows)).unsqueeze(-1)
    one = torch.ones_like(time)
    more = [time**2] if trend == "quadratic" else []
    bends = [_spline(time, known["knots"])] if trend == "spline" else more
    return torch.cat([one, rows, *bends], -1), torch.cat([one, time, *more], -1)


def _spline(time: Tensor, knots: Tensor) -> Tensor:
    """Return the bends ``(…, K − 2)`` of the natural cubic spline of time ``(…, 1)``."""
    last, span = knots[-1], knots[-1] - knots[0]
    cubes = ((time - knots).clamp(min=0) / span) ** 3
    slopes = (cubes[..., :-1] - cubes[..., -1:]) * span / (last - knots[:-1])
    return slopes[..., :-1] - slopes[..., -1:]


def _double(values: Params) -> Params:
    return {name: value.detach().double().cpu() for name, value in values.items()}


def _estimate(y: Array, x: Array, z: Array, group: Array) -> dict[str, Array]:
    """Fit with as many random effects as converge, by name as M has them."""
    columns = _independent(x)
    most = z.shape[1] if z[:, 1:].any() else 1
    tries = ((count, _converged(y, x[:, columns], z[:, :count], group)) for count in range(most, 0, -1))
    count, found = next((one for one in tries if one[1] is not None), (0, None))
    if found is None:
        raise DivergenceError("the mixed-effects model converges not even with an intercept for each task")
    fixed, covariance = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
    random = np.zeros((z.shape[1], z.shape[1]))
    fixed[columns] = found.fe_params
    covariance[np.ix_(columns, columns)] = np.asarray(found.cov_params())[: len(columns), : len(columns)]
    random[:count, :count] = np.asarray(found.cov_re)
    noise = np.asarray(found.scale)
    return {"fixed": fixed, "fixed_covariance": covariance, "random_covariance": random, "noise": noise}


def _independent(x: Array) -> list[int]:
    """Return the columns that are no sum of earlier ones, such as the last of a category's: β is 0 for the others."""
    basis: list[Array] = []
    columns = []
    for place, column in enumerate(x.T):
        left = column - sum((column @ one) * one for one in basis)
        left = left - sum((left @ one) * one for one in basis)  # twice is enough (Kahan)
        if np.linalg.norm(left) > 1e-6 * np.linalg.norm(column):
            basis.append(left / np.linalg.norm(left))
            columns.append(place)
    return columns


def _converged(y: Array, x: Array, z: Array, group: Array) -> Any:
    """Return what statsmodels estimates by restricted maximum likelihood; ``None`` where no optimiser converges."""
    model = required("statsmodels.regression.mixed_linear_model").MixedLM(y, x, group, exog_re=z)
    for method in ("lbfgs", "bfgs", "powell"):
        with warnings.catch_warnings(action="ignore"):
            try:
                found = model.fit(reml=True, method=[method], maxiter=200)
            except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):
                continue
            fixed = np.asarray(found.cov_params())[: x.shape[1], : x.shape[1]]
        parts = found.fe_params, fixed, found.cov_re, found.scale
        if found.converged and found.scale > 0 and all(np.isfinite(np.asarray(part)).all() for part in parts):
            return found
    return None
