"""A record as kernels in C: what they can compute of it, and its loops and all else as they are between them.

A record has every derivative inside, so nothing is asked of what is compiled but to compute. It is worth it where
operations are small and steps many: a kernel takes tenths of a second to make, and is kept on disk.
"""

from torch import fx

from headstart.engine.record import replayed
from headstart.engine.rewrite import fold, writes
from headstart.engine.steps import Run
from headstart.kernels.parts import in_parts
from headstart.kernels.translated import translated


def compiled(record: fx.GraphModule) -> Run:
    """Return the record with its operations compiled, all but its loops, whose steps are records of their own.

    Raises:
        RuntimeError: it cannot be compiled.
    """
    if writes(record):
        raise RuntimeError("it writes into tensors")
    devices = {node.meta["val"].device.type for node in record.graph.nodes if node.op == "placeholder"}
    if devices - {"cpu"}:
        raise RuntimeError(f"its tensors are on the {', '.join(sorted(devices))}, and kernels are for the CPU")
    in_parts(record)
    fold(record)
    return replayed(translated(record))
