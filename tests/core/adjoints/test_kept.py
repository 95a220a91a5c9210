import pytest
import torch

from headstart import Checkpointed, MixedMode, OnDisk, Unrolled
from headstart.core.adjoints.kept import in_memory
from headstart.core.step import Inner
from headstart.errors import UsageError


def test_states_in_memory_are_kept_as_they_are():
    inner = Inner({"w": torch.ones(2)}, (torch.tensor(3), 1.5), {})
    assert in_memory()(inner)() is inner


@pytest.mark.parametrize("kind", [Checkpointed, MixedMode])
@pytest.mark.parametrize("options", [{"every": 1}, {"every": 3}, {}], ids=str)
def test_any_place_gives_the_same_derivative_and_is_asked_for_all_states_but_the_start(noisy, kind, options):
    kept, fetched = [], []

    def place():
        def keep(inner):
            number = len(kept)
            kept.append(inner)

            def fetch():
                fetched.append(number)
                return inner

            return fetch

        return keep

    adjoint = kind(**options, place=place)
    assert noisy.gap(adjoint, Unrolled()) < 1e-12
    assert len(kept) == 4 and set(fetched) == set(range(4))  # of 5 steps


def test_what_is_kept_on_disk_needs_no_memory(tmp_path):
    with pytest.raises(UsageError, match="memory= or place="):
        Checkpointed(memory="1MiB", place=OnDisk(tmp_path))


@pytest.mark.parametrize("place", ["a/folder", 3])
def test_a_place_that_is_no_function_is_refused_at_once(place):
    with pytest.raises(UsageError, match=r"Checkpointed\(place=...\) must say how .* got .*OnDisk\(folder\)"):
        Checkpointed(every=1, place=place)
