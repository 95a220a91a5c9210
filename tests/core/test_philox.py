import numpy as np
import pytest
import torch

from headstart.core.philox import philox

KNOWN = [  # Random123's known answers for philox4x32-10: counter, key, words
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5)])
def test_numpy_and_torch_give_the_known_answers(counter, key, expected, shape):
    with_numpy = philox([np.full(shape, word, dtype=np.uint64) for word in words(counter)], words(key))
    with_torch = philox([torch.full(shape, word) for word in words(counter)], words(key))
    for n, t, word in zip(with_numpy, with_torch, words(expected), strict=True):
        assert n.dtype == np.uint64 and t.dtype == torch.int64
        assert np.array_equal(n, np.full(shape, word)) and torch.equal(t, torch.full(shape, word))


def test_the_word_depends_on_every_counter_and_key_word():
    base = philox([torch.zeros(1, dtype=torch.int64)] * 4, (0, 0))
    for place in range(4):
        counter = [torch.full((1,), int(place == i)) for i in range(4)]
        assert philox(counter, (0, 0)) != base
    for key in ((1, 0), (0, 1)):
        assert philox([torch.zeros(1, dtype=torch.int64)] * 4, key) != base
