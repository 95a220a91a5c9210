"""States in a file, and what is said where the system refuses."""

import errno
import gc
import os
import tempfile
from io import FileIO

import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, OnDisk, Unrolled
from headstart.core.inner import Inner
from headstart.errors import FileError
from headstart.testing import random_episodes

INNER = Inner({"w": torch.randn(2, 3).mT, "e": torch.empty(0)}, (torch.tensor(3), 1.5), {"b": torch.arange(4.0)})


def test_states_come_back_in_any_order(tmp_path):
    keep = OnDisk(tmp_path)()
    others = [keep(INNER._replace(params={"w": torch.full((3,), float(n))})) for n in range(3)]
    fetch = keep(INNER)
    assert [other().params["w"][0].item() for other in others] == [0.0, 1.0, 2.0]
    found = fetch()
    assert torch.equal(found.params["w"], INNER.params["w"]) and found.params["e"].shape == (0,)
    assert found.rule[0].item() == 3 and found.rule[1] == 1.5 and torch.equal(found.buffers["b"], INNER.buffers["b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_every_type_comes_back_bit_by_bit(tmp_path, dtype):
    value = torch.randn(3, 2).mul(5).to(dtype)
    found = OnDisk(tmp_path)()(Inner({"w": value}, {}, {}))().params["w"]
    assert found.dtype == dtype and torch.equal(found, value)


def gradient(adjoint, steps=5):
    torch.manual_seed(0)
    learner = headstart.maml(nn.Linear(4, 3).double(), steps=steps, rate=0.1, adjoint=adjoint, taskmap="vmap")
    return headstart.meta_gradient(learner, learner.init(None), random_episodes((4,)))[0].params


@pytest.mark.parametrize("options", [{"every": 1}, {}], ids=str)
def test_the_derivative_is_the_same(tmp_path, options):
    found = gradient(Checkpointed(**options, place=OnDisk(tmp_path)))
    torch.testing.assert_close(found, gradient(Unrolled()), rtol=1e-12, atol=1e-14)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no list of open files here")
def test_the_file_is_closed_when_the_derivative_is_taken_or_let_go(tmp_path):
    def files():
        gc.collect()
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(str(tmp_path) in os.readlink(link) for link in links if os.path.islink(link))

    adjoint = Checkpointed(every=1, place=OnDisk(tmp_path))
    learner = headstart.maml(nn.Linear(4, 3).double(), steps=3, adjoint=adjoint, taskmap="vmap")
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    episodes = random_episodes((4,))
    held = [headstart.meta_loss(learner, meta, episodes)[0] for _ in range(2)]
    assert files() == 2
    torch.autograd.grad(held.pop(), leaves)
    assert files() == 1
    held.clear()
    assert files() == 0


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.EMFILE, "hold fewer .*, or allow more open files"), (errno.ENOENT, "there is no such")]
)
def test_what_to_do_goes_by_why_no_file_can_be_made(tmp_path, monkeypatch, code, advice):
    def refused(*args, **options):
        raise OSError(code, os.strerror(code))

    if code != errno.ENOENT:
        monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(FileError, match=f"cannot keep states in .*none: .*{advice}"):
        OnDisk(tmp_path / "none")()


class Faulty(FileIO):
    """A file on a disk that is full, or that cannot be read."""

    fault = ""

    def write(self, data):
        if self.fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(data[:5]))  # as a disk may, in parts

    def readinto(self, buffer):
        if self.fault == "unreadable":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("full", "cannot keep states in .*: the disk is full; free some space"),
        ("unreadable", "cannot read a state back that was kept in .*: Input/output error"),
    ],
)
def test_a_write_in_parts_is_whole_and_what_fails_is_said(tmp_path, monkeypatch, fault, message):
    file = Faulty(tmp_path / "states", "w+")
    file.fault = fault
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: file)
    keep = OnDisk(tmp_path)()
    if not fault:
        assert torch.equal(keep(INNER)().params["w"], INNER.params["w"])
        return
    with pytest.raises(FileError, match=message):
        keep(INNER)()
