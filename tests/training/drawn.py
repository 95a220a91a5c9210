"""Trials whose truth is known."""

import torch

from headstart.training.trials import Trial

SIZES = ((5, 1), (2, 1), (2, 5), (20, 1), (20, 5))


def drawn(
    ways: int, shots: int, temperature: float, seed: int, tasks: int = 40, queries: int = 30, others: int = 1000
) -> Trial:
    """Labels that are as likely as the logits divided by the temperature say; other classes have smaller logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tasks * queries, ways, generator=generator, dtype=torch.float64)
    y = logits.softmax(-1).multinomial(1, generator=generator).squeeze(1)
    other = 2 * torch.randn(others, ways, generator=generator, dtype=torch.float64) - 3
    task = torch.arange(tasks).repeat_interleave(queries)
    return Trial(ways, shots, temperature * logits, y, task, temperature * other)


def several(seed: int, temperature: float = 3.0) -> list[Trial]:
    return [drawn(*size, temperature, seed + place) for place, size in enumerate(SIZES)]
