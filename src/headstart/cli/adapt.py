"""``headstart adapt`` and ``headstart predict``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from headstart.cli.evaluate import Device, Json
from headstart.cli.output import print_json


def adapt(
    run: Path,
    support: Path,
    /,
    *,
    out: Path,
    device: Device = "auto",
    strict: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """Learn new classes from a folder of class folders, a few images each.

    Parameters
    ----------
    run
        A run's folder, of tasks on images.
    support
        A folder that holds one folder of images for each class; the folders' names are the labels.
    out
        The folder to write; new or empty.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    strict
        Refuse a folder that holds an unreadable image, rather than skip that image.
    as_json
        Print the result as JSON.
    """
    from headstart.training.adapted import adapt

    model = adapt(run, support, out, device, strict)
    if as_json:
        print_json({"out": str(out), "classes": list(model.classes)})
    else:
        print(f"learned {len(model.classes)} classes ({', '.join(model.classes)}): {out}")


def predict(
    model: Path,
    images: Annotated[list[Path], Parameter(negative="")],
    /,
    *,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print each image's label and the probability that the model gives it.

    Parameters
    ----------
    model
        A folder that headstart adapt has written.
    images
        Image files.
    device
        Where to compute; auto takes cuda, then mps, then cpu.
    as_json
        Print the probabilities of all labels as JSON.
    """
    from headstart.training.adapted import open_adapted, predict

    found = predict(open_adapted(model, device), images)
    if as_json:
        print_json([prediction._asdict() for prediction in found])
    else:
        for prediction in found:
            print(f"{prediction.image}\t{prediction.label}\t{prediction.probability:.3f}")
