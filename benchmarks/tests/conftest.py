from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Modules draw their weights from the global generator; every test starts it at the same place."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of data that tests share."""
    import os

    data = Path(os.environ.get("HEADSTART_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not data.is_dir():
        pytest.skip("the shared data are not there; set HEADSTART_DATA to their folder")
    return data
