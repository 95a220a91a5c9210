# The public names, and where each lives: `__init__.py` imports a name from there when it is first used.
from headstart import errors as errors, tasks as tasks, testing as testing
from headstart.algorithms.adaptation import InnerLoss as InnerLoss, Now as Now, Start as Start
from headstart.algorithms.adapters import LowRank as LowRank, low_rank as low_rank
from headstart.algorithms.architecture import derive as derive, pressed as pressed, sharpened as sharpened
from headstart.algorithms.attenuation import l2f as l2f
from headstart.algorithms.aware import aware as aware, propose as propose
from headstart.algorithms.baselines import joint as joint, scratch as scratch
from headstart.algorithms.bayesian_linear import alpaca as alpaca
from headstart.algorithms.context import cavia as cavia
from headstart.algorithms.evolution import Evolution as Evolution, es_maml as es_maml
from headstart.algorithms.fine_tuning import (
    baseline_plus_plus as baseline_plus_plus,
    fine_tuning as fine_tuning,
    linear_probe as linear_probe,
)
from headstart.algorithms.forest import forest as forest
from headstart.algorithms.frozen import frozen as frozen
from headstart.algorithms.gaussian_process import dkt as dkt, gaussian_process as gaussian_process
from headstart.algorithms.heads.kernel_machines import logistic as logistic, svm as svm
from headstart.algorithms.heads.ridge import ridge as ridge
from headstart.algorithms.imaml import imaml as imaml
from headstart.algorithms.learned_loss import learned_loss as learned_loss
from headstart.algorithms.maml import (
    alfa as alfa,
    anil as anil,
    boil as boil,
    fomaml as fomaml,
    maml as maml,
    meta_curvature as meta_curvature,
    meta_sgd as meta_sgd,
)
from headstart.algorithms.maml_plus_plus import maml_plus_plus as maml_plus_plus, per_step_norm as per_step_norm
from headstart.algorithms.maml_train import maml_train as maml_train
from headstart.algorithms.matching_networks import matching_networks as matching_networks
from headstart.algorithms.modulation import mmaml as mmaml
from headstart.algorithms.neural_process import anp as anp, cnp as cnp
from headstart.algorithms.objectives import first_order_until as first_order_until, multi_step as multi_step
from headstart.algorithms.pooled_classes import meta_baseline as meta_baseline
from headstart.algorithms.proto_maml import proto_maml as proto_maml
from headstart.algorithms.prototypes import nearest as nearest, prototypes as prototypes
from headstart.algorithms.relation_networks import relation_networks as relation_networks
from headstart.algorithms.reptile import reptile as reptile
from headstart.algorithms.search import search as search
from headstart.algorithms.simple_shot import simple_shot as simple_shot
from headstart.algorithms.table_baselines.mixed_effects import mixed_effects as mixed_effects
from headstart.algorithms.table_baselines.per_task import one_model_per_task as one_model_per_task
from headstart.algorithms.table_baselines.pooled import (
    boosted_trees as boosted_trees,
    pooled as pooled,
    task_category as task_category,
)
from headstart.algorithms.transduction import bd_cspn as bd_cspn, label_propagation as label_propagation
from headstart.algorithms.tuned import trunk as trunk
from headstart.algorithms.warp import mt_net as mt_net, t_net as t_net, warp_grad as warp_grad
from headstart.core import losses as losses, rules as rules
from headstart.core.adjoints import (
    Checkpointed as Checkpointed,
    ConjugateGradient as ConjugateGradient,
    FirstOrder as FirstOrder,
    Implicit as Implicit,
    Neumann as Neumann,
    Truncated as Truncated,
    Unrolled as Unrolled,
)
from headstart.core.objective import meta_gradient as meta_gradient, meta_loss as meta_loss
from headstart.core.parameters import Context as Context, Stepped as Stepped, Structural as Structural
from headstart.engine.accelerate import accelerate as accelerate
from headstart.exporting.export import export as export
from headstart.forward.cost import expected_cost as expected_cost, multiply_adds as multiply_adds
from headstart.forward.functional import functional as functional
from headstart.forward.mixture import Mixture as Mixture, Skip as Skip
from headstart.models.conv4 import conv4 as conv4
from headstart.models.convolution import convolution as convolution
from headstart.models.identity import identity as identity
from headstart.models.mlp import mlp as mlp
from headstart.models.ngrams import ngrams as ngrams
from headstart.models.projection import projection as projection
from headstart.models.resnet12 import resnet12 as resnet12
from headstart.models.soft_forest import soft_forest as soft_forest
from headstart.models.transformer import transformer as transformer
from headstart.models.trunks.trunk import (
    Trunk as Trunk,
    of_images as of_images,
    of_texts as of_texts,
    open_trunk as open_trunk,
)
from headstart.serve.client import Client as Client
from headstart.training.adapt import adapt as adapt
from headstart.training.adapted import open_adapted as open_adapted
from headstart.training.choose import train as train
from headstart.training.distributed import (
    distributed as distributed,
    processes as processes,
    share as share,
)
from headstart.training.evaluate import evaluate as evaluate
from headstart.training.loop import fit as fit, start as start
from headstart.training.on_disk import OnDisk as OnDisk
from headstart.training.predictions import predict as predict, predictions as predictions
from headstart.types import (
    Adapted as Adapted,
    Batch as Batch,
    Episodes as Episodes,
    Gaussian as Gaussian,
    Info as Info,
    Learner as Learner,
    Meta as Meta,
    Tasks as Tasks,
)

__version__: str
