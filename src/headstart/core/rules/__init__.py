"""Inner update rules: what one step of adaptation does with a gradient.

A `Rule` turns gradients into the step that is subtracted from the parameters. Atoms join by `chain`, each working
on what the one before it made: ``chain(clip(norm=1.0), momentum(0.9), scale(0.1))``. An atom that learns declares
its own part of M, which the outer loop meta-learns.
"""

from headstart.core.rules.atoms import (
    adam as adam,
    clip as clip,
    curvature as curvature,
    diagonal as diagonal,
    generated_rates as generated_rates,
    kronecker as kronecker,
    momentum as momentum,
    per_tensor as per_tensor,
    per_weight as per_weight,
    proximal as proximal,
    scale as scale,
    weight_decay as weight_decay,
)
from headstart.core.rules.masks import fixed_mask as fixed_mask, mask as mask, unit_mask as unit_mask
from headstart.core.rules.rule import Rule as Rule, chain as chain, exclude as exclude, only as only
