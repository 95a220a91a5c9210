"""Inner update rules: what one step of adaptation does with a gradient.

A `Rule` turns gradients into the step that is subtracted from the parameters. Atoms join by `chain`, each working
on what the one before it made: ``chain(clip(norm=1.0), momentum(0.9), scale(0.1))``. An atom that learns declares
its own part of M, which the outer loop meta-learns.
"""

from headstart.core.rules.geometry import curvature
from headstart.core.rules.limits import clip, weight_decay
from headstart.core.rules.moments import adam, momentum
from headstart.core.rules.moves import exclude, only
from headstart.core.rules.rates import per_tensor, per_weight, scale
from headstart.core.rules.rule import Rule, chain

__all__ = [
    "Rule",
    "adam",
    "chain",
    "clip",
    "curvature",
    "exclude",
    "momentum",
    "only",
    "per_tensor",
    "per_weight",
    "scale",
    "weight_decay",
]
