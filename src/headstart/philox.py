"""Counter-based random words: word i is computed, not drawn, so no order of asking can change it.

Reference: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
doi:10.1145/2063384.2063405.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Return four random words for every counter (Philox4x32-10).

    Args:
        counter: ``(4, *shape)`` int64, words in ``[0, 2**32)``.
        key: two words in ``[0, 2**32)``.

    Returns:
        ``(4, *shape)`` int64, words in ``[0, 2**32)``.
    """
    ones = (1,) * (counter.dim() - 1)
    multipliers = torch.tensor(_MULTIPLIERS, device=counter.device).view(2, *ones)
    keys = torch.tensor(key, device=counter.device) + torch.outer(
        torch.arange(_ROUNDS, device=counter.device), torch.tensor(_KEY_STEPS, device=counter.device)
    )
    keys = (keys & _WORD).view(_ROUNDS, 2, *ones)
    even, odd = counter[0::2], counter[1::2]
    for round_key in keys:
        # The 64-bit products wrap around in int64; their two halves are read as unsigned by the masks.
        products = (even * multipliers).flip(0)
        even = ((products >> 32) & _WORD) ^ odd ^ round_key
        odd = products & _WORD
    return torch.stack((even, odd), 1).view_as(counter)
