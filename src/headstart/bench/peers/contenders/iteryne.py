"""iteryne: its ``MAML`` wrapper, with ``clone`` and ``adapt_on``."""

from collections.abc import Mapping
from typing import Any

from headstart.bench.peers.case import case_of, module, moved
from headstart.bench.peers.prepared import Prepared
from headstart.bench.peers.torch_case import loss_of, tasks_of, trained


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return iteryne's loop, as in its documentation; ANIL by the names of what is adapted."""
    from iteryne import MAML  # pyrefly: ignore

    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    maml = MAML(model, inner_lr=case.rate, inner_steps=case.steps, adapt_names=moved(case, model))

    def backward() -> None:
        for task in tasks:
            learner = maml.clone()
            learner.adapt_on(loss, task.support_x, task.support_y)
            (loss(learner(task.query_x), task.query_y) / len(tasks)).backward()

    return trained(model.named_parameters(), backward)
