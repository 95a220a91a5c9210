"""A search by Optuna that ends the same whether or not it was cut off in between."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from headstart.algorithms.search.estimators import Choice, Range, Space, required
from headstart.errors import ConfigError

logger = logging.getLogger("headstart")

JOURNAL = "search.journal"


def best_of(
    objective: Callable[[dict[str, Any]], float],
    space: Space,
    trials: int,
    seed: int,
    folder: PathLike[str] | None = None,
    told: str = "",
) -> dict[str, Any]:
    """Return the values with the least ``objective`` of ``trials`` that are tried, the first where several are.

    The first trial is where the space begins. What a trial is depends on the finished trials before it and on the
    seed alone, by the tree-structured Parzen estimator (Bergstra et al. 2011).

    Args:
        objective: ``values by name -> number``.
        space: ranges by name.
        trials: how many, those that are finished in ``folder`` included.
        seed: of the sampler.
        folder: where to keep finished trials, in ``search.journal``; made where it does not exist.
        told: what is searched, to see that ``folder`` keeps this search and no other.

    Raises:
        ConfigError: the folder keeps another search.
    """
    optuna = required("optuna")
    with _quiet(optuna):
        study = optuna.create_study(storage=_storage(optuna, folder), study_name="search", load_if_exists=True)
        _refuse_other(study, {"what": told, "space": repr(dict(space)), "seed": seed})
        states = optuna.trial.TrialState
        for left in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            study.tell(left.number, state=states.FAIL)  # cut off
        done = len(study.get_trials(deepcopy=False, states=(states.COMPLETE,)))
        if done:
            logger.info("search: going on from %d finished trials", done)
        for count in range(done, trials):
            # a sampler of its own, since how far a sampler's generator is does not outlive a kill
            study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + count) % 2**32, constant_liar=False)
            if count == 0:
                study.enqueue_trial({name: _first(within) for name, within in space.items()})
            trial = study.ask()
            value = objective({name: within.suggest(trial, name) for name, within in space.items()})
            study.tell(trial, math.inf if math.isnan(value) else value)
            logger.info("search: trial %d of %d, loss %.4g, best %.4g", count + 1, trials, value, study.best_value)
        finished = study.get_trials(deepcopy=False, states=(states.COMPLETE,))[:trials]
        best = min(finished, key=lambda trial: trial.value)
        fixed = optuna.trial.FixedTrial(best.params)
        return {name: within.suggest(fixed, name) for name, within in space.items()}


def _first(within: Range) -> Any:
    """Return where a range begins, as Optuna knows it."""
    return 0 if isinstance(within, Choice) else within.first()


def _storage(optuna: Any, folder: PathLike[str] | None) -> Any:
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal
    return journal.JournalStorage(journal.JournalFileBackend(str(Path(folder) / JOURNAL)))


def _refuse_other(study: Any, told: dict[str, Any]) -> None:
    """Keep what is searched with a new study, and raise `ConfigError` where an old one has searched another thing."""
    if not study.user_attrs:
        study.set_user_attr("search", told)
    before = study.user_attrs["search"]
    if before != told:
        changed = [f"{name}: {before.get(name)} -> {told[name]}" for name in told if before.get(name) != told[name]]
        raise ConfigError(
            f"the folder keeps the {JOURNAL} of another search ({'; '.join(changed)}); "
            "choose another folder, or remove the file"
        )


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Leave it to our own log to say how a search goes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
