"""Saved estimators come back as they were, and nothing else is taken for one."""

import json
import shutil
from functools import partial

import numpy as np
import pytest

pytest.importorskip("sklearn")

from headstart.errors import FileError, UsageError
from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor
from headstart.training.files import write_together

same = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def saved(lines, tmp_path_factory):
    """Return a regressor and its folder."""
    estimator = FewShotRegressor(hidden=(8,), support=(2, 4), steps=3, random_state=0).fit(*lines)
    folder = tmp_path_factory.mktemp("estimators") / "regressor"
    estimator.save(folder)
    return estimator, folder


@pytest.fixture
def folder(saved, tmp_path):
    """Return a copy of the folder, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "copy")


def test_a_regressor_comes_back(saved, lines):
    estimator, folder = saved
    again = FewShotRegressor.load(folder)
    for one, two in zip(estimator.predict(lines.x, return_std=True), again.predict(lines.x, return_std=True)):
        same(one, two)
    assert again.get_params() == estimator.get_params()
    for name in ("method_", "n_iter_", "loss_curve_", "validation_curve_", "n_features_in_"):
        assert getattr(again, name) == getattr(estimator, name)
    few = lines.x[:3], lines.y[:3]
    same(again.adapt(*few).predict(lines.x), estimator.adapt(*few).predict(lines.x))
    same(again.score(lines.x, lines.y, groups=lines.groups), estimator.score(lines.x, lines.y, groups=lines.groups))


@pytest.mark.parametrize("method", ["gaussian_process", "maml", "ridge", "forest"])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_an_adapted_regressor_comes_back(lines, tmp_path, method, rows):
    estimator = FewShotRegressor(method, steps=1, random_state=np.random.RandomState(0)).fit(*lines)
    adapted = estimator.adapt(lines.x[:rows], lines.y[:rows])
    adapted.save(tmp_path / "adapted")
    again = FewShotRegressor.load(tmp_path / "adapted")
    same(again.predict(lines.x), adapted.predict(lines.x))
    assert again.random_state is None


KINDS = [["a", "b"], [3, 7], [0.0, 1.0], [False, True], np.array(["a", "b"], object)]
CASES = [("prototypes", labels) for labels in KINDS]
CASES += [(method, KINDS[0]) for method in ("nearest", "ridge", "logistic", "svm", "maml")]


@pytest.mark.parametrize("method, labels", CASES)
def test_a_classifier_comes_back(sides, tmp_path, method, labels):
    y = np.asarray(labels)[(sides.y == "yes").astype(int)]
    estimator = FewShotClassifier(method, steps=1, random_state=0, tasks_per_step=2).fit(
        sides.x, y, groups=sides.groups
    )
    adapted = estimator.adapt(sides.x[:9], y[:9])
    for number, one in enumerate((estimator, adapted)):
        one.save(tmp_path / str(number))
        again = FewShotClassifier.load(tmp_path / str(number))
        same(again.predict_proba(sides.x), one.predict_proba(sides.x))
        np.testing.assert_array_equal(again.predict(sides.x), one.predict(sides.x))
        assert again.classes_.dtype == one.classes_.dtype


def test_names_of_features_come_back(lines, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(lines.x, columns=["first", "second"])
    FewShotRegressor(steps=1, random_state=0).fit(table, lines.y, groups=lines.groups).save(tmp_path / "named")
    assert FewShotRegressor.load(tmp_path / "named").feature_names_in_.tolist() == ["first", "second"]


def test_a_folder_that_is_not_empty_is_refused(saved):
    estimator, folder = saved
    with pytest.raises(UsageError, match="not empty"):
        estimator.save(folder)


def test_what_is_no_folder_of_an_estimator_is_refused(tmp_path):
    with pytest.raises(FileError, match="there is no such file"):
        FewShotRegressor.load(tmp_path)


def test_the_wrong_estimator_is_refused(folder):
    with pytest.raises(FileError, match="describes a 'FewShotRegressor', not a 'FewShotClassifier'"):
        FewShotClassifier.load(folder)


def changed(folder, *path, to):
    about = json.loads((folder / "estimator.json").read_text())
    inner = about
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    together(folder, **{"estimator.json": json.dumps(about).encode()})


def together(folder, **contents):
    """Write files with a manifest that fits them, as one who wants to be believed would."""
    names = ("weights.safetensors", "estimator.json")
    write_together(folder, {name: (folder / name).read_bytes() for name in names} | contents)


@pytest.mark.parametrize(
    "path, value",
    [
        (("format",), "headstart-estimator-0"),
        (("extra",), 1),
        (("params", "extra"), 1),
        (("params", "steps"), "many"),
        (("params", "random_state"), [1]),
        (("spec",), None),
        (("spec", "method"), "eval"),
        (("spec", "method"), "maml"),
        (("spec", "kind"), "classification"),
        (("spec", "inputs"), 3),
        (("spec", "inputs"), 2.0),
        (("spec", "outputs"), 10**9),
        (("spec", "hidden"), [9]),
        (("spec", "inner_steps"), -1),
        (("seed",), -1),
        (("rows",), 12),
        (("rows",), 10**12),
        (("rows",), True),
        (("flat",), 1),
        (("step",), None),
        (("classes",), {"type": "str", "values": ["a"]}),
        (("names",), ["one"]),
        (("names",), ["one", "two"]),
        (("columns",), ["x0"]),
        (("columns",), ["x0", "x0"]),
        (("features",), []),
        (("features", 0, "scale"), 0),
        (("features", 0, "kind"), "category"),
        (("features", 0, "missing"), True),
        (("features", 0, "column"), "x1"),
        (("limits",), [1, 0]),
        (("losses",), ["x"]),
    ],
)
def test_a_description_that_was_tampered_with_is_refused(folder, path, value):
    changed(folder, *path, to=value)
    with pytest.raises(FileError):
        FewShotRegressor.load(folder)


@pytest.mark.parametrize("values", [[], ["b", "a"], ["a", "a"], ["a", 1], "ab", None])
def test_classes_that_cannot_be_are_refused(sides, tmp_path, values):
    estimator = FewShotClassifier(steps=1, random_state=0).fit(*sides)
    estimator.save(tmp_path / "classifier")
    changed(tmp_path / "classifier", "classes", "values", to=values)
    with pytest.raises(FileError):
        FewShotClassifier.load(tmp_path / "classifier")


def test_damaged_weights_are_refused(folder):
    data = (folder / "weights.safetensors").read_bytes()
    together(folder, **{"weights.safetensors": data[:-8]})
    with pytest.raises(FileError, match="cut off"):
        FewShotRegressor.load(folder)
    (folder / "weights.safetensors").write_bytes(data[:-9] + bytes([data[-9] ^ 64]) + data[-8:])
    with pytest.raises(FileError, match="is damaged: .* not what its manifest says"):
        FewShotRegressor.load(folder)


def test_weights_of_another_estimator_are_refused(folder, sides, tmp_path):
    FewShotClassifier(steps=1, random_state=0).fit(*sides).save(tmp_path / "other")
    together(folder, **{"weights.safetensors": (tmp_path / "other" / "weights.safetensors").read_bytes()})
    with pytest.raises(FileError, match="does not hold the tensors"):
        FewShotRegressor.load(folder)


def test_labels_that_json_has_no_name_for_are_refused(sides, tmp_path):
    days = np.where(sides.y == "yes", np.datetime64("2020-01-01"), np.datetime64("2020-01-02"))
    estimator = FewShotClassifier(steps=1, random_state=0).fit(sides.x, days, groups=sides.groups)
    with pytest.raises(UsageError, match="labels of type datetime64"):
        estimator.save(tmp_path / "dated")
    assert not (tmp_path / "dated").exists()
