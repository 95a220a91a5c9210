"""A run that was stopped goes on with Keras's BackupAndRestore as if it had not been."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

import keras
import numpy as np

from headstart.data.curves.sinusoid import sinusoid
from headstart.integrations.keras import MetaModel
from headstart.integrations.keras.episodes import Order

STEPS, EPOCHS = 4, 3


def made():
    """Return a model with dropout whose rates are learned, too."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = MetaModel(keras.Sequential([keras.Input((1,)), *layers]), "meta_sgd", steps=1, rate=0.01)
    model.compile("adam", loss="mse")
    return model


def trained(model, *callbacks, steps=STEPS, epochs=EPOCHS):
    tasks = sinusoid(shots=3, queries=3)
    model.fit(tasks, batch_size=2, steps_per_epoch=steps, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def of_arrays(model, *callbacks, epochs=EPOCHS, **options):
    """Train on the same nine tasks in each epoch, of which each leaves one out where they are shuffled."""
    tasks = tuple((part.x.numpy(), part.y.numpy()) for part in sinusoid(shots=3, queries=3).sample("train", range(9)))
    model.fit(tasks, batch_size=2, epochs=epochs, verbose=0, callbacks=list(callbacks), **options)
    return model


class Stop(keras.callbacks.Callback):
    """Stop before an outer step, as an interruption would or, where asked, as a power cut."""

    def __init__(self, step, kill=False):
        super().__init__()
        self.step, self.kill = step, kill

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def uninterrupted():
    return trained(made()).get_weights()


def assert_same(model, weights):
    assert all(map(np.array_equal, model.get_weights(), weights))


def test_the_tasks_and_what_is_dropped_go_by_the_outer_step(uninterrupted):
    assert_same(trained(made(), steps=STEPS * EPOCHS, epochs=1), uninterrupted)
    assert any(not np.array_equal(a, b) for a, b in zip(made().get_weights(), uninterrupted))


@pytest.mark.parametrize("step", [STEPS, STEPS + 2], ids=["between epochs", "inside an epoch"])
def test_an_interrupted_run_goes_on(step, uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(made(), keras.callbacks.BackupAndRestore(tmp_path / "backup"), Stop(step))
    again = trained(made(), keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert again.optimizer.iterations.numpy() == STEPS * EPOCHS and again.history.epoch == [1, 2]
    assert_same(again, uninterrupted)


def test_from_inside_an_epoch_each_step_is_the_next_one(tmp_path):
    """Keras begins the epoch again, so the run is longer by what was done of it, and no step is done twice."""
    with pytest.raises(KeyboardInterrupt):
        trained(made(), keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=2), Stop(STEPS + 3))
    again = trained(made(), keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=2))
    done = int(again.optimizer.iterations.numpy())
    assert done == STEPS * EPOCHS + 2 and again.history.epoch == [1, 2]
    assert_same(again, trained(made(), steps=done, epochs=1).get_weights())


def line(seed=None):
    """Return a model that is quickly recorded."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model = MetaModel(network, steps=0, taskmap="vectorized", seed=seed)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    return model


@pytest.mark.parametrize("shuffle", [True, False])
def test_arrays_come_in_the_order_of_an_uninterrupted_run(shuffle, tmp_path):
    steps = 4 if shuffle else 5  # of nine tasks, two at a time
    whole = of_arrays(line(), shuffle=shuffle).get_weights()
    assert_same(of_arrays(of_arrays(line(), epochs=2, shuffle=shuffle), epochs=1, shuffle=shuffle), whole)
    for every in ("epoch", 3):
        with pytest.raises(KeyboardInterrupt):
            backup = keras.callbacks.BackupAndRestore(tmp_path / str(every), save_freq=every)
            of_arrays(line(), backup, Stop(steps + 3), shuffle=shuffle)
        again = of_arrays(line(), keras.callbacks.BackupAndRestore(tmp_path / str(every)), shuffle=shuffle)
        done = int(again.optimizer.iterations)
        assert (done == EPOCHS * steps) == (every == "epoch")  # Keras counts the epoch from its start
        assert_same(again, of_arrays(line(), epochs=done, steps_per_epoch=1, shuffle=shuffle).get_weights())


def test_the_order_of_arrays_goes_by_the_seed_and_the_step():
    def epoch(seed=0, step=0, first=0, shuffle=True):
        return [rows.tolist() for rows in Order(seed, lambda: step, first, shuffle).rows(9, 2)]

    assert sorted(sum(epoch(shuffle=False), [])) == [*range(9)]
    assert len({*sum(epoch(), [])}) == 8 and len(epoch()) == 4
    assert epoch() != epoch(1) and epoch() != epoch(step=4) == epoch(step=4, first=4)
    # from inside an epoch, as a whole run would go on; from the first step of this fit on, as one of its own
    assert epoch(step=2) == epoch()[2:] + epoch(step=4)[:2]
    assert len({*sum(epoch(step=3, first=3), [])}) == 8 and epoch(step=1, first=3) == epoch(step=1, first=1)


def test_what_is_random_goes_by_kerass_own_seed():
    drawn = []
    for seed in (0, 1, 1):
        keras.utils.set_random_seed(seed)
        assert line().seed == seed and line(seed=5).seed == 5
        drawn.append(of_arrays(line(), epochs=1).get_weights())
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert all(map(np.array_equal, drawn[1], drawn[2]))


def test_a_killed_run_goes_on(uninterrupted, tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import keras, test_resume as this\n"
        f"backup = keras.callbacks.BackupAndRestore({str(tmp_path / 'backup')!r})\n"
        f"this.trained(this.made(), backup, this.Stop({STEPS + 1}, kill=True))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again = trained(made(), keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert again.history.epoch == [1, 2]
    assert_same(again, uninterrupted)
