"""Inner update rules: what one step of adaptation does with a gradient.

A `Rule` turns gradients into the step that is subtracted from the parameters. Atoms join by `chain`, each working
on what the one before it made: ``chain(clip(norm=1.0), momentum(decay=0.9), scale(0.1))``. An atom that learns declares
its own part of M, which the outer loop meta-learns.
"""

from headstart.core.rules.atoms import (
    adam,
    clip,
    momentum,
    per_task,
    per_tensor,
    per_weight,
    proximal,
    scale,
    weight_decay,
)
from headstart.core.rules.generated import generated_rates
from headstart.core.rules.geometry import curvature, diagonal, kronecker
from headstart.core.rules.masks import fixed_mask, mask, unit_mask
from headstart.core.rules.rule import Rule, chain, exclude, only

__all__ = [
    "Rule",
    "adam",
    "chain",
    "clip",
    "curvature",
    "diagonal",
    "exclude",
    "fixed_mask",
    "generated_rates",
    "kronecker",
    "mask",
    "momentum",
    "only",
    "per_task",
    "per_tensor",
    "per_weight",
    "proximal",
    "scale",
    "unit_mask",
    "weight_decay",
]
