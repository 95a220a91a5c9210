"""Heads on a Keras embedding that are fitted anew to each task in closed form: class means, and ridge regression."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from headstart.errors import ShapeError, UsageError, check_known
from headstart.integrations.keras import losses
from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.clones import head_model
from headstart.integrations.keras.forward import QUERY_DRAW, Buffers, functional
from headstart.integrations.keras.learner import Learner, backprop, tensors
from headstart.integrations.keras.task_map import TaskMap, TaskMapName
from headstart.schema import extends
from headstart.types import Adapted, Batch, Episodes, Info, Meta

Distance = Literal["euclidean", "cosine"]
RidgeLoss = Literal["cross_entropy", "mse"]


class Head(NamedTuple):
    """A head that is fitted in closed form."""

    structure: Mapping[str, float]
    """M: where its numbers start."""
    fit: Callable[[Mapping[str, Any], Any, Batch], dict[str, Any]]
    """``(M, features (B, n, d), support) -> what it learned``; a classifier says its ``counts`` ``(B, ways)``, too."""
    outputs: Callable[[Mapping[str, Any], Mapping[str, Any], Any], Any]
    """``(M, what it learned, features (B, m, d)) -> outputs (B, m, *outputs)``."""
    dense: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Any, Any]] | None
    """``(M, what it learned by one task) -> the kernel and bias`` of a dense layer that says the same, or ``None``."""
    loss: losses.TaskLoss


def embedding(
    model: Any,
    head: Head,
    *,
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    training: bool = True,
) -> Learner:
    """Return the learner that fits ``head`` to each task's support set, on the outputs of ``model``.

    Args:
        model: a built ``keras.Model`` that gives features, which are flattened.
        head: what is fitted on them.
        taskmap: how the tasks of a step go through the model: at once (``"vectorized"``), one by one (``"loop"``), one
            by one in a loop of the graph (``"while"``), or at once where all of its operations can be, and else one by
            one (``"auto"``).
        buffers: what `BatchNormalization` goes by: the batch at hand (``"batch"``: support and query sets each by
            their own statistics), the model's (``"frozen"``), or those of each task's support set (``"task"``).
        training: whether meta-training runs the model in training mode, in which dropout drops.
    """
    # no gradient is taken of a gradient, so it need not have a second derivative
    function = functional(model, taskmap=taskmap, buffers=buffers, training=training, check=False)

    def init(seed: int = 0) -> Meta:
        params = {name: tf.convert_to_tensor(variable) for name, variable in function.params.items()}
        dtype = next(iter(params.values())).dtype if params else tf.as_dtype(model.compute_dtype)
        return Meta(params, {name: tf.constant(value, dtype) for name, value in head.structure.items()})

    def features(meta: Meta, own: Any, x: Any, seed: Any, draw: int, phase: Any) -> tuple[Any, Any]:
        outputs, own, _ = function.apply(meta.params, own, x, seed=seed, draw=draw, phase=phase)
        if not tf.is_tensor(outputs):
            raise ShapeError(f"an embedding gives one output, and the model gives {len(outputs)}")
        width = math.prod(outputs.shape[2:])
        return tf.reshape(outputs, [*_sizes(outputs), width]), own

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = tensors(support)
        if support.mask is not None and (where := function.batch_statistics):
            raise UsageError(
                f"tasks have different numbers of examples, and the layer at {where!r} normalises by all of them, "
                "padding included; use LayerNormalization or GroupNormalization, or buffers='frozen'"
            )
        tasks = _sizes(tf.nest.flatten(support.y)[0])[0]
        own = {
            name: tf.tile(tf.convert_to_tensor(v)[None], [tasks, *[1] * len(v.shape)])
            for name, v in function.own.items()
        }
        found, own = features(meta, own, support.x, support.seed, 0, "support")
        if support.mask is not None:
            found = tf.where(support.mask[..., None], found, tf.zeros_like(found))
        return Adapted(meta, head.fit(meta.structure, found, support), own, support.seed), Info(
            tf.zeros([0, tasks], found.dtype)
        )

    def predict(adapted: Adapted, x: Any) -> Any:
        found, _ = features(adapted.meta, adapted.buffers, x, adapted.seed, QUERY_DRAW, "query")
        outputs = head.outputs(adapted.meta.structure, adapted.params, found)
        counts = adapted.params.get("counts")
        if counts is None:
            return outputs
        # a class without a support example is never predicted
        absent = (counts == 0)[:, None] & (tf.reduce_sum(counts, 1) > 0)[:, None, None]
        return tf.where(absent, tf.constant(-math.inf, outputs.dtype), outputs)

    def to_model(adapted: Adapted, x: Any) -> Any:
        if head.dense is None:
            raise UsageError("distance='cosine' is no layer of an ordinary model; take distance='euclidean'")
        kernel, bias = head.dense(adapted.meta.structure, {name: v[0] for name, v in adapted.params.items()})
        return head_model(function, adapted.meta.params, adapted.buffers, x, kernel, bias)

    def look(episodes: Episodes) -> None:
        support, query = map(tensors, episodes)
        m = init().structure
        dtype = next(iter(m.values())).dtype if m else tf.as_dtype(model.compute_dtype)
        blank, asked = (tf.zeros([*_sizes(part.y), 1], dtype) for part in (support, query))
        head.loss(head.outputs(m, head.fit(m, blank, support), asked), query)

    def shown(meta: Meta) -> dict[str, Any]:
        return {n.replace("log_", ""): tf.exp(v) if n.startswith("log_") else v for n, v in meta.structure.items()}

    return Learner(init, adapt, predict, head.loss, backprop, to_model, look, shown=shown)


def _sizes(value: Any) -> list[Any]:
    """Return B and n, as numbers where they are known."""
    return [size if size is not None else tf.shape(value)[place] for place, size in enumerate(value.shape[:2])]


@extends(embedding, without=("head",))
def prototypes(
    model: Any,
    *,
    distance: Distance = "euclidean",
    ways: int | None = None,
    loss: Any = "cross_entropy",
    **options: Any,
) -> Learner:
    """Learn an embedding f in which the nearest class mean is right.

    c_k = mean of f(x) over the support examples of class k; the logit of class k for a query x is −‖f(x) − c_k‖²
    (``"euclidean"``), or τ · cos(f(x), c_k) (``"cosine"``) with the scale τ learned in M, from 10.

    Args:
        model: the embedding f, its outputs flattened.
        distance: how far a query is from a class mean: ``"euclidean"`` as in the paper, or ``"cosine"``.
        ways: number of classes; by default the largest support label plus one.
        loss: of class ids and logits.
        options: those of `embedding`.

    Reference: Snell, Swersky, Zemel 2017, arXiv:1703.05175; cosine: Gidaris, Komodakis 2018, arXiv:1804.09458.
    """
    check_known("distance", distance, get_args(Distance))

    def fit(m: Mapping[str, Any], features: Any, support: Batch) -> dict[str, Any]:
        member = members(features, support, ways)
        counts = tf.reduce_sum(member, 1)
        means = tf.linalg.matmul(member, features, transpose_a=True) / tf.maximum(counts, 1)[..., None]
        return {"prototypes": means, "counts": counts}

    def outputs(m: Mapping[str, Any], fitted: Mapping[str, Any], features: Any) -> Any:
        centres = fitted["prototypes"]
        if distance == "cosine":
            queries, keys = (tf.math.l2_normalize(v, -1) for v in (features, centres))
            return m["scale"] * tf.linalg.matmul(queries, keys, transpose_b=True)
        return -tf.reduce_sum(tf.math.squared_difference(features[:, :, None], centres[:, None]), -1)

    def dense(m: Mapping[str, Any], fitted: Mapping[str, Any]) -> tuple[Any, Any]:
        # −‖f − c‖² up to ‖f‖², which all classes share
        centres = fitted["prototypes"]
        absent = (fitted["counts"] == 0) & (tf.reduce_sum(fitted["counts"]) > 0)
        bias = tf.where(absent, tf.constant(-math.inf, centres.dtype), -tf.reduce_sum(tf.square(centres), -1))
        return 2 * tf.transpose(centres), bias

    euclidean = distance == "euclidean"
    head = Head({} if euclidean else {"scale": 10.0}, fit, outputs, dense if euclidean else None, losses.resolve(loss))
    return embedding(model, head, **options)


@extends(embedding, without=("head",))
def ridge(
    model: Any,
    *,
    ways: int | None = None,
    loss: Any = "cross_entropy",
    regularisation: float = 1.0,
    scale: float = 1.0,
    **options: Any,
) -> Learner:
    """Learn an embedding on which ridge regression, solved exactly for each task, is right.

    With the support features X ``(n, d)`` and targets Y, W = (XᵀX + λI)⁻¹ XᵀY; where n < d, by Woodbury's identity,
    W = Xᵀ(XXᵀ + λI)⁻¹ Y. λ is learned in M, by its logarithm. For classes Y is one-hot, and the logits of a query x are
    α xW + β, with α and β learned in M. For targets (floats) X and Y are centred, and the outputs are (x − x̄) W + ȳ.

    Args:
        model: the embedding, its outputs flattened.
        ways: number of classes; by default the largest support label plus one.
        loss: of class ids and logits, or of numbers: what is fitted goes by the targets' type.
        regularisation: where the penalty λ starts, which is learned.
        scale: where the scale α of the logits starts, which is learned.
        options: those of `embedding`.

    Reference: Bertinetto, Henriques, Torr, Vedaldi 2018, arXiv:1805.08136.
    """
    if not (regularisation > 0 and scale > 0):
        raise UsageError(f"ridge starts from λ and α above 0, got regularisation {regularisation} and scale {scale}")
    of_ids = losses.is_of_class_ids(loss)

    def fit(m: Mapping[str, Any], features: Any, support: Batch) -> dict[str, Any]:
        y: Any = support.y
        classes = not y.dtype.is_floating
        if of_ids and not classes:
            raise UsageError(
                f"y holds numbers ({y.dtype.name}), to which ridge fits a regression, and the loss is of class ids: "
                "give labels as integers, y.astype('int64'), or take loss='mse'"
            )
        targets = members(features, support, ways) if classes else tf.cast(y, features.dtype)
        flat = (
            targets
            if targets.shape.rank == 3
            else tf.reshape(targets, [*_sizes(targets), math.prod(targets.shape[2:])])
        )
        weights, offset = _solve(features, flat, support.mask, tf.exp(m["log_regularisation"]), not classes)
        found = {"weights": weights, "offset": offset}
        return {**found, "counts": tf.reduce_sum(targets, 1)} if classes else found

    def outputs(m: Mapping[str, Any], fitted: Mapping[str, Any], features: Any) -> Any:
        weights = tf.cast(fitted["weights"], features.dtype)
        values = tf.linalg.matmul(features, weights) + tf.cast(fitted["offset"], features.dtype)[:, None]
        return tf.exp(m["log_scale"]) * values + m["bias"] if "counts" in fitted else values

    def dense(m: Mapping[str, Any], fitted: Mapping[str, Any]) -> tuple[Any, Any]:
        kernel, bias = fitted["weights"], fitted["offset"]
        if "counts" not in fitted:
            return kernel, bias
        bias = tf.exp(m["log_scale"]) * bias + m["bias"]
        absent = (fitted["counts"] == 0) & (tf.reduce_sum(fitted["counts"]) > 0)
        return tf.exp(m["log_scale"]) * kernel, tf.where(absent, tf.constant(-math.inf, bias.dtype), bias)

    structure = {"log_regularisation": math.log(regularisation), "log_scale": math.log(scale), "bias": 0.0}
    return embedding(model, Head(structure, fit, outputs, dense, losses.resolve(loss)), **options)


def members(features: Any, support: Batch, ways: int | None) -> Any:
    """Return the labels as ``(B, n, ways)``, with the features' type; nothing but 0 where an example is masked out.

    Raises:
        ShapeError: labels that are not integers, or not one an example.
    """
    y: Any = losses.numbers(support.y)
    if y.dtype.is_floating or y.shape.rank != 2:
        raise ShapeError(
            f"a classifier needs integer labels (tasks, examples); got y {tuple(y.shape)} of {y.dtype.name}"
        )
    y = tf.cast(y, tf.int64) if ways is None else losses.class_ids(y, ways)
    count = tf.reduce_max(y) + 1 if ways is None else ways
    member = tf.one_hot(y, tf.cast(count, tf.int32), dtype=features.dtype)
    return member if support.mask is None else member * tf.cast(support.mask, features.dtype)[..., None]


def _solve(features: Any, targets: Any, mask: Any, penalty: Any, centred: bool) -> tuple[Any, Any]:
    """Return the weights ``(B, d, k)`` and offsets ``(B, k)`` of ridge regression, solved in double precision."""
    kept = features.dtype
    features, targets, penalty = (tf.cast(v, tf.float64) for v in (features, targets, penalty))
    here = tf.ones_like(features[..., :1]) if mask is None else tf.cast(mask, tf.float64)[..., None]
    features, targets = features * here, targets * here
    count = tf.maximum(tf.reduce_sum(here, 1, keepdims=True), 1)
    middle, level = (tf.reduce_sum(v, 1, keepdims=True) / count for v in (features, targets))
    if centred:
        features, targets = (features - middle) * here, (targets - level) * here
    examples, width = features.shape[1:]
    if examples is not None and examples < width:
        inverse = _regularised(tf.linalg.matmul(features, features, transpose_b=True), targets, penalty)
        weights = tf.linalg.matmul(features, inverse, transpose_a=True)
    else:
        right = tf.linalg.matmul(features, targets, transpose_a=True)
        weights = _regularised(tf.linalg.matmul(features, features, transpose_a=True), right, penalty)
    offset = level - tf.linalg.matmul(middle, weights) if centred else tf.zeros_like(level)
    return tf.cast(weights, kept), tf.cast(offset[:, 0], kept)


def _regularised(matrix: Any, right: Any, penalty: Any) -> Any:
    """Return (A + λI)⁻¹ R for positive semidefinite A ``(B, n, n)`` and R ``(B, n, k)``."""
    size = tf.shape(matrix)[-1]
    # a smaller penalty is lost in the rounding of A, and A + λI may have no Cholesky factor
    rounding = 4 * tf.cast(size, tf.float64) * 2.2e-16 * tf.linalg.trace(tf.stop_gradient(matrix))
    least = tf.maximum(penalty, rounding)[:, None, None]
    lower = tf.linalg.cholesky(matrix + least * tf.eye(size, dtype=tf.float64))
    return tf.linalg.cholesky_solve(lower, right)
