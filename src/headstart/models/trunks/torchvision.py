"""The door to torchvision's image networks, with the weights in PyTorch's local cache."""

from pathlib import Path

import torch
from torch import nn

from headstart.errors import FileError, pick
from headstart.models.trunks.trunk import Trunk, needs, of_images, told_by


def torchvision(name: str) -> Trunk:
    """Open one of torchvision's classifiers without its last layer, with its default weights and their transforms.

    Args:
        name: as in ``torchvision.models.list_models()``; its weights must be in PyTorch's cache: nothing is downloaded.

    Raises:
        UnknownNameError: no such network.
        FileError: its weights are not here, or the network has no last linear layer.
        ConfigError: torchvision is not installed, or does not match PyTorch.
    """
    models = needs("torchvision.models", "vision")
    pick("network of torchvision", name, dict.fromkeys(models.list_models(module=models)))
    weights = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not file.is_file():
        raise FileError(
            f"torchvision:{name} has no weights in {file}; nothing is downloaded. Fetch {weights.url} where there is a"
            " network, and put it there"
        )
    model = models.get_model(name)
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of several packages
        raise FileError(f"cannot read the weights {file}: {told_by(error)}") from error
    last = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1:]
    if not last:
        raise FileError(
            f"torchvision:{name} has no last linear layer to leave out; with FILE.py:factory it can be used"
        )
    model.set_submodule(last[0], nn.Identity())
    shown = weights.transforms()
    return of_images(
        model,
        size=shown.crop_size[0],
        mean=shown.mean,
        std=shown.std,
        resample=shown.interpolation.value,
        source=f"torchvision:{name}",
    )
