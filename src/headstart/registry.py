"""What the command line, configurations and contract tests know: one row a method, a model, and so on.

A row declares all that anything above has to know of what it names; every list elsewhere is derived from the rows.
Rows are plain data, so that listing them imports nothing heavy; `load` imports the target. Other packages add rows
by the entry points ``headstart.methods``, ``headstart.models``, ``headstart.tasks``, ``headstart.data`` and
``headstart.trunks``; each names one row.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, NamedTuple, TypeAlias

from headstart.errors import ConfigError, pick

Values: TypeAlias = Mapping[str, Any]
Target: TypeAlias = Literal["classification", "regression"]

CLASSES: tuple[Target, ...] = ("classification",)
NUMBERS: tuple[Target, ...] = ("regression",)


class Method(NamedTuple):
    """A meta-learning method, or a baseline."""

    name: str
    summary: str
    """What it is, in one line."""
    reference: str
    """Authors, year and arXiv id, or the source of the data; empty where there is none."""
    target: str
    """``module:attribute`` of its factory, which returns a `headstart.types.Learner`."""
    targets: tuple[Target, ...] = (*CLASSES, *NUMBERS)
    """What it can predict."""
    model: Literal["predictor", "embedding", "none"] = "predictor"
    """How it uses a network: with a head, without one, or not at all."""
    classes: Literal["trained", "any"] = "trained"
    """Whether a new task has the number of classes that was trained with, or any."""
    outer: bool = True
    """Whether outer steps are taken."""
    transductive: bool = False
    """Whether it reads a task's query set together, so that what it predicts of one depends on the others there."""
    annealed: bool = False
    """Whether steps depend on how many there are to be, so that none can be added to a run."""
    defaults: Mapping[str, Values] = {}
    """Defaults such as ``{"method.steps": 5}`` by kind of data; those of all kinds under ``""``."""
    keras: str = ""
    """``module:attribute`` of its factory for Keras models on TensorFlow; empty where there is none."""


class Model(NamedTuple):
    """A network."""

    name: str
    summary: str
    reference: str
    target: str
    """Its factory takes the shape of an input, and the number of outputs: ``None`` for an embedding."""
    defaults: Values = {}
    """Where runs start from something else than the factory's own defaults."""


class Family(NamedTuple):
    """A family of tasks."""

    name: str
    summary: str
    reference: str
    target: str
    """Its factory returns `headstart.types.Tasks`."""
    kind: str
    """The kind of its data."""
    targets: tuple[Target, ...] = (*CLASSES, *NUMBERS)
    """What its tasks may be to predict: one, where that does not depend on the data."""
    defaults: Values = {}
    options: str = ""
    """``module:attribute`` of what gives the options that its ``sources`` take besides, where it has such."""


class Kind(NamedTuple):
    """A kind of data."""

    name: str
    summary: str
    target: str
    """``module:attribute`` of its `headstart.data.kind.DataKind`."""
    family: str | None = None
    """The family that reads a user's own source of this kind."""
    several: str | None = None
    """The family that takes its tasks from several ``sources`` of this kind."""
    told_by: tuple[str, ...] = ()
    """Options of its family that say, where one is given, that a source is of this kind."""
    methods: tuple[Values, ...] = ({"name": "maml"},)
    """What is trained where nobody names a method: of those that can predict such targets, with the options given, the
    best on the validation tasks."""
    model: str = "mlp"
    compared: tuple[str, ...] = ("maml", "joint", "scratch")
    """What is compared where nobody names methods, as far as they can predict such targets."""
    defaults: Values = {}
    reference: str = ""


class Door(NamedTuple):
    """Where pretrained networks come from."""

    name: str
    summary: str
    target: str
    """``module:attribute`` of what takes what follows the name and a colon, and returns a trunk."""
    usage: str
    """A source as one writes it."""
    reference: str = ""


Row: TypeAlias = Method | Model | Family | Kind | Door
What: TypeAlias = Literal["method", "model", "task", "data", "trunk"]

# chosen on other splits of the panels than are reported; all tasks of a table at once
_ALL_TASKS_AT_ONCE = {"outer.steps": 300, "outer.rate": 0.02, "outer.schedule": "cosine", "outer.tasks_per_step": 128}

# of fine-tuning
_TUNED = {kind: {"method.steps": 20, "method.rate": 0.1} for kind in ("images", "tables")}

# matrices of all pairs of features, and what all tasks share of them, need few
_TEXT_WIDTH: Values = {"texts": {"model.width": 32}}

#: What every run starts from where nothing else is said.
DEFAULTS: Values = {"method.taskmap": "vmap"}

KINDS = (
    Kind(
        "curves",
        "numbers in, numbers out: functions that are seen at a few points",
        "headstart.data.curves.kind:CURVES",
        defaults={"outer.steps": 10_000, "outer.tasks_per_step": 25, "method.steps": 1, "method.rate": 0.01},
    ),
    Kind(
        "images",
        "pictures in folders of classes, such a folder as a zip file, or a CSV file of the columns path and label",
        "headstart.data.images.kind:IMAGES",
        family="folder",
        several="domains",
        model="conv4",
        compared=("maml", "prototypes", "joint", "scratch", "nearest"),
        defaults={"outer.steps": 1000, "outer.tasks_per_step": 4, "method.steps": 5, "method.rate": 0.1},
    ),
    Kind(
        "texts",
        "sentences of classes: a CSV, TSV or JSON lines file of a text and a label, or class folders of .txt files",
        "headstart.data.text.kind:TEXTS",
        family="text",
        told_by=("text",),
        methods=({"name": "prototypes"}, {"name": "alpaca"}),
        model="ngrams",
        compared=("prototypes", "ridge", "logistic", "alpaca", "dkt", "frozen"),
        # chosen on validation classes of BANKING77
        defaults={
            "outer.steps": 150,
            "outer.rate": 0.02,
            "outer.schedule": "cosine",
            "outer.tasks_per_step": 1,
        },
    ),
    Kind(
        "tables",
        "rows of a CSV or Parquet file, with a column that names each row's task",
        "headstart.data.tables.kind:TABLES",
        family="table",
        compared=("gaussian_process", "prototypes", "forest", "maml", "joint", "scratch"),
        # on validation tasks of ten panels, each left out once, the error of what is chosen from them by the others is
        # 0.96 of the first's; with alpaca 1.3 and more, which few validation tasks cannot tell from its good days
        methods=(
            {"name": "gaussian_process"},
            {"name": "gaussian_process", "trend": "quadratic"},
            {"name": "mixed_effects", "trend": "linear"},
            {"name": "mixed_effects", "trend": "quadratic"},
            {"name": "mixed_effects", "trend": "spline"},
            {"name": "prototypes"},
            {"name": "boosted_trees"},
        ),
        defaults={"outer.steps": 500, "outer.tasks_per_step": 16, "method.steps": 5, "method.rate": 0.05},
    ),
)

METHODS = (
    Method(
        "maml",
        "learn initial weights from which a few gradient steps adapt; exact second-order gradient",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.algorithms.maml:maml",
        keras="headstart.integrations.keras.methods:maml",
    ),
    Method(
        "fomaml",
        "MAML with the inner gradients taken as constants: cheaper, not exact",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.algorithms.maml:fomaml",
        keras="headstart.integrations.keras.methods:fomaml",
    ),
    Method(
        "imaml",
        "MAML that stays near the start, differentiated where it comes to rest: memory does not grow with the steps",
        "Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630",
        "headstart.algorithms.imaml:imaml",
        defaults={"": {"method.steps": 16}},
    ),
    Method(
        "anil",
        "MAML whose inner loop moves the head only",
        "Raghu, Raghu, Bengio, Vinyals 2019, arXiv:1909.09157",
        "headstart.algorithms.maml:anil",
        keras="headstart.integrations.keras.methods:anil",
    ),
    Method(
        "boil",
        "MAML whose inner loop moves the body only",
        "Oh, Yoo, Kim, Yun 2020, arXiv:2008.08882",
        "headstart.algorithms.maml:boil",
        keras="headstart.integrations.keras.methods:boil",
    ),
    Method(
        "meta_sgd",
        "MAML that also learns a step size, with sign, for every weight",
        "Li, Zhou, Chen, Li 2017, arXiv:1707.09835",
        "headstart.algorithms.maml:meta_sgd",
        keras="headstart.integrations.keras.methods:meta_sgd",
    ),
    Method(
        "meta_curvature",
        "MAML that also learns the metric in which gradients are followed",
        "Park, Oliva 2019, arXiv:1902.03356",
        "headstart.algorithms.maml:meta_curvature",
    ),
    Method(
        "maml_plus_plus",
        "MAML made stable: rates by layer and step, losses after every step, normalisation by step",
        "Antoniou, Edwards, Storkey 2018, arXiv:1810.09502",
        "headstart.algorithms.maml_plus_plus:maml_plus_plus",
        annealed=True,
        # rates by step mean nothing with a single one
        defaults={"": {"outer.schedule": "cosine"}, "curves": {"method.steps": 5}},
    ),
    Method(
        "alfa",
        "MAML with rates and weight decay generated from the task's own gradients and weights",
        "Baik, Choi, Choi, Kim, Lee 2020, arXiv:2011.00209",
        "headstart.algorithms.maml:alfa",
    ),
    Method(
        "t_net",
        "MAML in a learned metric: linear maps behind the layers, which only the outer loop moves",
        "Lee, Choi 2018, arXiv:1801.05558",
        "headstart.algorithms.warp:t_net",
    ),
    Method(
        "mt_net",
        "T-net that also learns which units adaptation may move",
        "Lee, Choi 2018, arXiv:1801.05558",
        "headstart.algorithms.warp:mt_net",
    ),
    Method(
        "warp_grad",
        "MAML through warp layers, learned along the way of adaptation by the outer loop alone",
        "Flennerhag, Rusu, Pascanu, Visin, Yin, Hadsell 2019, arXiv:1909.00025",
        "headstart.algorithms.warp:warp_grad",
    ),
    Method(
        "cavia",
        "a task moves a few context parameters only; the network is learned across tasks",
        "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2018, arXiv:1810.03642",
        "headstart.algorithms.context:cavia",
        # what moves is not weights, so the rate is of another kind
        defaults={"curves": {"method.rate": 0.1}, "tables": {"method.rate": 0.1}, "images": {"method.rate": 1.0}},
    ),
    Method(
        "mmaml",
        "a task's examples modulate the layers before MAML's steps, for families of several kinds of task",
        "Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616",
        "headstart.algorithms.modulation:mmaml",
    ),
    Method(
        "l2f",
        "MAML from initial weights that are attenuated for each task, layer by layer",
        "Baik, Hong, Lee 2019, arXiv:1906.05895",
        "headstart.algorithms.attenuation:l2f",
    ),
    Method(
        "proto_maml",
        "MAML whose head starts as the prototype classifier of the task",
        "Triantafillou et al. 2019, arXiv:1903.03096",
        "headstart.algorithms.proto_maml:proto_maml",
        targets=CLASSES,
    ),
    Method(
        "aware",
        "reads the model and proposes what to learn about it: start, rates, geometry, objective",
        "",
        "headstart.algorithms.aware:aware",
        annealed=True,
        defaults={"": {"outer.schedule": "cosine"}},
    ),
    Method(
        "reptile",
        "move the initial weights towards each task's adapted weights; no second derivatives",
        "Nichol, Achiam, Schulman 2018, arXiv:1803.02999",
        "headstart.algorithms.reptile:reptile",
        defaults={
            "": {"outer.optimizer": "sgd", "outer.rate": 1.0, "outer.schedule": "linear"},
            "curves": {"method.steps": 10, "method.rate": 0.02},
            "tables": {"method.steps": 10, "method.rate": 0.02},
            "images": {"method.rate": 0.001},
        },
        keras="headstart.integrations.keras.methods:reptile",
    ),
    Method(
        "prototypes",
        "learn an embedding in which the nearest class mean is right (prototypical networks)",
        "Snell, Swersky, Zemel 2017, arXiv:1703.05175",
        "headstart.algorithms.prototypes:prototypes",
        targets=CLASSES,
        model="embedding",
        classes="any",
        defaults={"texts": {"method.distance": "cosine"}},
        keras="headstart.integrations.keras.heads:prototypes",
    ),
    Method(
        "matching_networks",
        "learn an embedding in which attention over the support examples is right (matching networks)",
        "Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080",
        "headstart.algorithms.matching_networks:matching_networks",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "relation_networks",
        "learn an embedding, and a network that compares queries to classes in it (relation networks)",
        "Sung, Yang, Zhang, Xiang, Torr, Hospedales 2017, arXiv:1711.06025",
        "headstart.algorithms.relation_networks:relation_networks",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "meta_baseline",
        "pre-train the embedding on all training classes at once, then train it on tasks, by cosine class means",
        "Chen, Liu, Xu, Darrell, Wang 2020, arXiv:2003.04390",
        "headstart.algorithms.pooled_classes:meta_baseline",
        targets=CLASSES,
        model="embedding",
        classes="any",
        annealed=True,
    ),
    Method(
        "simple_shot",
        "pre-train on all training classes at once; a task's nearest class mean of centred features of length 1",
        "Wang, Chao, Weinberger, van der Maaten 2019, arXiv:1911.04623",
        "headstart.algorithms.simple_shot:simple_shot",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "linear_probe",
        "pre-train on all training classes at once; a task's linear classifier on features that stay (Baseline)",
        "Chen, Liu, Kira, Wang, Huang 2019, arXiv:1904.04232",
        "headstart.algorithms.fine_tuning:linear_probe",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "baseline_plus_plus",
        "pre-train on all training classes at once; a task's cosine classifier on features that stay",
        "Chen, Liu, Kira, Wang, Huang 2019, arXiv:1904.04232",
        "headstart.algorithms.fine_tuning:baseline_plus_plus",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "fine_tuning",
        "pre-train on all training classes at once; fine-tune weights, a block or low-rank additions on a task",
        "",
        "headstart.algorithms.fine_tuning:fine_tuning",
        targets=CLASSES,
        model="embedding",
        classes="any",
        defaults=_TUNED,
    ),
    Method(
        "label_propagation",
        "pre-train on all training classes at once; labels spread to a task's queries over a graph of neighbours",
        "Zhou, Bousquet, Lal, Weston, Schölkopf 2003 (NIPS 16)",
        "headstart.algorithms.transduction:label_propagation",
        targets=CLASSES,
        model="embedding",
        classes="any",
        transductive=True,
    ),
    Method(
        "bd_cspn",
        "pre-train a cosine classifier on all training classes; class means that take in a task's sure queries",
        "Liu, Song, Qin 2020, arXiv:1911.10713",
        "headstart.algorithms.transduction:bd_cspn",
        targets=CLASSES,
        model="embedding",
        classes="any",
        transductive=True,
    ),
    Method(
        "es_maml",
        "MAML by an evolution strategy: no outer derivative, so nothing needs to have one",
        "Song, Gao, Yang, Choromanski, Pacchiano, Tang 2019, arXiv:1910.01215",
        "headstart.algorithms.evolution:es_maml",
    ),
    Method(
        "ridge",
        "learn an embedding for ridge regression solved in closed form; classes or target values",
        "Bertinetto, Henriques, Torr, Vedaldi 2018, arXiv:1805.08136",
        "headstart.algorithms.heads.ridge:ridge",
        model="embedding",
        classes="any",
        keras="headstart.integrations.keras.heads:ridge",
    ),
    Method(
        "logistic",
        "learn an embedding for logistic regression solved to the optimum",
        "",
        "headstart.algorithms.heads.kernel_machines:logistic",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "svm",
        "learn an embedding for a support vector machine solved to the optimum, linear or with a kernel",
        "Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758",
        "headstart.algorithms.heads.kernel_machines:svm",
        targets=CLASSES,
        model="embedding",
        classes="any",
    ),
    Method(
        "gaussian_process",
        "learn the mean and kernel of a Gaussian process: a mixed-effects model and more, with intervals",
        "Fortuin, Rätsch 2019, arXiv:1901.08098",
        "headstart.algorithms.gaussian_process:gaussian_process",
        targets=NUMBERS,
        model="none",
        defaults={
            "curves": {"outer.steps": 1000, "outer.rate": 0.01, "outer.schedule": "cosine"},
            "tables": _ALL_TASKS_AT_ONCE,
        },
    ),
    Method(
        "dkt",
        "learn a kernel on a network's features for a Gaussian process: deep kernel transfer, with intervals",
        "Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020, arXiv:1910.05199",
        "headstart.algorithms.gaussian_process:dkt",
        targets=NUMBERS,
        model="embedding",
        defaults=_TEXT_WIDTH,
    ),
    Method(
        "alpaca",
        "learn a prior of Bayesian linear regression on a network's features, with intervals",
        "Harrison, Sharma, Pavone 2018, arXiv:1807.08912",
        "headstart.algorithms.bayesian_linear:alpaca",
        targets=NUMBERS,
        model="embedding",
        defaults={"tables": _ALL_TASKS_AT_ONCE, **_TEXT_WIDTH},
    ),
    Method(
        "cnp",
        "a network reads the support set and answers with a distribution: conditional neural process",
        "Garnelo et al. 2018, arXiv:1807.01613",
        "headstart.algorithms.neural_process:cnp",
        targets=NUMBERS,
        model="none",
        defaults={"": {"outer.schedule": "cosine"}, "curves": {"outer.steps": 20_000}, "tables": {"outer.steps": 500}},
    ),
    Method(
        "anp",
        "a neural process whose queries attend to the support set, with a latent variable",
        "Kim et al. 2019, arXiv:1901.05761",
        "headstart.algorithms.neural_process:anp",
        targets=NUMBERS,
        model="none",
        defaults={"": {"outer.schedule": "cosine"}, "curves": {"outer.steps": 10_000}, "tables": {"outer.steps": 500}},
    ),
    Method(
        "forest",
        "a random forest: where its trees split is learned across tasks, what its nodes say task by task",
        "after Breiman 2001, doi:10.1023/A:1010933404324; Agarwal et al. 2022, arXiv:2202.00858",
        "headstart.algorithms.forest:forest",
        model="none",
        defaults={
            "curves": {"outer.steps": 200, "outer.rate": 0.01},
            "tables": {"outer.steps": 100, "outer.rate": 0.01},
        },
    ),
    Method(
        "search",
        "any estimator with fit and predict: its hyper-parameters are chosen for the family of tasks",
        "",
        "headstart.algorithms.search:search",
        model="none",
        outer=False,
    ),
    Method(
        "mixed_effects",
        "linear mixed-effects model of a table: an intercept and a trend of its own for each task, with intervals",
        "Laird, Ware 1982, doi:10.2307/2529876",
        "headstart.algorithms.table_baselines.mixed_effects:mixed_effects",
        targets=NUMBERS,
        model="none",
        outer=False,
    ),
    Method(
        "boosted_trees",
        "gradient-boosted trees on the features and what a task's support rows come to",
        "Friedman 2001, doi:10.1214/aos/1013203451",
        "headstart.algorithms.table_baselines.pooled:boosted_trees",
        model="none",
        outer=False,
    ),
    Method(
        "task_category",
        "baseline: one model of all rows, with the task as a category, fitted anew for every new task",
        "",
        "headstart.algorithms.table_baselines.pooled:task_category",
        model="none",
        outer=False,
    ),
    Method(
        "pooled",
        "baseline: one model of all training tasks' rows, the same for every new task",
        "",
        "headstart.algorithms.table_baselines.pooled:pooled",
        model="none",
        outer=False,
    ),
    Method(
        "one_model_per_task",
        "baseline: a model of each task's own rows alone",
        "",
        "headstart.algorithms.table_baselines.per_task:one_model_per_task",
        targets=NUMBERS,
        model="none",
        outer=False,
    ),
    Method(
        "joint",
        "baseline: train on all tasks pooled, then fine-tune; what a loop of SGD over tasks really does",
        "",
        "headstart.algorithms.baselines:joint",
        # the best of a small grid on validation tasks of icons, so that the baseline is not made to look weak
        defaults={"images": {"method.steps": 20, "method.rate": 0.5}},
    ),
    Method(
        "scratch",
        "baseline: fine-tune from random weights, no meta-learning",
        "",
        "headstart.algorithms.baselines:scratch",
        outer=False,
        defaults={"images": {"method.steps": 20, "method.rate": 0.5}},  # as for joint
    ),
    Method(
        "frozen",
        "baseline: class means on the network as it starts, which for n-grams of texts is TF-IDF",
        "",
        "headstart.algorithms.frozen:frozen",
        targets=CLASSES,
        model="embedding",
        classes="any",
        outer=False,
    ),
    Method(
        "nearest",
        "baseline: nearest class mean of the raw inputs, no learning at all",
        "",
        "headstart.algorithms.prototypes:nearest",
        targets=CLASSES,
        model="none",
        classes="any",
        outer=False,
    ),
)

TASKS = (
    Family(
        "sinusoid",
        "regress a sine curve y = A sin(x - p) from K points; A, p and, if asked, its frequency differ by task",
        "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.data.curves.sinusoid:sinusoid",
        kind="curves",
    ),
    Family(
        "curves",
        "regress a sine curve, a line or a quadratic from K noisy points; which of them it is differs by task",
        "Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616",
        "headstart.data.curves.curves:curves",
        kind="curves",
        # the best rate for maml and mmaml alike, of four on validation tasks
        defaults={"method.steps": 5, "method.rate": 0.005},
    ),
    Family(
        "gp_curves",
        "regress curves drawn from a Gaussian process from a few noisy points; the best possible answer is known",
        "Garnelo et al. 2018, arXiv:1807.01613",
        "headstart.data.curves.gp_curves:gp_curves",
        kind="curves",
        defaults={"method.steps": 5, "outer.tasks_per_step": 16},
    ),
    Family(
        "plateaus",
        "regress functions of several features that are constant on the cells of shared trees",
        "",
        "headstart.data.curves.plateaus:plateaus",
        kind="curves",
        defaults={"outer.steps": 2000},
    ),
    Family(
        "icons",
        "tell icons apart: a class is what an icon shows, an image one designer's drawing of it; built in",
        "permissively licensed icon sets, named in the manifest",
        "headstart.data.images.icons:icons",
        kind="images",
        targets=CLASSES,
    ),
    Family(
        "emoji",
        "tell emoji apart, in colour: an image is one designer's drawing of a character; built in",
        "permissively licensed and CC-BY emoji sets, named in the manifest",
        "headstart.data.images.emoji:emoji",
        kind="images",
        targets=CLASSES,
    ),
    Family(
        "flags",
        "tell flags of countries and territories apart, in colour, as several designers draw them; built in",
        "permissively licensed and CC-BY flag sets, named in the manifest",
        "headstart.data.images.flags:flags",
        kind="images",
        targets=CLASSES,
    ),
    Family(
        "omniglot",
        "tell handwritten characters of 50 alphabets apart",
        "Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050",
        "headstart.data.images.omniglot:omniglot",
        kind="images",
        targets=CLASSES,
        defaults={"tasks.queries": 5},
    ),
    Family(
        "table",
        "your own table: a CSV or Parquet file with a column that names each row's task",
        "",
        "headstart.data.tables.table:table",
        kind="tables",
    ),
    Family(
        "text",
        "your own texts: a file of texts and labels, or class folders of .txt files",
        "",
        "headstart.data.text.text:text",
        kind="texts",
    ),
    Family(
        "banking77",
        "tell 77 intents of a bank's customers apart, from its two files",
        "Casanueva, Temčinas, Gerz, Henderson, Vulić 2020, arXiv:2003.04807",
        "headstart.data.text.banking77:banking77",
        kind="texts",
        targets=CLASSES,
    ),
    Family(
        "clinc150",
        "tell 150 intents of an assistant's users apart, from its file",
        "Larson et al. 2019, arXiv:1909.02027",
        "headstart.data.text.clinc150:clinc150",
        kind="texts",
        targets=CLASSES,
    ),
    Family(
        "folder",
        "your own images: any folder of class folders",
        "",
        "headstart.data.images.folder:folder",
        kind="images",
        targets=CLASSES,
    ),
    Family(
        "domains",
        "several sources of images at once: each task is of one of them",
        "after Triantafillou et al. 2019, arXiv:1903.03096",
        "headstart.data.images.domains:domains",
        kind="images",
        targets=CLASSES,
        options="headstart.data.images.domains:options_of_sources",
    ),
)

MODELS = (
    Model("mlp", "fully connected layers with ReLU", "", "headstart.models.mlp:mlp"),
    Model(
        "conv4",
        "four 3x3 convolution blocks and a linear head, the field's standard small network",
        "Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        "headstart.models.conv4:conv4",
        defaults={"filters": 32, "downsample": "stride"},
    ),
    Model(
        "resnet12",
        "twelve-layer residual network, larger than conv4",
        "Oreshkin et al. 2018, arXiv:1805.10123; Lee et al. 2019, arXiv:1904.03758",
        "headstart.models.resnet12:resnet12",
    ),
    Model(
        "soft_forest",
        "soft oblivious decision trees, differentiable",
        "after Popov, Morozov, Babenko 2019, arXiv:1909.06312",
        "headstart.models.soft_forest:soft_forest",
    ),
    Model(
        "ngrams",
        "hashed n-grams of letters and words, weighted: a learned TF-IDF",
        "Weinberger et al. 2009, arXiv:0902.2206",
        "headstart.models.ngrams:ngrams",
    ),
    Model(
        "transformer",
        "a small transformer of the bytes of a text",
        "Vaswani et al. 2017, arXiv:1706.03762",
        "headstart.models.transformer:transformer",
    ),
    Model(
        "projection",
        "a linear map of a pretrained network's features that starts as no change at all",
        "",
        "headstart.models.projection:projection",
    ),
    Model(
        "trunk",
        "a pretrained network of which a part is learned: low-rank adapters, or the last blocks",
        "Hu et al. 2021, arXiv:2106.09685",
        "headstart.algorithms.tuned:trunk",
    ),
    Model(
        "convolution",
        "a small convolutional network of the bytes of a text",
        "after Zhang, Zhao, LeCun 2015, arXiv:1509.01626",
        "headstart.models.convolution:convolution",
    ),
    Model("identity", "no network, for heads on the inputs themselves", "", "headstart.models.identity:identity"),
)

TRUNKS = (
    Door("hf", "a folder of transformers or sentence-transformers", "headstart.models.trunks.hf:hf", "hf:FOLDER"),
    Door("timm", "timm's image networks", "headstart.models.trunks.timm:timm", "timm:NAME"),
    Door(
        "torchvision",
        "torchvision's image networks",
        "headstart.models.trunks.torchvision:torchvision",
        "torchvision:NAME",
    ),
    Door("onnx", "an ONNX file, frozen", "headstart.models.trunks.onnx:onnx", "onnx:FILE"),
    Door("py", "a function of your own that returns one", "headstart.models.trunks.py:py", "FILE.py:factory"),
)

#: A kind of data whose examples are a pretrained network's features has these instead of its own.
ENCODED: Values = {
    "methods": ({"name": "prototypes"}, {"name": "alpaca"}),
    "model": "projection",
    "compared": ("prototypes", "ridge", "logistic", "alpaca", "dkt", "nearest"),
    "defaults": {
        "method.distance": "cosine",
        "outer.steps": 300,
        "outer.tasks_per_step": 8,
        "outer.rate": 0.0003,
        "outer.schedule": "cosine",
    },
}
#: And one whose examples are a pretrained network's inputs these.
TUNED: Values = {
    **ENCODED,
    "model": "trunk",
    "compared": ("prototypes", "ridge", "alpaca", "anil"),
    "defaults": {**ENCODED["defaults"], "outer.tasks_per_step": 1, "method.taskmap": "loop"},
}

_ROWS: dict[What, tuple[Row, ...]] = {
    "method": METHODS,
    "model": MODELS,
    "task": TASKS,
    "data": KINDS,
    "trunk": TRUNKS,
}


@cache
def rows(what: What) -> tuple[Any, ...]:
    """Return the registered methods, models, families, kinds of data or doors; those of other packages last.

    Raises:
        ConfigError: an entry point of another package does not name such a row, or one of a name that is taken.
    """
    found, kind = list(_ROWS[what]), type(_ROWS[what][0])
    group = "headstart.data" if what == "data" else f"headstart.{what}s"
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        told = f"the entry point {point.name!r} of {group}"
        try:
            row = point.load()
        except Exception as error:  # whatever another package does when it is imported
            raise ConfigError(f"{told} cannot be loaded: {error!r}") from error
        if not isinstance(row, kind):
            raise ConfigError(f"{told} gives {type(row).__name__}; expected a headstart.registry.{kind.__name__}")
        if any(other.name == row.name and other != row for other in found):
            raise ConfigError(f"{told} takes the name {row.name!r} again")
        found += [] if row in found else [row]
    return tuple(found)


def find(what: What, name: str) -> Any:
    """Return the row called ``name``, or raise `UnknownNameError` with the nearest names."""
    told = {"task": "tasks", "data": "kind of data"}.get(what, what)
    return pick(told, name, {row.name: row for row in rows(what)})


def load(what: What, name: str) -> Any:
    """Import and return what the row called ``name`` stands for."""
    return load_target(name, find(what, name).target)


def load_target(row: str, target: str) -> Any:
    """Import and return what a row says to be at ``module:attribute``."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (AttributeError, ImportError, ValueError) as error:
        raise ConfigError(f"the row {row!r} cannot be loaded from {target!r} (module:name): {error}") from error


def keras_methods() -> dict[str, Method]:
    """Return the methods that exist for Keras models, by name."""
    return {row.name: row for row in rows("method") if row.keras}


def default_method(kind: Kind, target: Target) -> str:
    """Return the first that is trained where nobody names a method.

    >>> [default_method(find("data", "tables"), target) for target in ("regression", "classification")]
    ['gaussian_process', 'prototypes']
    """
    names = [str(method["name"]) for method in kind.methods]
    return next(name for name in names if target in find("method", name).targets)
