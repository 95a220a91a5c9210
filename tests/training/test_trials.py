"""Tasks of other sizes and classes that were left out are drawn from what the run's own tasks show."""

from typing import Any

import torch

from headstart.tasks import class_store, few_shot
from headstart.training.build import Job, build
from headstart.training.config import resolve
from headstart.training.trials import Trial, trials
from headstart.types import Meta, Tasks
from tests.short import tree

CLASSES, EXAMPLES = 30, 18


def spots(names: bool = True, **options: Any) -> Tasks:
    """Each class is a place of its own, and each of its examples is a little off it, by a number of its own."""

    def of(first: int, count: int) -> Any:
        shift = torch.arange(EXAMPLES).float()[:, None, None, None] * 1e-3
        places = torch.eye(CLASSES + 1).view(-1, 1, 1, CLASSES + 1)
        return class_store({f"c{place:02}": places[place] * 3 + shift for place in range(first, first + count)})

    stores = {"train": of(0, 5), "validation": of(5, 20), "test": of(25, 5)}
    tasks = few_shot("spots", stores, **{"ways": 5, "shots": 1, "queries": 3, **options})
    return tasks if names else tasks._replace(names=None)


def job_of(tasks: Tasks, method: str = "nearest") -> tuple[Job, Meta]:
    options = {"tasks": "icons", "ways": 5, "method": method, "filters": None if method == "nearest" else 4}
    job = build(resolve(tree(options)))
    meta = job.learner.init(torch.Generator().manual_seed(0))
    return job._replace(tasks=tasks), meta


def test_every_size_is_tried_and_examples_of_other_classes_are_far() -> None:
    found = trials(*job_of(spots()), "validation", episodes=40)
    sizes = [(one.ways, one.shots) for one in found]
    assert sizes[0] == (5, 1) and {(2, 1), (2, 10), (20, 1), (5, 10)} <= set(sizes) and len(sizes) == len(set(sizes))
    for one in found:
        assert (
            len(one.logits) == len(one.y) == len(one.task) and one.logits.shape[1] == one.unknown.shape[1] == one.ways
        )
        assert (one.logits.argmax(-1) == one.y).all() and one.logits.dtype == torch.float64
        # nothing is so near as what the class is: its examples are not those that were learned from
        assert -0.1 < one.logits.amax() and (one.shots > 1 or one.logits.amax() < 0)
        assert not len(one.unknown) or one.unknown.amax() < -1
    assert not any(len(one.unknown) for one in found if one.ways == 20), "there are 20 classes, no more"
    assert len(found[0].task.unique()) == 40 and len(found[1].task.unique()) == 10


def test_few_tasks_and_those_asked_for_alone_are_of_the_own_size() -> None:
    job, meta = job_of(spots())
    assert [(one.ways, one.shots) for one in trials(job, meta, "validation", episodes=4)] == [(5, 1)]
    (one,) = trials(job, meta, "test", episodes=20, own=True)
    assert len(one.unknown) == 0 and one.ways == 5, "the split has no class more"


def test_others_of_no_class_are_asked_of_every_task() -> None:
    job, meta = job_of(spots())
    (one,) = trials(job, meta, "test", episodes=20, own=True, others=torch.full((7, 1, 1, CLASSES + 1), 5.0))
    assert one.unknown.shape == (20 * 7, 5) and one.unknown.amax() < -100


def test_where_classes_have_no_names_the_runs_own_tasks_are_all() -> None:
    job, meta = job_of(spots(names=False, shots=(1, 3)))
    (one,) = trials(job, meta, "validation", episodes=30)
    assert (one.ways, one.shots) == (5, 2) and len(one.y) == 30 * 15 and len(one.unknown) == 0


def test_a_method_of_one_number_of_classes_is_tried_with_that_number() -> None:
    job, meta = job_of(build(resolve(tree({"tasks": "icons", "ways": 5}))).tasks, "maml")
    found: list[Trial] = trials(job, meta, "validation", episodes=8)
    assert {one.ways for one in found} == {5} and len({one.shots for one in found}) > 1
    assert all(len(one.unknown) for one in found)
