"""What a forest takes from the training tasks before the first outer step: trees, their values and their strengths."""

from torch.nn.functional import one_hot

from headstart.algorithms.forest.boxes import Boxes, memberships, shared
from headstart.algorithms.forest.growth import Grown, Options, grow, number, read
from headstart.algorithms.forest.strength import Strength, strengths
from headstart.types import Batch, Meta, Params, Tasks

#: How many numbers memberships may take, how many rows of a task are looked at, and of how many tasks at least and at
#: most, where strengths are read off.
NUMBERS, ROWS, LEAST, MOST = 2**23, 64, 16, 256
#: Nodes of this depth and deeper are of one level.
DEEP = 4


def prepared(meta: Meta, tasks: Tasks, options: Options, count: int | None, seed: int) -> Meta:
    """Return ``meta`` with trees grown on training tasks, and strengths that explain them.

    Strengths are read off other tasks than those that trees are grown on, where the family has no end of them.

    Args:
        meta: of a forest; where it holds ``log_noise``, that is set too.
        tasks: the family; class ids become one-hot targets.
        options: how trees are grown.
        count: how many tasks are read; see `number`.
        seed: of growing.
    """
    outputs, read_in_all = meta.params["leaves"].shape[2], number(tasks, count)
    grown = grow(_with_targets(read(tasks, read_in_all), outputs), options, seed)
    most = min(read_in_all, MOST)
    found = _strengths(grown, _with_targets(read(tasks, most, read_in_all if tasks.counts is None else 0), outputs))
    values = {**grown._asdict(), "log_ratio": found.ratio.log().view_as(grown.depth), "log_noise": found.noise.log()}

    def filled(old: Params) -> Params:
        return {name: values[name].to(value) if name in values else value for name, value in old.items()}

    return Meta(filled(meta.params), filled(meta.structure))


def _strengths(grown: Grown, rows: Batch) -> Strength:
    assert rows.mask is not None  # `read` gives one
    count = max(LEAST, NUMBERS // (min(ROWS, rows.y.shape[1]) * grown.depth.numel()))
    x, y, there = (part[:count, :ROWS] for part in (rows.x, rows.y, rows.mask))
    held = memberships(Boxes(grown.lower.double(), grown.upper.double()), x) * there.unsqueeze(-1)
    residual = (y - shared(grown.leaves, held)) * there.unsqueeze(-1)
    return strengths(held, residual, there, grown.depth.flatten().clamp(max=DEEP))


def _with_targets(rows: Batch, outputs: int) -> Batch:
    """Return rows with targets ``(B, n, outputs)``, of class ids the one-hot ones."""
    y = rows.y if rows.y.is_floating_point() else one_hot(rows.y.long(), outputs)
    return rows._replace(y=y.double())
