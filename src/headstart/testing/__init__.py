"""The public contract kit: prove that a learner, rule, adjoint or task family of your own keeps its promises.

Each check says nothing where all is well, and raises `ContractError` otherwise: which contract is broken, by how much,
and what that means. All of headstart's own methods pass the same checks.
"""

from headstart.testing.contract import ContractError as ContractError, check_derivative as check_derivative
from headstart.testing.learners import (
    check_learner as check_learner,
    check_method as check_method,
    random_episodes as random_episodes,
)
from headstart.testing.parts import check_adjoint as check_adjoint, check_rule as check_rule
from headstart.testing.tasks import check_tasks as check_tasks
