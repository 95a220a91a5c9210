"""Few-shot episodes of headstart and of whatever peers are installed: each is sound."""

import sys
from importlib import import_module
from itertools import count

import numpy as np
import pytest

from benchmarks import sampler, samplers
from benchmarks.peers.environment import existing
from benchmarks.peers.process import PeerError, Worker
from benchmarks.plan import Plan
from benchmarks.samplers import FIELDS, SamplerCase, fault, omniglot_folder, store_of

CASE = SamplerCase(tasks=4, seed=3)


def batches(case):
    prepared = samplers.ours(case._asdict())
    return (prepared.answer() for _ in count())


@pytest.fixture
def batch():
    return next(batches(CASE))


def test_our_batches_are_sound_and_the_same_again():
    one, other = batches(CASE), batches(CASE)
    seen = [next(one) for _ in range(3)]
    for batch in seen:
        assert fault(batch, CASE) is None
        again = next(other)
        assert all(np.array_equal(batch[name], again[name]) for name in FIELDS)
    assert not np.array_equal(seen[0]["query_x"], seen[1]["query_x"])


def test_a_query_image_from_the_support_set_is_a_fault(batch):
    place = int(np.flatnonzero(batch["query_y"][1] == 2)[0])
    batch["query_x"][1, place] = batch["support_x"][1, batch["support_y"][1] == 2][0]
    assert "an image is twice under label 2" in fault(batch, CASE)


def test_an_image_of_another_class_is_a_fault(batch):
    place = int(np.flatnonzero(batch["query_y"][0] == 1)[3])
    batch["query_x"][0, place] = batch["support_x"][0, batch["support_y"][0] == 4][0]
    assert "label 1 of a task is not one class" in fault(batch, CASE)


def test_a_class_under_two_labels_is_a_fault():
    store = store_of(CASE)
    enough = int(np.flatnonzero(store.sizes.numpy() >= 32)[0])
    start = int(store.starts[enough])
    case = CASE._replace(ways=2, tasks=1)
    x = store.examples[start : start + 32].numpy()[None].astype(np.float32) / 255
    labels = np.repeat([0, 1], 15)[None]
    found = {"support_x": x[:, :2], "support_y": np.array([[0, 1]]), "query_x": x[:, 2:], "query_y": labels}
    assert fault(found, case) == "a task has 1 classes for 2 labels"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: {"query_x": batch["query_x"][:, :-1]}, "the query sets have shapes"),
        (lambda batch: {"support_y": batch["support_y"][:1]}, "the support sets have shapes"),
        (lambda batch: {"query_x": batch["query_x"] * 255}, "expected float32 in"),
        (lambda batch: {"query_x": batch["query_x"].astype(np.float64)}, "are float64"),
        (lambda batch: {"query_y": np.zeros_like(batch["query_y"])}, "does not have 15 examples of each of 5 labels"),
    ],
)
def test_other_shapes_values_and_labels_are_faults(batch, change, message):
    assert message in fault(batch | change(batch), CASE)


@pytest.mark.parametrize("contender", sampler.PEERS, ids=lambda contender: contender.name)
def test_every_installed_peer_gives_sound_episodes(contender, tmp_path):
    peers = existing()
    if peers is None:
        pytest.skip("there is no environment with other libraries; `python -m benchmarks` makes one")
    if contender.package not in peers.versions:
        pytest.skip(f"{contender.package} is not installed: {peers.failed.get(contender.package)}")
    case = CASE._replace(workers=sampler.WORKERS.get(contender.name, 0))
    with Worker(contender.target, python=peers.python) as worker:
        path = tmp_path / "batch.npz"
        try:
            worker.ask({"do": "prepare", "case": case._asdict(), "answer": str(path)}, 250)
        except PeerError as error:
            if "No module named 'Cython'" not in str(error):
                raise
            pytest.skip(f"{contender.name} cannot be compiled: {error}")
        with np.load(path, allow_pickle=False) as batch:
            assert fault(dict(batch), case) is None
        assert len(worker.ask({"do": "run", "steps": 2})["seconds"]) == 2
        worker.ask({"do": "drop"})


def test_headstart_is_measured_without_peers(tmp_path):
    told = []
    report = sampler.run(Plan(repeats=2, seconds=0.05, threads=1, data=tmp_path, note=told.append))
    (found,) = report.figures
    assert (found.case, found.contender, found.runs, found.unit) == (
        "icons 5-way 1-shot 15-query",
        "headstart",
        2,
        "episodes/s",
    )
    assert 0 < found.low <= found.value <= found.high
    assert found.rounds and len(found.rounds) == 2
    assert set(report.failed) == {peer.name for peer in sampler.PEERS}
    assert all("there is no environment with other libraries" in why for why in report.failed.values())
    assert [target.theirs for target in report.targets] == ["easyfsl", "learn2learn", "torchmeta"]
    assert "sampler: round 2 of 2" in told


def test_a_library_is_held_against_at_its_best_number_of_workers():
    rates = {"headstart": [90.0], "easyfsl": [3.0, 4.0, 9.0], "easyfsl, 2 workers": [1.0, 5.0, 6.0]}
    first, second, third = sampler.targets("a case", rates)
    assert (first.case, first.ours, first.theirs) == ("a case", "headstart", "easyfsl, 2 workers")
    assert (first.ratio, first.better) == (20, "times the rate")
    assert (second.theirs, third.theirs) == ("learn2learn", "torchmeta"), "what was not measured is still a target"


def test_a_contender_with_unsound_episodes_is_left_out(monkeypatch, tmp_path):
    found = iter([None, "a query image was seen before"])
    monkeypatch.setattr(sampler, "PEERS", (sampler.OURS._replace(name="other"),))
    monkeypatch.setattr(sampler, "fault", lambda batch, case: next(found))
    report = sampler.run(Plan(repeats=1, seconds=0.05, threads=1, data=tmp_path))
    assert report.failed == {"other": "its episodes are not sound: a query image was seen before"}
    assert [found.contender for found in report.figures] == ["headstart"]


def test_omniglot_is_found_where_it_is(tmp_path, monkeypatch):
    assert omniglot_folder(tmp_path) is None
    folder = tmp_path / "omniglot"
    folder.mkdir()
    (folder / "images_background.zip").touch()
    assert omniglot_folder(tmp_path) is None, "one zip of two"
    (folder / "images_evaluation.zip").touch()
    assert omniglot_folder(tmp_path) == omniglot_folder(folder) == str(folder)
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path))
    assert omniglot_folder(None) == str(folder)


def test_omniglots_background_set_is_drawn_from(shared_data):
    folder = omniglot_folder(shared_data)
    if folder is None:
        pytest.skip("Omniglot is not among the shared data")
    case = CASE._replace(omniglot=folder)
    assert len(store_of(case).names) == 4 * 964
    assert fault(next(batches(case)), case) is None


def test_a_module_is_imported_without_its_packages_init(tmp_path, monkeypatch):
    package = tmp_path / "old_package"
    package.mkdir()
    (package / "__init__.py").write_text("import a_module_that_is_long_gone")
    (package / "part.py").write_text("from gone.deep import Needed, unneeded\nvalue = Needed()")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("old_package", "old_package.part", "gone", "gone.deep"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    samplers.bare("old_package")
    samplers.stand_in("gone")
    samplers.stand_in("gone.deep", Needed=dict)
    assert import_module("old_package.part").value == {}
    with pytest.raises(ModuleNotFoundError, match="long_gone is not installed"):
        samplers.bare("long_gone")
