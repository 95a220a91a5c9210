"""What a computation goes by besides its arguments: PyTorch's settings of the thread, and generators."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils._device import DeviceContext

_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Settings(NamedTuple):
    """What PyTorch keeps for each thread and a computation inside goes by; to be compared, and handed to threads."""

    dtype: torch.dtype
    """The default type of numbers, which is that of all threads."""
    device: torch.device | None = None
    """The default device, where one is set."""
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    """The kinds of devices for which autocast is on, with its types."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Compute by these settings, in a thread that has none."""
        with contextlib.ExitStack() as stack:
            if self.device is not None:
                stack.enter_context(self.device)
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            yield

    @contextlib.contextmanager
    def without_autocast(self) -> Iterator[None]:
        """Compute by all but autocast, for operations in which its casts are already."""
        with contextlib.ExitStack() as stack:
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype, enabled=False))
            yield


def settings() -> Settings | None:
    """Return this thread's settings, or ``None`` where the computation can neither be recorded nor leave the thread.

    That is inside hooks for saved tensors, and inside modes that see every operation. It takes about a microsecond.
    """
    functions = torch._C._len_torch_function_stack()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is not None or torch._C._len_torch_dispatch_stack() or functions > 1 or torch.is_inference_mode_enabled():
        return None
    if not functions and not torch._C._is_any_autocast_enabled():
        return Settings(torch.get_default_dtype())
    device = None
    if functions:  # a default device is such a mode, too
        mode = torch._C._get_function_stack_at(0)
        if not isinstance(mode, DeviceContext):
            return None
        device = mode.device
    on = tuple((kind, torch.get_autocast_dtype(kind)) for kind in _DEVICES if torch.is_autocast_enabled(kind))
    return Settings(torch.get_default_dtype(), device, on)


States: TypeAlias = tuple[Any, ...]
"""Where the generators stand that a model may draw from; to be compared."""


def generators() -> States:
    """Return where PyTorch's, Python's and numpy's generators stand."""
    own = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_initialized():
        own += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return *own, random.getstate(), _numpys(lambda generator: _comparable(generator.get_state()))


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Put the generators back at the end, so that a trial takes no random numbers from what counts."""
    python, numbers = random.getstate(), _numpys(lambda generator: generator.get_state())
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()):
            yield
    finally:
        random.setstate(python)
        if numbers is not None:
            _numpys(lambda generator: generator.set_state(numbers))


def _numpys(function: Callable[[Any], Any]) -> Any:
    """Return what a function gives of numpy's own generator; nothing where numpy is not there to draw from."""
    numpy = sys.modules.get("numpy")
    return None if numpy is None else function(numpy.random)


def _comparable(state: tuple[Any, ...]) -> States:
    kind, keys, *rest = state
    return kind, keys.tobytes(), *rest
