import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

DATA = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Modules draw their weights from the global generator; every test starts it at the same place."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Nothing that tests compute is kept among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of data that tests share."""
    if not DATA.is_dir():
        pytest.skip("the shared data are not there; set HEADSTART_DATA to their folder")
    return DATA


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory):
    """TorchInductor with a cache of its own, that neither optimises nor vectorises: what is computed stays the same."""
    from torch._inductor import cpu_vec_isa
    from torch._inductor.utils import fresh_cache

    with pytest.MonkeyPatch.context() as patch, fresh_cache(dir=str(tmp_path_factory.mktemp("inductor"))):
        patch.setenv("TORCHINDUCTOR_DEBUG_COMPILE", "1")  # other than a setting, it holds in all threads
        patch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)  # those there are would be tried out, for seconds each
        yield


@pytest.fixture
def unrendered(monkeypatch):
    """Pictures are drawn as ever and not turned into pixels, which takes nine tenths of a short run."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"\x89PNG"))
