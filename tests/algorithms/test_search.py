import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from headstart.algorithms import estimators
from headstart.algorithms.search import KINDS, Choice, Integer, LogUniform, Uniform, best_of, loaded, search
from headstart.core import losses
from headstart.data.rows import Rows, row_tasks
from headstart.errors import ConfigError, FileError, ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch

EVERY = [(loss, name) for loss, kinds in KINDS.items() for name in kinds]
CLASSES = {"inputs": 2, "outputs": 3, "loss": "cross_entropy"}


class Constant:
    """An estimator of one's own: a share of the mean target."""

    def __init__(self, share=1.0):
        self.share = share

    def fit(self, x, y):
        self.mean = y.mean(0)
        return self

    def predict(self, x):
        return np.full(len(x), self.share * self.mean)


def constant(**options):
    space = {"share": Uniform(-1.0, 2.0, 0.0)}
    return search(Constant, space=space, inputs=1, loss="mse", **{"trials": 12, "tasks_per_trial": 3, **options})


def shifted(seed=0):
    """Tasks whose targets are one number each, so that the best share of the support rows' mean is 1."""
    task = torch.arange(60) // 6
    rows = Rows(torch.zeros(60, 1), (task.float() - 3).unsqueeze(1), task, tuple("abcdefghij"))
    return row_tasks(rows, {"train": range(6), "validation": (6, 7), "test": (8, 9)}, support=3, seed=seed)


def decoded(learner, meta):
    return {name: value.item() for name, value in learner.shown(meta).items()}


@pytest.mark.parametrize(("loss", "name"), EVERY)
def test_every_named_estimator_keeps_the_contract(loss, name):
    episodes = random_episodes((2,), regression=loss == "mse", tasks=2, support=6)
    learner = search(name, inputs=2, outputs=3, loss=loss, dtype=torch.float64)
    if name == "random_forest":
        space = {"min_samples_leaf": Integer(1, 2, 1), "n_estimators": Integer(1, 10, 3)}
        learner = search(name, inputs=2, outputs=3, loss=loss, space=space, dtype=torch.float64)
    check_learner(learner, episodes)


@pytest.mark.parametrize(("loss", "name"), EVERY)
def test_the_start_is_the_estimator_s_own_defaults(loss, name):
    if name == "gaussian_process":
        pytest.skip("its own default has no noise")
    outputs = 1 if (loss, name) == ("mse", "svm") else 3
    episodes = random_episodes((2,), regression=loss == "mse", tasks=1, support=9, outputs=outputs)
    learner = search(name, inputs=2, outputs=outputs, loss=loss)
    x, y, query = (t[0].numpy() for t in (episodes.support.x, episodes.support.y, episodes.query.x))
    make = loaded(KINDS[loss][name])
    plain = make(random_state=0) if "forest" in name else make()
    expected = plain.fit(x, y.ravel() if y.shape[-1:] == (1,) else y).predict(query)
    got = learner.predict(learner.adapt(learner.init(None), episodes.support)[0], episodes.query.x)[0]
    got = got.argmax(-1) if loss == "cross_entropy" else got
    assert np.allclose(got.numpy(), expected.reshape(got.shape), atol=1e-6)


@pytest.mark.parametrize("name", list(KINDS["cross_entropy"]))
def test_absent_classes_and_few_rows(name):
    learner = search(name, **{**CLASSES, "outputs": 4})
    meta = learner.init(None)
    x = torch.randn(3, 4, 2)
    y = torch.tensor([[0, 2, 0, 2], [1, 1, 1, 1], [3, 0, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    outputs = learner.predict(learner.adapt(meta, Batch(x, y, mask))[0], torch.randn(3, 5, 2))
    assert outputs.isfinite().all() and torch.allclose(outputs.exp().sum(-1), torch.ones(3, 5))
    # no row, so nothing is known; one class, so it is; two of four classes
    assert torch.allclose(outputs[2].exp(), torch.full((5, 4), 0.25))
    assert (outputs[1].argmax(-1) == 1).all()
    assert (outputs[0].exp()[:, [1, 3]] < 0.01).all()


@pytest.mark.parametrize("name", list(KINDS["mse"]))
def test_a_single_row_and_none_in_regression(name):
    learner = search(name, inputs=2, loss="mse")
    meta = learner.init(None)
    meta.structure["targets.mean"].fill_(7.0)
    support = Batch(torch.randn(2, 2, 2), torch.ones(2, 2, 1), torch.tensor([[True, False], [False, False]]))
    outputs = learner.predict(learner.adapt(meta, support)[0], torch.randn(2, 5, 2))
    assert outputs.shape == (2, 5, 1) and outputs.isfinite().all()
    assert (outputs[1] == 7).all()


def test_every_target_value_gets_a_support_vector_machine():
    x = torch.linspace(-1, 1, 8).view(1, 8, 1)
    y = torch.cat([x, -2 * x], -1)
    space = {"kernel": Choice("linear"), "C": LogUniform(1, 1000, 100), "epsilon": LogUniform(1e-4, 1, 1e-3)}
    learner = search("svm", inputs=1, outputs=2, space=space)
    outputs = learner.predict(learner.adapt(learner.init(None), Batch(x, y))[0], x)
    assert torch.allclose(outputs, y, atol=0.01)


@pytest.mark.parametrize("how", ["none", "task", "tasks"])
def test_inputs_are_scaled_as_m_says(how):
    class Seen(Constant):
        def predict(self, x):
            return x[:, 0]

    space = {"share": Uniform(0, 1), "inputs.scale": Choice(how)}
    learner = search(Seen, space=space, inputs=1, dtype=torch.float64)
    meta = learner.init(None)
    meta.structure["inputs.mean"].fill_(10.0)
    meta.structure["inputs.deviation"].fill_(4.0)
    x = torch.tensor([[[1.0], [3.0]]], dtype=torch.float64)
    got = learner.predict(learner.adapt(meta, Batch(x, torch.zeros_like(x)))[0], x).flatten().tolist()
    assert got == pytest.approx({"none": [1, 3], "task": [-1, 1], "tasks": [-2.25, -1.75]}[how])


def test_components_are_those_of_the_support_rows():
    class Width(Constant):
        def predict(self, x):
            return np.full(len(x), float(x.shape[1]))

    space = {"share": Uniform(0, 1), "inputs.components": Choice(4)}
    learner = search(Width, space=space, inputs=6)

    def width(rows):
        support = Batch(torch.randn(1, rows, 6), torch.zeros(1, rows, 1))
        return learner.predict(learner.adapt(learner.init(None), support)[0], torch.zeros(1, 1, 6)).item()

    # never more than the rows span, and one row spans nothing to project onto
    assert [width(rows) for rows in (9, 3, 1)] == [4, 2, 6]


def test_the_search_finds_what_is_best_for_the_training_tasks():
    learner, tasks = constant(trials=25), shifted()
    start = learner.init(None)
    meta = learner.prepare(start, tasks, 0, None)
    assert decoded(learner, start) == {"share": 0}
    assert decoded(learner, meta)["share"] == pytest.approx(1, abs=0.15)
    assert {n: (v.shape, v.dtype) for n, v in meta.structure.items()} == {
        n: (v.shape, v.dtype) for n, v in start.structure.items()
    }
    # the rows of the training tasks drawn: targets -3 ... 2
    assert -3 <= meta.structure["targets.mean"].item() <= 2 and start.structure["targets.mean"].item() == 0
    episodes = tasks.sample("test", range(2))
    found, defaults = (
        learner.loss(learner.predict(learner.adapt(m, episodes.support)[0], episodes.query.x), episodes.query).mean()
        for m in (meta, start)
    )
    assert found < 0.1 * defaults


def test_a_search_is_a_function_of_its_seed():
    first, again, other = (constant().prepare(constant().init(None), shifted(), seed, None) for seed in (0, 0, 1))
    assert first.structure == again.structure != other.structure


def test_the_first_trial_is_where_the_space_begins():
    learner = constant(trials=1)
    assert decoded(learner, learner.prepare(learner.init(None), shifted(), 3, None)) == {"share": 0}


def test_test_tasks_are_never_asked_for():
    tasks = shifted()

    def sample(split, numbers):
        assert split == "train"
        return tasks.sample(split, numbers)

    learner = constant(trials=2)
    learner.prepare(learner.init(None), tasks._replace(sample=sample), 0, None)


def killed(folder, after):
    """Search, and be killed in the middle of a trial."""
    calls, fit = [], Constant.fit

    def fatal(self, x, y):
        calls.append(None)
        if len(calls) > 3 * after + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fit(self, x, y)

    Constant.fit = fatal
    learner = constant()
    learner.prepare(learner.init(None), shifted(), 0, folder)


@pytest.mark.parametrize("after", [7])
def test_a_search_that_was_killed_goes_on(tmp_path, after, monkeypatch):
    # in a process of its own, to kill
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['killed'](sys.argv[2], int(sys.argv[3]))"
    process = subprocess.run([sys.executable, "-c", code, __file__, str(tmp_path), str(after)])
    assert process.returncode == -signal.SIGKILL
    tried = []
    fit = Constant.fit
    monkeypatch.setattr(Constant, "fit", lambda self, x, y: tried.append(self.share) or fit(self, x, y))
    learner = constant()
    resumed = learner.prepare(learner.init(None), shifted(), 0, tmp_path)
    assert len(tried) == 3 * (12 - after)
    assert resumed.structure == learner.prepare(learner.init(None), shifted(), 0, None).structure
    # what is finished is not tried again
    tried.clear()
    assert resumed.structure == learner.prepare(learner.init(None), shifted(), 0, tmp_path).structure
    assert not tried


def test_a_journal_that_was_cut_goes_on_and_one_that_is_damaged_is_named(tmp_path):
    space, tried = {"x": Uniform(0.0, 1.0)}, []

    def objective(values):
        tried.append(values["x"])
        return (values["x"] - 0.3) ** 2

    whole = best_of(objective, space, 4, 0, tmp_path)
    journal, first = tmp_path / "search.journal", list(tried)
    data = journal.read_bytes()
    for end in (len(data) - 7, data.rfind(b"\n", 0, -1) - 30):  # as a power cut leaves it, and once more
        journal.write_bytes(data[:end])
        tried.clear()
        assert best_of(objective, space, 4, 0, tmp_path) == whole and tried == first[-len(tried) :]
        assert best_of(objective, space, 4, 0, tmp_path) == whole
    for wrong in (b"\xff\n" + data, data.replace(b'"op_code":0', b'"op_code":[]'), b"3\n"):
        journal.write_bytes(wrong)
        with pytest.raises(FileError, match="search.journal is damaged .*; remove it"):
            best_of(objective, space, 4, 0, tmp_path)
    with pytest.raises(FileError, match="damaged"):
        journal.write_bytes(data.replace(b"0.5", b"7.5"))
        best_of(objective, space, 4, 0, tmp_path)
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(FileError, match="is not a file"):
        best_of(objective, space, 4, 0, tmp_path)


def test_a_search_that_was_stopped_in_its_first_trial_begins_there(tmp_path):
    seen = []

    def stopped(chosen):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best_of(stopped, {"a": Uniform(0, 1, 0.25)}, 2, 0, tmp_path)
    best_of(lambda chosen: seen.append(chosen["a"]) or 1.0, {"a": Uniform(0, 1, 0.25)}, 2, 0, tmp_path)
    assert seen[0] == 0.25 and len(seen) == 2


def test_more_trials_go_on_from_the_ones_before(tmp_path):
    few, many = constant(trials=4), constant(trials=9)
    few.prepare(few.init(None), shifted(), 0, tmp_path)
    assert many.prepare(many.init(None), shifted(), 0, tmp_path) == many.prepare(many.init(None), shifted(), 0, None)


def test_a_folder_keeps_one_search(tmp_path):
    learner = constant(trials=1)
    learner.prepare(learner.init(None), shifted(), 0, tmp_path)
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        learner.prepare(learner.init(None), shifted(), 1, tmp_path)


def test_optuna_s_log_is_left_as_it_was(capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    learner = constant(trials=2)
    learner.prepare(learner.init(None), shifted(), 0, None)
    assert optuna.logging.get_verbosity() == before and capfd.readouterr() == ("", "")


def test_a_loss_that_is_not_finite_is_never_best():
    values = iter([float("nan"), 3.0, float("inf"), 1.0])
    seen = []

    def objective(chosen):
        seen.append(chosen["a"])
        return next(values)

    assert best_of(objective, {"a": Uniform(0, 1)}, 4, 0)["a"] == seen[3]


@pytest.mark.parametrize(
    ("within", "value", "code"),
    [
        (LogUniform(0.01, 100.0), 10.0, 2.302585),
        (Uniform(0, 1), 0.25, 0.25),
        (Integer(1, 9), 4, 4.0),
        (Choice("a", None, 3), None, 1.0),
    ],
)
def test_what_is_searched_is_coded_as_a_number(within, value, code):
    assert within.encode(value) == pytest.approx(code)
    near = within.decode(code + 1e-7)
    assert near == value if isinstance(within, (Integer, Choice)) else near == pytest.approx(value)
    assert within.decode(1e2) == within.decode(1e3) and within.decode(-1e2) == within.decode(-1e3)


def test_options_that_are_no_numbers_are_shown_by_name():
    space = {"kernel": Choice("rbf", "linear"), "C": LogUniform(0.1, 10.0, 2.0), "degree": Choice(2, 3)}
    learner = search("svm", space=space, **CLASSES)
    shown = decoded(learner, learner.init(None))
    calibration = {"outputs.power": 1, "outputs.smoothing": 0.01}
    assert shown == pytest.approx({"kernel=rbf": 1, "kernel=linear": 0, "C": 2, "degree": 2, **calibration})


def test_what_an_estimator_gives_becomes_probabilities():
    episodes = random_episodes((2,), tasks=1, support=9)
    query, support = episodes.query.x, episodes.support

    def outputs(learner):
        return learner.predict(learner.adapt(learner.init(None), support)[0], query)[0]

    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.svm import SVC

    x, y, q = support.x[0].numpy(), support.y[0].numpy(), query[0].numpy()
    decisions = torch.as_tensor(SVC(C=2.0).fit(x, y).decision_function(q))
    learner = search(SVC, space={"C": Uniform(2.0, 2.0)}, **CLASSES)
    expected = (0.99 * decisions.softmax(1) + 0.01 / 3).log()
    assert torch.allclose(outputs(learner), expected, atol=1e-6)
    shares = torch.as_tensor(KNeighborsClassifier(2).fit(x, y).predict_proba(q))
    learner = search(KNeighborsClassifier, space={"n_neighbors": Choice(2)}, **CLASSES)
    assert torch.allclose(outputs(learner), (0.99 * shares + 0.01 / 3).log())
    said = torch.as_tensor(NearestCentroid().fit(x, y).predict(q))

    class Says:
        def __init__(self, metric="euclidean"):
            self.inner = NearestCentroid(metric=metric)

        def fit(self, x, y):
            self.inner.fit(x, y)

        def predict(self, x):
            return self.inner.predict(x)

    got = outputs(search(Says, space={"metric": Choice("euclidean")}, **CLASSES))
    assert torch.equal(got.argmax(1), said)
    assert torch.allclose(got.max(1).values.exp(), torch.tensor(0.99 + 0.01 / 3, dtype=torch.float64))


def test_probabilities_are_calibrated_on_the_training_tasks():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (300,), generator=generator)
    # one query in four is of the other class than its input says
    x = torch.where(torch.rand(300, generator=generator) < 0.25, 1 - y, y).double().unsqueeze(1)
    rows = Rows(x, y, torch.arange(300) // 30, tuple("abcdefghij"))
    tasks = row_tasks(rows, {"train": range(8), "validation": (8,), "test": (9,)}, support=1, seed=3)

    class Identity:
        def __init__(self, nothing=0):
            self.classes_ = np.arange(2)

        def fit(self, x, y):
            pass

        def predict(self, x):
            return x[:, 0].round().astype(int)

    learner = search(Identity, space={"nothing": Choice(0)}, inputs=1, outputs=2, loss="cross_entropy", trials=1)
    meta = learner.prepare(learner.init(None), tasks, 0, None)
    # sure of three in four: 1 - delta / 2
    assert 1 - meta.structure["outputs.smoothing"].item() / 2 == pytest.approx(0.75, abs=0.08)
    assert decoded(learner, meta)["outputs.smoothing"] == meta.structure["outputs.smoothing"]


def test_one_loss_for_rows_of_unequal_number():
    learner = search("ridge", inputs=1)
    meta = learner.init(None)
    x, y = torch.randn(2, 4, 1), torch.randn(2, 4, 1)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    both = learner.predict(learner.adapt(meta, Batch(x, y, mask))[0], x)
    alone = learner.predict(learner.adapt(meta, Batch(x[:1, :2], y[:1, :2]))[0], x[:1])
    assert torch.allclose(both[:1], alone)
    assert losses.mse(both, Batch(x, y, mask)).shape == (2,)


def test_a_query_row_without_a_number_is_answered_by_none():
    learner = search("ridge", inputs=2)
    adapted, _ = learner.adapt(learner.init(None), Batch(torch.randn(1, 4, 2), torch.randn(1, 4, 1)))
    x = torch.randn(1, 3, 2)
    holed = x.clone()
    holed[0, 1] = torch.nan
    assert learner.predict(adapted, holed)[0].isnan().flatten().tolist() == [False, True, False]
    assert torch.equal(learner.predict(adapted, holed)[:, ::2], learner.predict(adapted, x)[:, ::2])
    x[0, 1, 0] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        learner.predict(adapted, x)


def test_targets_without_an_axis_of_their_own():
    learner = search("ridge", inputs=1)
    support = Batch(torch.randn(2, 4, 1), torch.randn(2, 4))
    assert learner.predict(learner.adapt(learner.init(None), support)[0], torch.randn(2, 3, 1)).shape == (2, 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'random_forest'"):
        search("random_forrest", inputs=1)
    with pytest.raises(UnknownNameError, match="'logistic'"):
        search("logistic", inputs=1, loss="mse")
    with pytest.raises(UnknownNameError, match="parameter of SVR 'gama'; did you mean 'gamma'"):
        search("svm", inputs=1, space={"gama": LogUniform(0.1, 1)})
    with pytest.raises(UsageError, match="has no predict"):
        search(type("Half", (), {"fit": lambda self, x, y: self}), inputs=1, space={"inputs.scale": Choice("none")})
    with pytest.raises(UsageError, match="needs a space"):
        search(Constant, inputs=1)
    with pytest.raises(UsageError, match="give its class: Constant"):
        search(Constant(), inputs=1)
    with pytest.raises(UsageError, match="expected LogUniform"):
        search("svm", inputs=1, space={"C": (0.1, 1)})
    with pytest.raises(UsageError, match="0 < low"):
        search("svm", inputs=1, space={"C": LogUniform(0.0, 1.0)})
    with pytest.raises(UsageError, match="nothing to search"):
        search("svm", inputs=1, space={})
    with pytest.raises(UsageError, match="trials"):
        search("svm", inputs=1, trials=0)
    with pytest.raises(UsageError, match="option"):
        Choice()


def test_data_that_do_not_fit_are_refused():
    classifier, regressor = search("svm", **CLASSES), search("svm", inputs=2)
    x = torch.zeros(1, 3, 2)
    with pytest.raises(ShapeError, match=r"\(tasks, rows\) and integers"):
        classifier.adapt(classifier.init(None), Batch(x, torch.zeros(1, 3, 1)))
    with pytest.raises(ShapeError, match="and floating"):
        regressor.adapt(regressor.init(None), Batch(x, torch.zeros(1, 3, dtype=torch.int64)))
    with pytest.raises(ShapeError, match=r"2 numbers; got \(1, 3, 5\)"):
        regressor.adapt(regressor.init(None), Batch(torch.zeros(1, 3, 5), torch.zeros(1, 3, 1)))
    learner = search("svm", space={"C": Uniform(-1.0, 1.0, -1.0)}, **CLASSES)
    support = Batch(x, torch.tensor([[0, 1, 2]]))
    with pytest.raises(UsageError, match="SVC.*fit fails.*C"):
        learner.predict(learner.adapt(learner.init(None), support)[0], x)


@pytest.mark.parametrize("package", ["sklearn", "optuna"])
def test_what_is_not_installed_is_named(package, monkeypatch):
    def missing(name, *args):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *args)

    real = estimators.import_module
    monkeypatch.setattr(estimators, "import_module", missing)
    with pytest.raises(UsageError, match=r"pip install headstart\[search\]"):
        learner = search("svm", inputs=1, trials=1)
        learner.prepare(learner.init(None), shifted(), 0, None)
