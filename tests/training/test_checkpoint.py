"""Checkpoints: exact, whole or absent, and never the only copy."""

import os
import threading

import pytest
import torch
from safetensors import safe_open

import headstart
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import FileError
from headstart.testing.faults import Fault, injected
from headstart.training import checkpoint as checkpoints
from headstart.training.checkpoint import Keep, Saver, find, save, set_aside, take
from headstart.training.files import sealed, unsealed
from headstart.training.fit_best import Best
from headstart.training.loop import copied, fit, flat, start


@pytest.fixture
def learner():
    return headstart.meta_sgd(headstart.mlp(1, 1, hidden=(4,)), loss="mse", steps=1, taskmap="vmap")


def _run(learner, folder, saves):
    folder.mkdir(exist_ok=True)
    state = start(learner)
    for record in fit(learner, sinusoid(shots=3), steps=max(saves), tasks_per_step=2, state=state):
        if record.step in saves:
            save(folder, take(state, Best(record.step, 0.5, copied(state.meta))))
    return state


def _name(step):
    return f"step-{step:09d}.safetensors"


def _steps(folder):
    return sorted(os.listdir(folder / "checkpoints"))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_run_goes_on_bit_for_bit_with_any_optimiser(learner, tmp_path, make):
    def fresh():
        return start(learner, optimizer=lambda tensors: make(tensors, lr=0.01))

    tasks, state = sinusoid(shots=3), fresh()
    for record in fit(learner, tasks, steps=5, tasks_per_step=2, state=state):
        if record.step == 2:
            state.lost = 3
            save(tmp_path, take(state, Best(1, 0.5, copied(state.meta))))
    found = find(tmp_path, fresh().meta).checkpoint
    assert found is not None and (found.step, found.best.step, found.best.value) == (2, 1, 0.5)
    again = fresh()
    checkpoints.restore(again, found)
    assert again.lost == 3
    list(fit(learner, tasks, steps=5, tasks_per_step=2, state=again))
    assert flat(state.meta).keys() == flat(again.meta).keys()
    assert all(torch.equal(value, flat(again.meta)[name]) for name, value in flat(state.meta).items())


def test_a_checkpoint_is_a_file_that_other_programs_read_and_the_same_every_time(learner, tmp_path):
    state = _run(learner, tmp_path / "a", (1, 2))
    with safe_open(tmp_path / "a" / "checkpoints" / _name(2), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    checkpoint = take(state, Best(2, 0.5, state.meta))
    parts = {"last": flat(state.meta), "best": flat(state.meta), "optimizer": checkpoint.optimizer}
    wanted = {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}
    assert tensors.keys() == wanted.keys() and {"last.structure.rate.head.bias", "optimizer.0.exp_avg"} < tensors.keys()
    assert all(torch.equal(tensors[name], value) for name, value in wanted.items())
    _run(learner, tmp_path / "b", (1, 2))
    one, other = ((tmp_path / name / "checkpoints" / _name(2)).read_bytes() for name in "ab")
    assert one == other


def test_the_last_two_are_kept_and_nothing_unfinished(learner, tmp_path):
    (tmp_path / "checkpoints" / ".tmp-old").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-older").write_text("")
    (tmp_path / ".tmp-file").write_text("")
    checkpoints.clean(tmp_path)
    _run(learner, tmp_path, (1, 2, 3))
    assert _steps(tmp_path) == [_name(2), _name(3)]
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_a_folder_that_has_gone_is_not_made_anew(learner, tmp_path):
    state = start(learner)
    with pytest.raises(FileError, match="cannot write the checkpoint .*: there is no such file or folder"):
        save(tmp_path / "gone", take(state, Best(0, 0.5, state.meta)))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(3), (3, 4, 5)), (Keep(every=2), (2, 4, 5)), (Keep(1, every=3), (3, 4, 5)), (Keep(9), (1, 2, 3, 4, 5))],
)
def test_what_is_kept_goes_by_the_rules_and_is_never_less_than_two(learner, tmp_path, keep, left):
    state = start(learner)
    for state.step in range(1, 6):
        save(tmp_path, take(state, Best(0, 0.5, state.meta)), keep)
    assert _steps(tmp_path) == list(map(_name, left))


def test_a_saver_writes_what_was_while_training_goes_on_one_at_a_time(learner, tmp_path):
    tasks, state, go = sinusoid(shots=3), start(learner), threading.Event()
    order: list[str] = []
    with Saver(tmp_path) as saver:
        for record in fit(learner, tasks, steps=4, tasks_per_step=2, state=state):
            checkpoint = take(state, Best(0, 0.5, copied(state.meta)))
            if record.step == 2:
                kept = {name: value.clone() for name, value in {**flat(state.meta), **checkpoint.optimizer}.items()}
                saver.begin(checkpoint, lambda: (go.wait(60), order.append("two")))
                assert not (tmp_path / "checkpoints").exists()
            elif record.step == 3:
                saver.check()  # which waits for nothing
                go.set()
                saver.begin(checkpoint, lambda: order.append("three"))
                assert _name(2) in _steps(tmp_path)
    assert order == ["two", "three"] and _steps(tmp_path) == [_name(2), _name(3)]
    (tmp_path / "checkpoints" / _name(3)).unlink()
    found = find(tmp_path, learner.init(None)).checkpoint
    assert found is not None and found.step == 2
    assert all(torch.equal(value, {**flat(found.meta), **found.optimizer}[name]) for name, value in kept.items())
    assert not torch.equal(kept["params.hidden1.weight"], state.meta.params["hidden1.weight"])


def test_a_save_that_fails_is_told_when_it_is_asked_for_and_beside_another_error(learner, tmp_path):
    state = start(learner)
    checkpoint = take(state, Best(0, 0.5, state.meta))

    def full():
        raise FileError("the disk is full")

    saver = Saver(tmp_path)
    for ask in (saver.wait, lambda: saver.begin(checkpoint), saver.__enter__().__exit__):
        saver.begin(checkpoint, full)
        with pytest.raises(FileError, match="the disk is full"):
            ask(*() if ask != saver.__exit__ else (None, None, None))
    with pytest.raises(KeyError) as caught, saver:
        saver.begin(checkpoint, full)
        raise KeyError("another")
    assert "the last checkpoint could not be saved: the disk is full" in caught.value.__notes__[0]
    saver.wait()
    saver.check()
    assert not (tmp_path / "checkpoints").exists()


def _spoilt(data, damage):
    flipped = bytearray(data)
    flipped[{"header": 9, "digest": data.index(b"sha256") + 20, "tensors": -1}.get(damage, 0)] ^= 1
    return {"cut": data[: len(data) // 2], "empty": b"", "more": data + b"\0"}.get(damage, bytes(flipped))


@pytest.mark.parametrize(
    "damage", ["size", "header", "digest", "tensors", "cut", "empty", "more", "link", "folder", "pipe", "another"]
)
def test_a_damaged_newest_one_is_named_and_the_one_before_is_taken(learner, tmp_path, damage):
    _run(learner, tmp_path, (1, 2))
    one, path = (tmp_path / "checkpoints" / _name(step) for step in (1, 2))
    data = path.read_bytes()
    path.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(one.read_bytes() if damage == "another" else _spoilt(data, damage))
    found = find(tmp_path, learner.init(None))
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert [place.name for place, _ in found.damaged] == [path.name]
    assert str(path) in found.damaged[0][1]
    set_aside(found.damaged)
    assert find(tmp_path, learner.init(None)).damaged == [] and len(_steps(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"lost": None},
        {"best": []},
        {"best": {"step": 1, "value": 10**400}},
        {"metrics": {"bytes": 0.5}},
        {"metrics": 3},
        {"step": 2},
    ],
)
def test_what_is_told_beside_the_tensors_is_checked_though_the_digest_fits(learner, tmp_path, change):
    told = {"step": 1, "best": {"step": 1, "value": 0.5}, "lost": 0, "metrics": None}
    meta, place = learner.init(None), tmp_path / "checkpoints" / _name(1)
    tensors = {f"{part}.{name}": value for part in ("last", "best") for name, value in flat(meta).items()}
    place.parent.mkdir()
    place.write_bytes(sealed(unsealed(tensors, told), "f"))
    assert find(tmp_path, meta).checkpoint is not None
    for wrong in ({**told, **change}, {name: value for name, value in told.items() if name not in change}):
        place.write_bytes(sealed(unsealed(tensors, wrong), "f"))
        with pytest.raises(FileError, match="does not say|is of step 2"):
            find(tmp_path, meta)


def test_no_good_one_is_an_error_not_a_fresh_start(learner, tmp_path):
    assert find(tmp_path, learner.init(None)) == (None, [])
    _run(learner, tmp_path, (1, 2))
    for place in (tmp_path / "checkpoints").iterdir():
        place.write_bytes(b"")
    with pytest.raises(FileError, match="no checkpoint in .* can be used; remove it to start over"):
        find(tmp_path, learner.init(None))


def test_a_link_to_checkpoints_is_refused(learner, tmp_path):
    _run(learner, tmp_path / "a", (1, 2))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "checkpoints").symlink_to(tmp_path / "a" / "checkpoints")
    with pytest.raises(FileError, match="is a link"):
        find(tmp_path / "b", learner.init(None))


def test_checkpoints_of_an_older_headstart_are_no_fresh_start(learner, tmp_path):
    (tmp_path / "checkpoints" / "step-000000100").mkdir(parents=True)
    with pytest.raises(FileError, match="checkpoints of an older headstart"):
        find(tmp_path, learner.init(None))


def test_weights_of_another_model_are_refused(learner, tmp_path):
    _run(learner, tmp_path, (1,))
    wider = headstart.meta_sgd(headstart.mlp(1, 1, hidden=(5,)), loss="mse", taskmap="vmap")
    deeper = headstart.meta_sgd(headstart.mlp(1, 1, hidden=(4, 4)), loss="mse", taskmap="vmap")
    with pytest.raises(FileError, match=r"the model has \(5, 1\)"):
        find(tmp_path, wider.init(None))
    with pytest.raises(FileError, match="it is of another model"):
        find(tmp_path, deeper.init(None))


@pytest.mark.parametrize("after", range(0, 2))
def test_a_full_disk_at_any_moment_keeps_the_checkpoints_before(learner, tmp_path, after):
    state = _run(learner, tmp_path, (1, 2))
    state.step = 3
    with injected(Fault("ENOSPC", "sync", after + 1), tmp_path), pytest.raises(FileError, match="the disk is full"):
        save(tmp_path, take(state, Best(3, 0.5, state.meta)))
    # in the end all was on the disk but for the list of names, which the system writes later
    kept = [_name(1), _name(2)] + ([_name(3)] if after == 1 else [])
    assert _steps(tmp_path) == kept
    found = find(tmp_path, learner.init(None))
    assert found.checkpoint is not None and found.checkpoint.step == len(kept) and not found.damaged


def test_a_learner_without_an_optimiser_can_be_saved(tmp_path):
    learner = headstart.nearest()
    state = start(learner)
    save(tmp_path, take(state, Best(0, 0.5, state.meta)))
    found = find(tmp_path, state.meta).checkpoint
    assert found is not None
    checkpoints.restore(start(learner), found)
