import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from headstart.core.shared import PLAIN_ATTENTION, WITHOUT_CUDNN, Shared


class Setting:
    """Something of the process that a context changes and puts back."""

    def __init__(self):
        self.on, self.entered, self.left = False, 0, 0

    @contextlib.contextmanager
    def context(self):
        before, self.on, self.entered = self.on, True, self.entered + 1
        try:
            yield
        finally:
            self.on, self.left = before, self.left + 1


def test_a_context_is_entered_and_left_each_time():
    setting = Setting()
    shared = Shared(setting.context)
    for count in (1, 2):
        with shared.held():
            assert setting.on
        assert not setting.on and setting.entered == setting.left == count


def test_the_context_lasts_until_the_last_thread_leaves_it():
    setting = Setting()
    shared, both, leave = Shared(setting.context), threading.Barrier(2), threading.Event()

    def early():
        with shared.held():
            both.wait(10)

    def late():
        with shared.held():
            both.wait(10)
            leave.wait(10)
            return setting.on

    with ThreadPoolExecutor(2) as pool:
        last, first = pool.submit(late), pool.submit(early)
        first.result(10)
        assert setting.on and setting.entered == 1
        leave.set()
        assert last.result(10)
    assert not setting.on and setting.left == 1


def test_it_may_be_held_inside_itself():
    setting = Setting()
    shared = Shared(setting.context)
    with shared.held():
        with shared.held():
            assert setting.on
        assert setting.on
    assert not setting.on and setting.entered == 1


def test_an_error_leaves_it_too():
    setting = Setting()
    shared = Shared(setting.context)
    with pytest.raises(ValueError, match="inside"), shared.held():
        raise ValueError("inside")
    assert not setting.on
    with shared.held():
        assert setting.on


def test_many_threads_leave_it_as_it_was():
    setting = Setting()
    shared = Shared(setting.context)

    def often(_):
        seen = []
        for _ in range(200):
            with shared.held():
                seen.append(setting.on)
        return all(seen)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(often, range(4)))
    assert not setting.on and setting.entered == setting.left


def test_attention_is_plain_inside_and_as_it_was_afterwards():
    def fused():
        return torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()

    before = fused()
    assert before == (True, True)
    with PLAIN_ATTENTION.held():
        assert fused() == (False, False)
        with PLAIN_ATTENTION.held():
            pass
        assert fused() == (False, False)
    assert fused() == before


def test_recurrent_layers_run_without_cudnn_inside():
    before = torch.backends.cudnn.enabled
    with WITHOUT_CUDNN.held():
        assert not (torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled)
    assert torch.backends.cudnn.enabled == before
