"""The kit must fail: tasks that break what it checks."""

import pytest
import torch

from headstart.testing import ContractError, check_tasks
from headstart.types import Batch, Episodes, Tasks


def family(draw, kind="regression", **fields):
    """Return tasks whose episodes are ``draw(split, numbers, generator of each)``."""
    return Tasks("made up", draw, kind, (2,), 1 if kind == "regression" else 3, {})._replace(**fields)


def counted(seed=0, shift=0.0):
    """Return tasks that keep the contract."""

    def one(split, number):
        generator = torch.Generator().manual_seed(hash((seed, len(split), number)) % 2**31)
        x, y = torch.rand(8, 2, generator=generator), torch.rand(8, 1, generator=generator)
        return Batch(x[:4], y[:4] + shift), Batch(x[4:], y[4:])

    def sample(split, numbers):
        pairs = [one(split, number) for number in numbers]
        return Episodes(*(Batch(*(torch.stack(t) for t in zip(*(b[:2] for b in side)))) for side in zip(*pairs)))

    return family(sample)


def tasks_break(contract, tasks):
    with pytest.raises(ContractError, match=f"^{contract}"):
        check_tasks(tasks)


def altered(change, seed=0):
    """Return the correct tasks with ``change(episodes, split, numbers)`` done to what they give."""
    base = counted(seed)
    return base._replace(sample=lambda split, numbers: change(base.sample(split, numbers), split, list(numbers)))


def test_tasks_that_keep_the_contract_pass():
    check_tasks(counted())
    check_tasks(counted, numbers=[5, 2**40, 11])


def test_tasks_from_a_global_generator_are_found():
    def change(e, split, numbers):
        return e._replace(support=e.support._replace(x=torch.rand(len(numbers), 4, 2)))

    tasks_break("determined", altered(change))


def test_tasks_that_draw_without_using_it_are_found():
    def change(episodes, split, numbers):
        torch.rand(1)
        return episodes

    tasks_break("determined: sampling 'train' draws from a global generator", altered(change))


def test_tasks_that_depend_on_their_batch_or_order_are_found():
    def normalised(e, split, numbers):
        return e._replace(support=e.support._replace(x=e.support.x / e.support.x.max()))

    def placed(e, split, numbers):
        return e._replace(support=e.support._replace(x=e.support.x + torch.arange(len(numbers))[:, None, None]))

    tasks_break("determined: task 15 of 'train' is another one when it is alone", altered(normalised))
    tasks_break("determined", altered(placed))


def test_splits_numbers_and_seeds_that_make_no_difference_are_found():
    base = counted()
    tasks_break("different: the splits", base._replace(sample=lambda split, numbers: base.sample("train", numbers)))
    tasks_break("different: two numbers", base._replace(sample=lambda split, n: base.sample(split, [0] * len(n))))
    tasks_break("different: seeds 0 and 1", lambda seed: counted(0))


def test_shared_examples_are_found():
    def leak(e, split, numbers):
        return e._replace(query=Batch(e.support.x.flip(1), e.support.y.flip(1)))

    def relabelled(e, split, numbers):
        return e._replace(query=Batch(e.support.x.flip(1), e.support.y))

    tasks_break("leakage: 64 of 64", altered(leak))
    tasks_break("leakage: in 'train' task 0 one example is in the support set as", altered(relabelled))
    check_tasks(altered(leak), duplicates=1.0)


def test_shapes_and_values_that_are_not_as_announced_are_found():
    base = counted()
    tasks_break("shapes: inputs of the support set", base._replace(input_shape=(3,)))
    tasks_break("shapes: targets of the support set", base._replace(output_size=2))
    tasks_break("shapes: class ids of the support set", base._replace(kind="classification"))
    tasks_break("shapes: the support set of 'train' holds NaN", altered(nan))

    def labelled(e, low, high):
        support, query = (torch.tensor([0, 1, 2, v]).repeat(len(e.support.y), 1) for v in (low, high))
        return Episodes(Batch(e.support.x, support), Batch(e.query.x, query))

    ways = {"kind": "classification", "output_size": 3}
    good = altered(lambda e, s, n: labelled(e, 0, 0))._replace(**ways)
    check_tasks(good._replace(names=lambda split, number: ("ant", "bee", "cat")))
    for names in (("ant", "bee"), ("ant", "bee", "bee")):
        tasks_break("shapes: the classes of .* are called", good._replace(names=lambda *task, told=names: told))
    tasks_break("shapes: class ids .* go from 0 to 3", altered(lambda e, s, n: labelled(e, 0, 3))._replace(**ways))
    tasks_break(
        "shapes: the query set of 'train' task 0 asks for \\[3\\]",
        altered(lambda e, s, n: labelled(e, 0, 3))._replace(kind="classification", output_size=4),
    )


def nan(e, split, numbers):
    return e._replace(support=e.support._replace(y=e.support.y * float("nan")))
