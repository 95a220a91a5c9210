"""The names that the command line, configurations and contract tests know.

One row a thing. Rows are plain data, so that listing them imports nothing heavy; `load` imports the target.
"""

from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeAlias

from headstart.errors import unknown_name

Kind: TypeAlias = Literal["method", "task", "model"]


class Row(NamedTuple):
    """One registered thing."""

    name: str
    summary: str
    """What it is, in one line."""
    reference: str
    """Authors, year and arXiv id, or the source of the data; empty where there is none."""
    target: str
    """``module:attribute`` of its factory."""


METHODS = (
    Row(
        "maml",
        "learn initial weights from which a few gradient steps adapt; exact second-order gradient",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.algorithms.maml:maml",
    ),
    Row(
        "fomaml",
        "MAML with the inner gradients taken as constants: cheaper, not exact",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.algorithms.maml:fomaml",
    ),
    Row(
        "imaml",
        "MAML that stays near the start, differentiated where it comes to rest: memory does not grow with the steps",
        "Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630",
        "headstart.algorithms.imaml:imaml",
    ),
    Row(
        "anil",
        "MAML whose inner loop moves the head only",
        "Raghu, Raghu, Bengio, Vinyals 2019, arXiv:1909.09157",
        "headstart.algorithms.maml:anil",
    ),
    Row(
        "boil",
        "MAML whose inner loop moves the body only",
        "Oh, Yoo, Kim, Yun 2020, arXiv:2008.08882",
        "headstart.algorithms.maml:boil",
    ),
    Row(
        "meta_sgd",
        "MAML that also learns a step size, with sign, for every weight",
        "Li, Zhou, Chen, Li 2017, arXiv:1707.09835",
        "headstart.algorithms.maml:meta_sgd",
    ),
    Row(
        "meta_curvature",
        "MAML that also learns the metric in which gradients are followed",
        "Park, Oliva 2019, arXiv:1902.03356",
        "headstart.algorithms.curvature:meta_curvature",
    ),
    Row(
        "maml_plus_plus",
        "MAML made stable: rates by layer and step, losses after every step, normalisation by step",
        "Antoniou, Edwards, Storkey 2018, arXiv:1810.09502",
        "headstart.algorithms.maml_plus_plus:maml_plus_plus",
    ),
    Row(
        "alfa",
        "MAML with rates and weight decay generated from the task's own gradients and weights",
        "Baik, Choi, Choi, Kim, Lee 2020, arXiv:2011.00209",
        "headstart.algorithms.alfa:alfa",
    ),
    Row(
        "t_net",
        "MAML in a learned metric: linear maps behind the layers, which only the outer loop moves",
        "Lee, Choi 2018, arXiv:1801.05558",
        "headstart.algorithms.warp:t_net",
    ),
    Row(
        "mt_net",
        "T-net that also learns which units adaptation may move",
        "Lee, Choi 2018, arXiv:1801.05558",
        "headstart.algorithms.warp:mt_net",
    ),
    Row(
        "warp_grad",
        "MAML through warp layers, learned along the way of adaptation by the outer loop alone",
        "Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2019, arXiv:1909.00025",
        "headstart.algorithms.warp:warp_grad",
    ),
    Row(
        "cavia",
        "a task moves a few context parameters only; the network is learned across tasks",
        "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2018, arXiv:1810.03642",
        "headstart.algorithms.context:cavia",
    ),
    Row(
        "mmaml",
        "a task's examples modulate the layers before MAML's steps, for families of several kinds of task",
        "Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616",
        "headstart.algorithms.modulation:mmaml",
    ),
    Row(
        "l2f",
        "MAML from initial weights that are attenuated for each task, layer by layer",
        "Baik, Hong, Lee 2019, arXiv:1906.05895",
        "headstart.algorithms.attenuation:l2f",
    ),
    Row(
        "proto_maml",
        "MAML whose head starts as the prototype classifier of the task",
        "Triantafillou et al. 2019, arXiv:1903.03096",
        "headstart.algorithms.proto_maml:proto_maml",
    ),
    Row(
        "aware",
        "reads the model and proposes what to learn about it: start, rates, geometry, objective",
        "",
        "headstart.algorithms.aware:aware",
    ),
    Row(
        "reptile",
        "move the initial weights towards each task's adapted weights; no second derivatives",
        "Nichol, Achiam, Schulman 2018, arXiv:1803.02999",
        "headstart.algorithms.reptile:reptile",
    ),
    Row(
        "prototypes",
        "learn an embedding in which the nearest class mean is right (prototypical networks)",
        "Snell, Swersky, Zemel 2017, arXiv:1703.05175",
        "headstart.algorithms.prototypes:prototypes",
    ),
    Row(
        "es_maml",
        "MAML by an evolution strategy: no outer derivative, so nothing needs to have one",
        "Song, Gao, Yang, Choromanski, Pacchiano, Tang 2019, arXiv:1910.01215",
        "headstart.algorithms.es_maml:es_maml",
    ),
    Row(
        "ridge",
        "learn an embedding for ridge regression solved in closed form; classes or target values",
        "Bertinetto, Henriques, Torr, Vedaldi 2018, arXiv:1805.08136",
        "headstart.algorithms.heads.ridge:ridge",
    ),
    Row(
        "logistic",
        "learn an embedding for logistic regression solved to the optimum",
        "",
        "headstart.algorithms.heads.kernel_machines:logistic",
    ),
    Row(
        "svm",
        "learn an embedding for a support vector machine solved to the optimum, linear or with a kernel",
        "Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758",
        "headstart.algorithms.heads.kernel_machines:svm",
    ),
    Row(
        "gaussian_process",
        "learn the mean and kernel of a Gaussian process: a mixed-effects model and more, with intervals",
        "Fortuin, Rätsch 2019, arXiv:1901.08098",
        "headstart.algorithms.gaussian.gaussian_process:gaussian_process",
    ),
    Row(
        "dkt",
        "learn a kernel on a network's features for a Gaussian process: deep kernel transfer, with intervals",
        "Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020, arXiv:1910.05199",
        "headstart.algorithms.gaussian.gaussian_process:dkt",
    ),
    Row(
        "alpaca",
        "learn a prior of Bayesian linear regression on a network's features, with intervals",
        "Harrison, Sharma, Pavone 2018, arXiv:1807.08912",
        "headstart.algorithms.gaussian.bayesian_linear:alpaca",
    ),
    Row(
        "cnp",
        "a network reads the support set and answers with a distribution: conditional neural process",
        "Garnelo et al. 2018, arXiv:1807.01613",
        "headstart.algorithms.neural_process.learners:cnp",
    ),
    Row(
        "anp",
        "a neural process whose queries attend to the support set, with a latent variable",
        "Kim et al. 2019, arXiv:1901.05761",
        "headstart.algorithms.neural_process.learners:anp",
    ),
    Row(
        "forest",
        "a random forest: where its trees split is learned across tasks, what its nodes say task by task",
        "after Breiman 2001, doi:10.1023/A:1010933404324; Agarwal et al. 2022, arXiv:2202.00858",
        "headstart.algorithms.forest.learner:forest",
    ),
    Row(
        "search",
        "any estimator with fit and predict: its hyper-parameters are chosen for the family of tasks",
        "",
        "headstart.algorithms.search.learner:search",
    ),
    Row(
        "joint",
        "baseline: train on all tasks pooled, then fine-tune; what a loop of SGD over tasks really does",
        "",
        "headstart.algorithms.baselines:joint",
    ),
    Row(
        "scratch",
        "baseline: fine-tune from random weights, no meta-learning",
        "",
        "headstart.algorithms.baselines:scratch",
    ),
    Row(
        "nearest",
        "baseline: nearest class mean of the raw inputs, no learning at all",
        "",
        "headstart.algorithms.baselines:nearest",
    ),
)

TASKS = (
    Row(
        "sinusoid",
        "regress a sine curve y = A sin(x - p) from K points; A, p and, with --frequency, its frequency differ by task",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.data.curves.sinusoid:sinusoid",
    ),
    Row(
        "curves",
        "regress a sine curve, a line or a quadratic from K noisy points; which of them it is differs by task",
        "Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616",
        "headstart.data.curves.curves:curves",
    ),
    Row(
        "gp_curves",
        "regress curves drawn from a Gaussian process from a few noisy points; the best possible answer is known",
        "Garnelo et al. 2018, arXiv:1807.01613",
        "headstart.data.curves.gp_curves:gp_curves",
    ),
    Row(
        "plateaus",
        "regress functions of several features that are constant on the cells of shared trees",
        "",
        "headstart.data.curves.plateaus:plateaus",
    ),
    Row(
        "icons",
        "tell icons apart: a class is what an icon shows, an image one designer's drawing of it; built in",
        "permissively licensed icon sets, named in the manifest",
        "headstart.data.images.icons:icons",
    ),
    Row(
        "omniglot",
        "tell handwritten characters of 50 alphabets apart",
        "Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050",
        "headstart.data.images.omniglot:omniglot",
    ),
    Row(
        "table",
        "your own table: a CSV or Parquet file with a column that names each row's task",
        "",
        "headstart.data.tables:table",
    ),
    Row(
        "folder",
        "your own images: any folder of class folders",
        "",
        "headstart.data.images.folder:folder",
    ),
)

MODELS = (
    Row(
        "mlp",
        "fully connected layers with ReLU",
        "",
        "headstart.models.mlp:mlp",
    ),
    Row(
        "conv4",
        "four 3x3 convolution blocks and a linear head, the field's standard small network",
        "Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.models.conv4:conv4",
    ),
    Row(
        "resnet12",
        "twelve-layer residual network, larger than conv4",
        "Oreshkin et al. 2018, arXiv:1805.10123; Lee et al. 2019, arXiv:1904.03758",
        "headstart.models.resnet12:resnet12",
    ),
    Row(
        "soft_forest",
        "soft oblivious decision trees, differentiable",
        "after Popov, Morozov, Babenko 2019, arXiv:1909.06312",
        "headstart.models.soft_forest:soft_forest",
    ),
    Row(
        "identity",
        "no network, for heads on the inputs themselves",
        "",
        "headstart.models.identity:identity",
    ),
)

_ROWS: dict[Kind, tuple[Row, ...]] = {"method": METHODS, "task": TASKS, "model": MODELS}


def rows(kind: Kind) -> tuple[Row, ...]:
    """Return the registered methods, tasks or models."""
    return _ROWS[kind]


def find(kind: Kind, name: str) -> Row:
    """Return the row called ``name``, or raise `UnknownNameError` with the nearest names."""
    by_name = {row.name: row for row in _ROWS[kind]}
    if name not in by_name:
        raise unknown_name(kind, name, by_name)
    return by_name[name]


def load(kind: Kind, name: str) -> Any:
    """Import and return the factory called ``name``."""
    module, attribute = find(kind, name).target.split(":")
    return getattr(import_module(module), attribute)
