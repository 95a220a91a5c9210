import os
import threading
import time

import pytest
import torch

from headstart.engine.pool import one_thread, pool


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
