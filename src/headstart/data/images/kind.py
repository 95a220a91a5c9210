"""Images as a kind of data: a new task is a folder of class folders, and what is predicted is an image's class."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from headstart.data.encoder import Encoder, like_of
from headstart.data.fewshot import scaled
from headstart.data.images.convert import converted, light_on_dark
from headstart.data.images.folder import (
    SUFFIXES,
    Fit,
    as_square,
    pictures,
    read_class_folder,
    read_images,
    task_folders,
)
from headstart.data.images.layouts import holds_images, pickles, unpacked
from headstart.data.kind import (
    DataKind,
    Elsewhere,
    Failed,
    Inputs,
    NewTask,
    Raw,
    Row,
    Untrained,
    class_answers,
    files_of,
    of_classes,
    unsampled,
)
from headstart.errors import ConfigError, DataError, FileError
from headstart.types import Batch, Tasks

#: What is predicted at a time: images, and numbers in them, since a network makes many more of each.
_CHUNK, _NUMBERS = 256, 2**21


class Prepared(NamedTuple):
    """How image files become what a run was trained on."""

    input_shape: tuple[Literal[1, 3], int, int]
    light_on_dark: bool
    """Whether an image that is dark on light is to be turned into its negative."""
    classes: int
    """Classes of a task, as trained."""
    training_classes: str
    """The SHA-256 of the names of the classes that were trained on."""
    fit: Fit
    """How an image becomes a square."""
    encoder: Encoder | None = None
    """The pretrained network that images went through, where they did."""


def _preparation(tasks: Tasks) -> dict[str, Any] | None:
    shape = tasks.details.get("image_shape", tasks.input_shape)
    if tasks.kind != "classification" or len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        return None
    details = tasks.details
    names = "\n".join(details.get("class_names", {}).get("train", ()))
    return {
        "input_shape": list(shape),
        "light_on_dark": bool(details.get("light_on_dark", False)),
        "classes": tasks.output_size,
        "training_classes": hashlib.sha256(names.encode()).hexdigest(),
        "fit": details.get("fit", "crop"),
        "encoder": details.get("encoder"),
    }


def _untrained(source: Path | None, options: Mapping[str, Any], encoder: Mapping[str, Any] | None) -> dict[str, Any]:
    told = {} if encoder is None else encoder["told"]
    size = options["image_size"] or int(told.get("size", 28))
    of_none = hashlib.sha256(b"").hexdigest()
    return {
        **Prepared((options["channels"], size, size), False, 2, of_none, options["fit"])._asdict(),
        "encoder": encoder,
    }


def _read(value: Any, where: str) -> Prepared:
    try:
        channels, height, width = shape = tuple(int(size) for size in value["input_shape"])
        classes, light = int(value["classes"]), bool(value["light_on_dark"])
        found = Prepared(cast(Any, shape), light, classes, str(value["training_classes"]), value["fit"])
        found = found._replace(encoder=Encoder.read(value["encoder"], where))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{where} does not say how images are prepared: {error}") from error
    if found.fit not in get_args(Fit):
        raise FileError(f"{where} has images made square by {found.fit!r}; expected {', '.join(get_args(Fit))}")
    if channels not in (1, 3) or not 0 < height == width <= 4096 or not 2 <= classes <= 1_000_000:
        raise FileError(f"{where} has {classes} classes and inputs of shape {shape}")
    return found


def _difference(kept: Prepared, now: Prepared) -> str:
    names = {
        "input_shape": "the images' shape",
        "encoder": "the pretrained network",
        "training_classes": "which classes there are",
    }
    changed = (field for field in Prepared._fields if getattr(kept, field) != getattr(now, field))
    return next((names.get(field, field) for field in changed), "")


def _recognises(path: Path) -> bool:
    """Return whether a folder holds an image, or no file at all: then it is said what is missing; or only pickles."""
    if pickles(path) and (path.is_file() or not any(one.is_dir() for one in path.iterdir())):
        return True
    if path.is_file():
        return holds_images(path, SUFFIXES)
    files = (name for _, _, names in os.walk(path) for name in names)
    looked_at = [name.lower().endswith((*SUFFIXES, ".heic", ".heif", ".avif")) for name in islice(files, 10_000)]
    return path.is_dir() and (not looked_at or any(looked_at))


def _support(prepared: Prepared, source: Path | None, strict: bool) -> list[tuple[NewTask, Batch]]:
    if source is None:
        raise DataError("classes of images are learned from images; give a folder that holds one folder for each class")
    with unpacked(source, SUFFIXES) as place:
        size, channels, fit = prepared.input_shape[-1], prepared.input_shape[0], prepared.fit
        folders = task_folders(place).items()
        every = [(name, read_class_folder(folder, size, channels, strict, fit)) for name, folder in folders]
    found = []
    for name, read in every:
        counts = tuple(len(images) for images in read.images)
        x = _as_trained(prepared, scaled(torch.cat(read.images)))
        y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        found.append((NewTask(name, tuple(read.names), counts), Batch(x.unsqueeze(0), y.unsqueeze(0))))
    return found


def _inputs(
    prepared: Prepared, sources: Sequence[str], tasks: Mapping[str, Sequence[str]], failed: Failed
) -> Iterator[Inputs]:
    """An image is of the task that the nearest folder around it is called as."""
    found = ((path, _task_around(path, tasks)) for path in files_of(sources, SUFFIXES, failed))
    while some := list(islice(found, _together(prepared))):
        paths = [path for path, _ in some]
        images = read_images(paths, prepared.input_shape[-1], prepared.input_shape[0], strict=False, fit=prepared.fit)
        read: list[Tensor] = []
        known: list[tuple[Path, str | None]] = []
        for (path, own), image in zip(some, images):
            error = own if isinstance(own, DataError) else image
            if isinstance(error, DataError | FileError):
                failed(error)
            else:
                read.append(error)
                known.append((path, cast(str | None, own)))
        if read:
            rows = [Row(image=str(path), **{} if own is None else {"task": own}) for path, own in known]
            x = _as_trained(prepared, scaled(torch.stack(read)))
            yield Inputs(x, [own for _, own in known], rows, lambda place, known=known: str(known[place][0]))


def _values(prepared: Prepared, values: Sequence[Any]) -> Iterator[Inputs]:
    """Images as values have their number beside the answer."""
    size, channels, fit = prepared.input_shape[-1], prepared.input_shape[0], prepared.fit

    def squares(value: Any, what: str) -> list[Tensor]:
        images = pictures(value, what)
        try:
            return [as_square(image, size, channels, fit) for image in images]
        except Exception as error:  # as of files: there are more ways than are documented
            raise DataError(f"cannot read {what}: {error or type(error).__name__}") from error

    found = enumerate(one for place, value in enumerate(values) for one in squares(value, f"image {place}"))
    while some := list(islice(found, _together(prepared))):
        x = _as_trained(prepared, scaled(torch.stack([image for _, image in some])))
        rows = [Row(image=number) for number, _ in some]
        yield Inputs(x, [None] * len(some), rows, lambda place, rows=rows: f"image {rows[place]['image']}")


def _taught(prepared: Prepared, values: Sequence[Any], labels: Sequence[str]) -> tuple[NewTask, Batch]:
    return of_classes(_values(prepared, values), labels)


def _together(prepared: Prepared) -> int:
    return max(1, min(_CHUNK, _NUMBERS // prod(prepared.input_shape)))


def _task_around(path: Path, tasks: Mapping[str, Sequence[str]]) -> str | None | DataError:
    """Return the task that the nearest folder around an image is called as, or an error where that may be a class."""
    own = next((name for name in reversed(path.parts[:-1]) if name in tasks), None)
    if own is not None and path.parts[-2] == own:
        other = next((task for task, labels in tasks.items() if task != own and own in labels), None)
        if other is not None:
            return DataError(
                f"{path} is in a folder {own!r}, which is a task, and a class of the task {other!r}; say by which task"
                " to predict it, with --task"
            )
    return own


def _as_trained(prepared: Prepared, x: Tensor) -> Tensor:
    """Return images with the polarity of the run's tasks: an image's border tells its background."""
    x = light_on_dark(x) if prepared.light_on_dark else x
    return x if prepared.encoder is None else prepared.encoder((x * 255).round().to(torch.uint8))


def _raw(prepared: Prepared) -> Raw:
    """Images as bytes of their size: what is left to do is to turn and normalise them, and the pretrained network."""
    channels, height, width = prepared.input_shape
    some = torch.randint(0, 256, (17, *prepared.input_shape), generator=torch.Generator().manual_seed(0))
    trunk, seen = (None, None) if prepared.encoder is None else prepared.encoder.opened()

    def inputs(images: Tensor) -> Tensor:
        x = images.float() / 255
        x = light_on_dark(x) if prepared.light_on_dark else x
        return x if trunk is None or seen is None else seen(trunk.inputs((x * 255).round().to(torch.uint8)))

    # it cuts and scales at once, which at the edges is not the same as one after the other
    by = {"crop": "ImageOps.fit: near its edges it sees a little beyond", "pad": "ImageOps.pad", "stretch": "resize"}
    told = {
        "images": "upright (EXIF), transparent parts on white",
        "channels": "grey: 0.299 red + 0.587 green + 0.114 blue" if channels == 1 else "red, green, blue",
        "fit": prepared.fit,
        "square": {**_SEEN, "crop": "the centre square", "stretch": "all of it, out of proportion"}[prepared.fit],
        "scaled to": [height, width],
        "by": f"bilinear interpolation with antialiasing, as Pillow's {by[prepared.fit]}",
        "values": "0 to 255, dark to light",
    }
    return Raw("images", some.to(torch.uint8), inputs, told)


def _shape(prepared: Prepared) -> tuple[int, ...]:
    return prepared.input_shape if prepared.encoder is None else prepared.encoder.shape


def _predicts(prepared: Prepared) -> str:
    channels, height, width = prepared.input_shape
    return f"the class of an image ({height} x {width}, {'grey' if channels == 1 else 'RGB'}; {_SEEN[prepared.fit]})"


_SEEN = {"crop": "of each image its centre square", "pad": "all of each image, on white", "stretch": "stretched"}


def _task(tasks: Tasks) -> str:
    ways, shots, queries = (tasks.details[name] for name in ("ways", "shots", "queries"))
    seen = f"; {_SEEN[tasks.details['fit']]} (--fit {tasks.details['fit']})" if "fit" in tasks.details else ""
    if isinstance(ways, tuple):
        told = (
            f"at most {queries} query images a class, and an unbalanced support set (as in Meta-Dataset, up to {shots}"
        )
        return f"{ways[0]} to {ways[1]} classes; {told} of a class counted in its size){seen}"
    shots = "-".join(map(str, shots)) if isinstance(shots, tuple) else shots
    return f"{tasks.output_size} classes; {shots} support and {queries} query images a class{seen}"


def _elsewhere(own: Tasks) -> dict[str, Any]:
    fit = {"fit": own.details["fit"]} if "fit" in own.details else {}
    return {"channels": own.input_shape[0], "image_size": own.input_shape[-1], **fit}


def _fitted(own: Tasks, other: Tasks) -> Tasks:
    """Return other tasks with the shape, colours and polarity of those that were trained on."""
    channels, height, width = own.input_shape
    if other.kind != own.kind or len(other.input_shape) != 3 or height != width:
        raise ConfigError(f"{other.name} has inputs of shape {other.input_shape}; the run's are {own.input_shape}")
    return converted(other, channels, width, light=bool(own.details.get("light_on_dark")))


IMAGES = DataKind(
    name="images",
    recognises=_recognises,
    preparation=_preparation,
    untrained=Untrained(("image_size", "channels", "fit"), _untrained),
    read=_read,
    difference=_difference,
    like=lambda prepared, classes: Tasks(
        "images", unsampled, "classification", _shape(prepared), classes or prepared.classes, like_of(prepared.encoder)
    ),
    support=_support,
    inputs=_inputs,
    values=_values,
    taught=_taught,
    raw=_raw,
    answers=lambda prepared, labels, outputs, deviations: class_answers(labels, outputs),
    predicts=_predicts,
    task=_task,
    examples="images",
    elsewhere=Elsewhere(("ways", "shots", "queries", "sampler"), _elsewhere, _fitted),
    usage=("FOLDER_OF_CLASS_FOLDERS", "IMAGES"),
    picture="headstart.training.report.episodes.images:picture",
    caption="The picture episode.png shows the first test task.",
)
