import contextlib
import random
import threading

import numpy as np
import pytest
import torch

from headstart.core.live_bytes import LiveBytes
from headstart.engine.surroundings import Settings, generators, put_back, settings


def as_it_is(tensor):
    return tensor


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autograd.graph.saved_tensors_hooks(as_it_is, as_it_is),
        lambda: torch.autograd.graph.save_on_cpu(),
        LiveBytes,
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
