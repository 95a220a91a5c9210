"""Where tests compute that can do so anywhere: on the CPU, or ``HEADSTART_DEVICE=cuda pytest …`` on a GPU."""

import os

import pytest
import torch

DEVICE = os.environ.get("HEADSTART_DEVICE", "cpu")

on_device = pytest.mark.skipif(
    DEVICE != "cpu" and not torch.get_device_module(DEVICE).is_available(),
    reason=f"there is no {DEVICE} here, which HEADSTART_DEVICE asks for",
)
