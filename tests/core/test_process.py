import contextlib
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from headstart.core.counting import Counted
from headstart.core.process import (
    PLAIN_ATTENTION,
    WITHOUT_CUDNN,
    Settings,
    Shared,
    autocast_of,
    casting,
    draws,
    generators,
    one_thread,
    pool,
    put_back,
    settings,
)


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


def test_a_context_is_entered_and_left_each_time_also_inside_itself_and_by_an_error():
    setting = Setting()
    shared = Shared(setting.context)
    for count in (1, 2):
        with shared.held():
            with shared.held():
                assert setting.on
            assert setting.on
        assert not setting.on and setting.entered == setting.left == count
    with pytest.raises(ValueError, match="inside"), shared.held():
        raise ValueError("inside")
    assert not setting.on and setting.left == 3


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

    with ThreadPoolExecutor(2) as threads:
        last, first = threads.submit(late), threads.submit(early)
        first.result(10)
        assert setting.on and setting.entered == 1
        leave.set()
        assert last.result(10)
    assert not setting.on and setting.left == 1


def test_many_threads_leave_it_as_it_was():
    setting = Setting()
    shared = Shared(setting.context)

    def often(_):
        seen = []
        for _ in range(200):
            with shared.held():
                seen.append(setting.on)
        return all(seen)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(often, range(4)))
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


def test_the_precision_comes_back_and_goes_again():
    tensors = [torch.ones(1)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = autocast_of(tensors)
    outside = autocast_of(tensors)
    assert inside != outside and inside == (("cpu", torch.bfloat16, True),)
    with casting(inside):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        with casting(outside):
            assert autocast_of(tensors) == outside
        assert autocast_of(tensors) == inside
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()


def test_devices_without_autocast_are_left_alone():
    with casting(autocast_of([torch.ones(1, device="meta")])):
        pass


def as_it_is(tensor):
    return tensor


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is),
        lambda: torch.autograd.graph.save_on_cpu(),
        Counted,
        torch.inference_mode,
        torch.overrides.BaseTorchFunctionMode,
    ],
)
def test_inside_what_sees_every_operation_there_are_none(context):
    assert settings() is not None
    with context():
        assert settings() is None
    assert settings() == Settings(torch.get_default_dtype())


@pytest.mark.parametrize(
    "context",
    [
        contextlib.nullcontext,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.float16),
    ],
)
def test_settings_hold_in_another_thread_that_enters_them(context):
    found = []
    with context():
        here = settings()

        def elsewhere():
            with here.entered():
                found.append((settings(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype, torch.ones(1).device))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert found == [(here, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype, torch.ones(1).device)]
        with here.without_autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert settings() == Settings(torch.float32)


def test_autocast_and_the_default_type_are_told_apart():
    with torch.autocast("cpu", torch.bfloat16):
        half = settings()
    with torch.autocast("cpu", torch.float16):
        other = settings()
    assert len({half, other, settings()}) == 3
    torch.set_default_dtype(torch.float64)
    try:
        assert settings() == Settings(torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), random.random, np.random.rand])
def test_draws_are_seen_and_can_be_put_back(draw):
    before = generators()
    assert generators() == before
    with put_back():
        draw()
        assert generators() != before
    assert generators() == before
    draw()
    assert generators() != before


@pytest.mark.parametrize("between", [0, 3])
def test_generators_draw_again_what_they_drew(between):
    before = draws(())
    first = torch.rand(4)
    torch.rand(between)
    assert draws(()) != before
    before.restore()
    assert draws(()) == before and torch.equal(torch.rand(4), first)
    assert not before == "a text"


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_all_threads_are_there_from_the_start_and_run_alone(three_threads):
    pool.cache_clear()
    together = threading.Barrier(4)

    def number(_):
        together.wait(10)  # none of them does the work of two
        return torch.get_num_threads(), threading.current_thread().name

    found = list(pool(4).map(number, range(4)))
    assert {count for count, _ in found} == {1} and len({name for _, name in found}) == 4
    assert torch.get_num_threads() == 3
    assert pool(4) is pool(4)


def test_no_thread_sets_the_number_after_the_pool_is_there(three_threads):
    for _ in range(20):
        pool.cache_clear()
        pool(3)
        assert later() == torch.get_num_threads() == 3
        assert list(pool(3).map(lambda _: later(), range(3))) == [3] * 3


def later():
    """Return the number of threads that a thread has that starts now."""
    counts = []
    thread = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return counts[0]


def test_one_thread_inside_and_as_it_was_afterwards(three_threads):
    with one_thread():
        assert torch.get_num_threads() == 1
    with one_thread(wanted=False):
        assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="inside"), one_thread():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_that_was_forked_has_threads_of_its_own():
    assert list(pool(2).map(abs, [-1, -2])) == [1, 2]
    child = os.fork()
    if child == 0:
        found = list(pool(2).map(abs, [-1, -2]))
        os._exit(0 if found == [1, 2] else 1)
    for _ in range(100):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")
