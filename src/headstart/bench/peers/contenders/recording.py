"""What has become of a meta-gradient that is recorded while it is computed, and why not."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from headstart.engine.record import Program
from headstart.types import Learner

#: What the log says of a computation of so many operations that it is computed as it is, by choice.
TOO_LONG = "operations, more than"


def programs(learner: Learner) -> list[Program | None] | None:
    """Return what an accelerated learner has recorded, ``None`` in place of what could not be.

    It returns ``None`` where nothing is to be recorded. Ask after the first meta-gradient.
    """
    engine: Any = learner.gradient
    counted = any(plan.counted for plan in engine.plans.values())
    if not (engine.options.compile or (counted and engine.options.replay)):
        return None
    return list(engine.recorded.programs.values())


def soon(learner: Learner) -> Learner:
    """Let an accelerated learner record at its second meta-gradient what it would record later, and return it."""
    engine: Any = learner.gradient
    engine.recorded.way = engine.recorded.way._replace(after=0)
    return learner


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what headstart says in its log meanwhile."""
    logger, lines = logging.getLogger("headstart"), list[str]()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    before, handler = logger.level, Heard()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
