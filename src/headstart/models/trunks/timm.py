"""The door to timm's image networks, with the weights in its local cache."""

from headstart.errors import FileError
from headstart.models.trunks.trunk import Trunk, needs, of_images, told_by


def timm(name: str) -> Trunk:
    """Open one of timm's networks without its head; its size and normalisation are those of its pretrained weights.

    Args:
        name: as in ``timm.list_pretrained()``; its weights must be in the local cache: nothing is downloaded.

    Raises:
        FileError: no such network, or its weights are not here.
        ConfigError: timm is not installed.
    """
    package = needs("timm", "vision")
    hub = needs("huggingface_hub", "vision")
    before = hub.constants.HF_HUB_OFFLINE
    hub.constants.HF_HUB_OFFLINE = True
    try:
        model = package.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever another package does
        raise FileError(
            f"timm:{name} cannot be opened ({told_by(error)}). Nothing is downloaded: where there is a network,"
            f" `python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` brings the weights into the"
            " local cache"
        ) from error
    finally:
        hub.constants.HF_HUB_OFFLINE = before
    told = package.data.resolve_model_data_config(model)
    return of_images(
        model,
        size=told["input_size"][-1],
        mean=told["mean"],
        std=told["std"],
        resample=told["interpolation"] if told["interpolation"] in ("bilinear", "bicubic", "nearest") else "bilinear",
        source=f"timm:{name}",
    )
