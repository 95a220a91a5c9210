"""The meta-gradient as one compiled program.

What is compiled is the record of the whole computation (`core.record`), so the program holds no function that is
differentiated from outside, which ``torch.compile`` refuses for second derivatives.
"""

import logging
import warnings

import torch
import torch._inductor
from torch import Tensor, fx

from headstart.core.objective import backprop
from headstart.core.record import Recorded, Run, Way
from headstart.types import Learner

logger = logging.getLogger("headstart")


def compiled(learner: Learner) -> Learner:
    """Return the learner with its meta-gradient compiled by TorchInductor, for each shape of its inputs once.

    Worth it where operations are small and steps many: compiling takes seconds for a small network and minutes for
    a convolutional one (it is kept on disk between runs). Learners whose gradient is not by back-propagation, whose
    computation depends on values, or that cannot be compiled on this machine (it needs a C++ compiler), stay as they
    are, and one line of the log says why.

    >>> import headstart, torch
    >>> from headstart.core.compiled import compiled
    >>> learner = compiled(headstart.maml(torch.nn.Linear(2, 1), loss="mse", steps=1))
    """
    if learner.gradient is not backprop:
        logger.warning("not compiled: this learner's meta-gradient is not by back-propagation")
        return learner
    return with_gradient(learner, Recorded(COMPILED))


def with_gradient(learner: Learner, gradient: Recorded) -> Learner:
    """Return the learner with another way to compute `backprop`, throughout meta-training."""
    during = learner.during

    def own(stage: Learner) -> Learner:
        return stage._replace(gradient=gradient) if stage.gradient is backprop else stage

    return own(learner)._replace(during=None if during is None else lambda done: own(during(done)))


def _inductor(record: fx.GraphModule, tensors: list[Tensor]) -> Run:
    for node in record.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # the compiler lays out tensors in its own way
            node.target = torch.ops.aten.reshape.default
    record.recompile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        run: Run = torch._inductor.compile(
            record, list(tensors), options={"cpp_wrapper": tensors[0].device.type == "cpu"}
        )
        with torch.no_grad():
            run(*tensors)  # compiles what is left to the first call
    return run


COMPILED = Way("compiled", _inductor, after=0, same=False, level=logging.WARNING)
