"""Meta-learning: from many small tasks, learn the head start from which a new task takes a handful of examples.

    L(θ)    = Σᵢ Lᵢ(θ)        model-agnostic
    L(θ, M) = Σᵢ Lᵢ(θ, M)     model-aware: M is what is learned about the model itself

Names are imported when they are first used, so ``import headstart`` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headstart.algorithms.adapters import LowRank as LowRank
    from headstart.algorithms.adapters import low_rank as low_rank
    from headstart.algorithms.alfa import alfa as alfa
    from headstart.algorithms.architecture import derive as derive
    from headstart.algorithms.architecture import pressed as pressed
    from headstart.algorithms.architecture import sharpened as sharpened
    from headstart.algorithms.attenuation import l2f as l2f
    from headstart.algorithms.aware import aware as aware
    from headstart.algorithms.baselines import joint as joint
    from headstart.algorithms.baselines import nearest as nearest
    from headstart.algorithms.baselines import scratch as scratch
    from headstart.algorithms.context import cavia as cavia
    from headstart.algorithms.curvature import meta_curvature as meta_curvature
    from headstart.algorithms.es_maml import es_maml as es_maml
    from headstart.algorithms.evolution import Evolution as Evolution
    from headstart.algorithms.forest.learner import forest as forest
    from headstart.algorithms.gaussian.bayesian_linear import alpaca as alpaca
    from headstart.algorithms.gaussian.gaussian_process import dkt as dkt
    from headstart.algorithms.gaussian.gaussian_process import gaussian_process as gaussian_process
    from headstart.algorithms.heads.kernel_machines import logistic as logistic
    from headstart.algorithms.heads.kernel_machines import svm as svm
    from headstart.algorithms.heads.ridge import ridge as ridge
    from headstart.algorithms.imaml import imaml as imaml
    from headstart.algorithms.learned_loss import learned_loss as learned_loss
    from headstart.algorithms.maml import anil as anil
    from headstart.algorithms.maml import boil as boil
    from headstart.algorithms.maml import fomaml as fomaml
    from headstart.algorithms.maml import maml as maml
    from headstart.algorithms.maml import meta_sgd as meta_sgd
    from headstart.algorithms.maml_plus_plus import maml_plus_plus as maml_plus_plus
    from headstart.algorithms.maml_train import maml_train as maml_train
    from headstart.algorithms.modulation import mmaml as mmaml
    from headstart.algorithms.neural_process.learners import anp as anp
    from headstart.algorithms.neural_process.learners import cnp as cnp
    from headstart.algorithms.objectives import first_order_until as first_order_until
    from headstart.algorithms.objectives import multi_step as multi_step
    from headstart.algorithms.proposal import propose as propose
    from headstart.algorithms.proto_maml import proto_maml as proto_maml
    from headstart.algorithms.prototypes import prototypes as prototypes
    from headstart.algorithms.reptile import reptile as reptile
    from headstart.algorithms.search.learner import search as search
    from headstart.algorithms.step_norm import per_step_norm as per_step_norm
    from headstart.algorithms.variants import InnerLoss as InnerLoss
    from headstart.algorithms.variants import Start as Start
    from headstart.algorithms.warp import mt_net as mt_net
    from headstart.algorithms.warp import t_net as t_net
    from headstart.algorithms.warp import warp_grad as warp_grad
    from headstart.core.adjoints import Checkpointed as Checkpointed
    from headstart.core.adjoints import ConjugateGradient as ConjugateGradient
    from headstart.core.adjoints import FirstOrder as FirstOrder
    from headstart.core.adjoints import Implicit as Implicit
    from headstart.core.adjoints import MixedMode as MixedMode
    from headstart.core.adjoints import Neumann as Neumann
    from headstart.core.adjoints import Truncated as Truncated
    from headstart.core.adjoints import Unrolled as Unrolled
    from headstart.core.objective import meta_gradient as meta_gradient
    from headstart.core.objective import meta_loss as meta_loss
    from headstart.core.roles import Context as Context
    from headstart.core.roles import Stepped as Stepped
    from headstart.core.roles import Structural as Structural
    from headstart.engine.accelerate import accelerate as accelerate
    from headstart.forward.cost import expected_cost as expected_cost
    from headstart.forward.cost import multiply_adds as multiply_adds
    from headstart.forward.functional import functional as functional
    from headstart.forward.mixture import Mixture as Mixture
    from headstart.forward.mixture import Skip as Skip
    from headstart.models.conv4 import conv4 as conv4
    from headstart.models.mlp import mlp as mlp
    from headstart.models.resnet12 import resnet12 as resnet12
    from headstart.models.soft_forest import soft_forest as soft_forest
    from headstart.models.transformer import transformer as transformer
    from headstart.training.adapted import adapt as adapt
    from headstart.training.adapted import open_adapted as open_adapted
    from headstart.training.adapted import predict as predict
    from headstart.training.evaluate import evaluate as evaluate
    from headstart.training.loop import fit as fit
    from headstart.training.loop import start as start
    from headstart.training.on_disk import OnDisk as OnDisk
    from headstart.training.run import train as train
    from headstart.types import Adapted as Adapted
    from headstart.types import Batch as Batch
    from headstart.types import Episodes as Episodes
    from headstart.types import Gaussian as Gaussian
    from headstart.types import Info as Info
    from headstart.types import Learner as Learner
    from headstart.types import Meta as Meta
    from headstart.types import Tasks as Tasks

_PUBLIC = {
    "headstart.algorithms.adapters": (
        "LowRank",
        "low_rank",
    ),
    "headstart.algorithms.alfa": ("alfa",),
    "headstart.algorithms.architecture": (
        "derive",
        "pressed",
        "sharpened",
    ),
    "headstart.algorithms.attenuation": ("l2f",),
    "headstart.algorithms.aware": (
        "aware",
        "propose",
    ),
    "headstart.algorithms.baselines": (
        "joint",
        "nearest",
        "scratch",
    ),
    "headstart.algorithms.gaussian.bayesian_linear": ("alpaca",),
    "headstart.algorithms.context": ("cavia",),
    "headstart.algorithms.curvature": ("meta_curvature",),
    "headstart.algorithms.es_maml": ("es_maml",),
    "headstart.algorithms.forest.learner": ("forest",),
    "headstart.algorithms.gaussian.gaussian_process": (
        "dkt",
        "gaussian_process",
    ),
    "headstart.algorithms.heads.kernel_machines": (
        "logistic",
        "svm",
    ),
    "headstart.algorithms.learned_loss": ("learned_loss",),
    "headstart.algorithms.imaml": ("imaml",),
    "headstart.algorithms.maml": (
        "anil",
        "boil",
        "fomaml",
        "maml",
        "meta_sgd",
    ),
    "headstart.algorithms.maml_plus_plus": ("maml_plus_plus",),
    "headstart.algorithms.maml_train": ("maml_train",),
    "headstart.algorithms.modulation": ("mmaml",),
    "headstart.algorithms.neural_process.learners": (
        "anp",
        "cnp",
    ),
    "headstart.algorithms.objectives": (
        "first_order_until",
        "multi_step",
    ),
    "headstart.algorithms.proposal": ("propose",),
    "headstart.algorithms.proto_maml": ("proto_maml",),
    "headstart.algorithms.prototypes": ("prototypes",),
    "headstart.algorithms.reptile": ("reptile",),
    "headstart.algorithms.heads.ridge": ("ridge",),
    "headstart.algorithms.search.learner": ("search",),
    "headstart.algorithms.step_norm": ("per_step_norm",),
    "headstart.algorithms.warp": (
        "mt_net",
        "t_net",
        "warp_grad",
    ),
    "headstart.engine.accelerate": ("accelerate",),
    "headstart.core.adjoints": (
        "Checkpointed",
        "ConjugateGradient",
        "FirstOrder",
        "Implicit",
        "MixedMode",
        "Neumann",
        "Truncated",
        "Unrolled",
    ),
    "headstart.forward.cost": (
        "expected_cost",
        "multiply_adds",
    ),
    "headstart.algorithms.evolution": ("Evolution",),
    "headstart.forward.functional": ("functional",),
    "headstart.forward.mixture": (
        "Mixture",
        "Skip",
    ),
    "headstart.core.objective": (
        "meta_gradient",
        "meta_loss",
    ),
    "headstart.core.roles": (
        "Context",
        "Stepped",
        "Structural",
    ),
    "headstart.algorithms.variants": (
        "InnerLoss",
        "Start",
    ),
    "headstart.models.conv4": ("conv4",),
    "headstart.models.mlp": ("mlp",),
    "headstart.models.resnet12": ("resnet12",),
    "headstart.models.soft_forest": ("soft_forest",),
    "headstart.models.transformer": ("transformer",),
    "headstart.training.adapted": (
        "adapt",
        "open_adapted",
        "predict",
    ),
    "headstart.training.evaluate": ("evaluate",),
    "headstart.training.loop": (
        "fit",
        "start",
    ),
    "headstart.training.on_disk": ("OnDisk",),
    "headstart.training.run": ("train",),
    "headstart.types": (
        "Adapted",
        "Batch",
        "Episodes",
        "Gaussian",
        "Info",
        "Learner",
        "Meta",
        "Tasks",
    ),
}
#: Modules that are public as a whole, as in ``headstart.rules.chain``.
_MODULES = {
    "errors": "headstart.errors",
    "losses": "headstart.core.losses",
    "rules": "headstart.core.rules",
    "tasks": "headstart.data",
    "testing": "headstart.testing",
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted([*_HOME, *_MODULES])]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'headstart' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
