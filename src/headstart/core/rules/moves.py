"""What moves: chosen by name, module type or predicate."""

from headstart.core.patterns import What, choose
from headstart.core.rules.rule import Rule, identity


def only(*what: What) -> Rule:
    """Move only the parameters that ``what`` chooses: name patterns, module types or predicates on `Leaf`.

    >>> from torch import nn
    >>> from headstart import rules
    >>> rule = rules.chain(rules.only("head", nn.BatchNorm2d), rules.scale(0.1))
    """
    return identity()._replace(moves=lambda leaves: choose(leaves, *what))


def exclude(*what: What) -> Rule:
    """Move all parameters but those that ``what`` chooses."""
    return identity()._replace(moves=lambda leaves: frozenset(leaves) - choose(leaves, *what))
