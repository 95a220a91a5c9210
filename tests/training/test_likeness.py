"""A task that looks unlike the training tasks is told, and few others are."""

import pytest
import torch
from torch import Tensor

from headstart.errors import FileError
from headstart.tasks import Rows, row_tasks
from headstart.training import likeness
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.likeness import Likeness
from headstart.types import Tasks
from tests.short import tree


def lines(tasks: int = 300) -> Tasks:
    """Rows in a plane of four dimensions, each task about a place of its own."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(tasks, 1, 4, generator=generator)
    x = (places + torch.randn(tasks, 10, 4, generator=generator)) * torch.tensor([3.0, 1.0, 0.3, 0.01])
    rows = Rows(x.flatten(0, 1), x.flatten(0, 1)[:, :1], torch.arange(10 * tasks) // 10, tuple(map(str, range(tasks))))
    third = tasks // 3
    splits = dict(
        zip(("train", "validation", "test"), (range(third), range(third, 2 * third), range(2 * third, tasks)))
    )
    return row_tasks(rows, {split: tuple(own) for split, own in splits.items()}, support=5)


def same(x: Tensor) -> Tensor:
    return x.double()


def test_few_tasks_of_the_kind_are_told_and_others_are() -> None:
    tasks = lines()
    found = likeness.fitted(same, tasks, 100)
    assert found is not None
    told, of = likeness.alarms(found, same, tasks, "test", 100)
    assert of == 100 and told <= 12
    x = tasks.sample("test", [0]).support.x[0]
    assert not likeness.unlike(found, same, x)
    # in the direction in which examples hardly differ, a little is far
    assert likeness.unlike(found, same, x + torch.tensor([0, 0, 0, 0.2]))
    assert likeness.unlike(found, same, 5 * x) and not likeness.unlike(found, same, x[:0])
    assert found.limits.tolist() == sorted(found.limits.tolist(), reverse=True), "of more examples a mean is surer"


def test_a_false_alarm_in_twenty_needs_that_many_validation_tasks() -> None:
    assert likeness.fitted(same, lines(54), 100) is None
    assert likeness.fitted(same, lines(57), 100) is not None


def test_the_network_without_its_head_makes_the_features() -> None:
    for method in ("prototypes", "maml"):
        job = build(resolve(tree({"tasks": "icons", "ways": 3, "filters": 4, "method": method})))
        meta = job.learner.init(torch.Generator().manual_seed(0))
        embed = likeness.embedding(job.config, meta, job.tasks, job.device)
        x = job.tasks.sample("train", [0]).support.x[0]
        assert embed is not None and embed(x).shape == (3, 16)
    job = build(resolve(tree({"tasks": "icons", "ways": 3, "method": "nearest"})))
    embed = likeness.embedding(job.config, job.learner.init(None), job.tasks, job.device)
    assert embed is not None and torch.equal(embed(x), x.flatten(1).double())


def test_what_is_kept_is_checked() -> None:
    found = likeness.fitted(same, lines(), 100)
    assert found is not None
    assert all(map(torch.equal, Likeness.of_tensors(found._asdict(), "x"), found))
    for damage in ({"mean": found.mean[:2]}, {"limits": found.limits[:0]}, {"rest": found.rest.float()}):
        with pytest.raises(FileError, match="x does not say what training tasks look like"):
            Likeness.of_tensors({**found._asdict(), **damage}, "x")
