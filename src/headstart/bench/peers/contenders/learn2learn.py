"""learn2learn (Arnold, Mahajan, Datta, Bunner, Zarkias 2020, arXiv:2008.12284): ``MAML.clone`` and ``adapt``."""

import importlib
import sys
import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from headstart.bench.peers.case import case_of, module
from headstart.bench.peers.environment import source_folder
from headstart.bench.peers.prepared import Prepared
from headstart.bench.peers.torch_case import loss_of, tasks_of, trained


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return learn2learn's loop; for ANIL as in its own example, with the features computed once a set."""
    case = case_of(values)
    model, tasks, loss = module(case), tasks_of(case), loss_of(case)
    names = [name for name, _ in model.named_parameters()]
    features, adapting = _parts(model, case.what == "anil")
    parameters = list(model.parameters())
    maml = _library().MAML(adapting, lr=case.rate)

    def backward() -> None:
        for task in tasks:
            learner = maml.clone()
            support, query = features(task.support_x), features(task.query_x)
            for _ in range(case.steps):
                learner.adapt(loss(learner(support), task.support_y))
            (loss(learner(query), task.query_y) / len(tasks)).backward()

    return trained(zip(names, parameters), backward)


def _parts(model: nn.Module, anil: bool) -> tuple[nn.Module, nn.Module]:
    """Return what is computed once, and what is adapted."""
    if not anil:
        return nn.Identity(), model
    children = dict(model.named_children())
    return nn.Sequential(*(child for name, child in children.items() if name != "head")), children["head"]


def _library() -> Any:
    """Import ``learn2learn.algorithms`` alone: the rest of the package needs modules that no longer compile."""
    if "learn2learn" not in sys.modules:
        package = types.ModuleType("learn2learn")
        package.__path__ = [str(source_folder("learn2learn"))]
        sys.modules["learn2learn"] = package
    return importlib.import_module("learn2learn.algorithms.maml")
