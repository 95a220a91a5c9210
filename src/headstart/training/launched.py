"""Whether this process was started alone, or by torchrun as one of several."""

import os

from headstart.errors import UsageError


def described() -> tuple[int, int] | None:
    """Return this process's rank and how many processes there are, as the environment says; ``None``: it is alone.

    Raises:
        UsageError: ``RANK`` and ``WORLD_SIZE`` are no such numbers.
    """
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if not all(told):
        return None
    rank, size = (int(value) if value.isdecimal() else -1 for value in told)
    if not 0 <= rank < size:
        raise UsageError(
            f"the environment says RANK={told[0]} and WORLD_SIZE={told[1]}; expected this process's number, from 0, and"
            " how many there are, as torchrun sets them; otherwise unset them"
        )
    return (rank, size) if size > 1 else None
