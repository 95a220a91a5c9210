import pytest
import torch

from headstart import Checkpointed, MixedMode, OnDisk, Unrolled
from headstart.core.adjoint.kept import in_memory
from headstart.core.step import Inner
from headstart.errors import FileError, UsageError

INNER = Inner({"w": torch.randn(2, 3).mT, "e": torch.empty(0)}, (torch.tensor(3), 1.5), {"b": torch.arange(4.0)})


def test_states_come_back_from_disk_in_any_order(tmp_path):
    keep = OnDisk(tmp_path)()
    others = [keep(INNER._replace(params={"w": torch.full((3,), float(n))})) for n in range(3)]
    fetch = keep(INNER)
    assert [other().params["w"][0].item() for other in others] == [0.0, 1.0, 2.0]
    found = fetch()
    assert torch.equal(found.params["w"], INNER.params["w"]) and found.params["e"].shape == (0,)
    assert found.rule[0].item() == 3 and found.rule[1] == 1.5 and torch.equal(found.buffers["b"], INNER.buffers["b"])
    assert in_memory()(INNER)() is INNER


@pytest.mark.parametrize("kind", [Checkpointed, MixedMode])
@pytest.mark.parametrize("options", [{"every": 1}, {}], ids=str)
def test_the_derivative_is_the_same_from_disk(noisy, tmp_path, kind, options):
    assert noisy.gap(kind(**options, place=OnDisk(tmp_path)), Unrolled()) < 1e-12
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(noisy, tmp_path):
    with pytest.raises(FileError, match="name another folder"):
        noisy.gradient(Checkpointed(every=1, place=OnDisk(tmp_path / "none")))


def test_what_is_kept_on_disk_needs_no_memory(tmp_path):
    with pytest.raises(UsageError, match="memory= or place="):
        Checkpointed(memory="1MiB", place=OnDisk(tmp_path))
