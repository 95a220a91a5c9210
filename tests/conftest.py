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


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of data that tests share."""
    if not DATA.is_dir():
        pytest.skip("the shared data are not there; set HEADSTART_DATA to their folder")
    return DATA
