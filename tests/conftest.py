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


@pytest.fixture
def unrendered(monkeypatch):
    """Pictures are drawn as ever and not turned into pixels, which takes nine tenths of a short run."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"\x89PNG"))
