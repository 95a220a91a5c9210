"""Small random episodes to check a learner on."""

from collections.abc import Sequence

import torch

from headstart.types import Batch, Episodes


def random_episodes(
    input_shape: Sequence[int],
    *,
    outputs: int = 3,
    tasks: int = 3,
    support: int = 4,
    query: int = 5,
    regression: bool = False,
    tokens: int | None = None,
    seed: int = 0,
) -> Episodes:
    """Return float64 episodes of random examples.

    Args:
        input_shape: shape of one input.
        outputs: number of classes (each occurs in every set that is large enough), or of target values.
        tasks: B.
        support, query: examples of a task.
        regression: floating targets ``(B, n, outputs)`` in place of class ids.
        tokens: draw int64 inputs in ``[0, tokens)``, for embeddings.
        seed: of the generator.

    >>> random_episodes((1, 8, 8), outputs=3).support.x.shape
    torch.Size([3, 4, 1, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)

    def batch(count: int) -> Batch:
        shape = (tasks, count, *input_shape)
        if tokens is None:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            x = torch.randint(tokens, shape, generator=generator)
        if regression:
            return Batch(x, torch.randn(tasks, count, outputs, generator=generator, dtype=torch.float64))
        orders = [torch.randperm(count, generator=generator) for _ in range(tasks)]
        return Batch(x, torch.stack(orders) % outputs)

    return Episodes(batch(support), batch(query))
