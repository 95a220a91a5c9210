"""How the built-in image sets are made of the npm package ``@iconify/json``, whatever they show.

`run` reads the package, has a set's own rules choose and draw, and writes the data file and the notices. A data file is
a zip of ``index.json`` (splits, classes, counts, checksums), ``images.bin`` (one byte a pixel and channel, grouped by
split and class) and ``manifest.json`` (set, icon and source checksum of every image), the same bytes every time.
"""

import argparse
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from icon_names import SPLITS
from notices import LICENCES, notices
from numpy.typing import NDArray

SOURCE = "@iconify/json 2.2.535"
IMAGES = Path(__file__).parents[1] / "src/headstart/data/images"

Json = dict[str, Any]


class Source(NamedTuple):
    """The icon that a drawing is of."""

    prefix: str
    name: str
    svg: str
    words: str = ""
    """What its designer calls what it shows."""


class Choice(NamedTuple):
    """The drawing of one designer in one class."""

    key: str
    hand: str
    icon: Source
    image: NDArray[np.uint8]
    """``(height, width)``, or ``(channels, height, width)``."""


class Class(NamedTuple):
    """A class of a data set."""

    name: str
    key: str
    split: str
    turns: bool
    choices: list[Choice]


class ImageSet(NamedTuple):
    """What differs between the built-in image sets."""

    name: str
    copyrights: Mapping[str, str]
    """The copyright line of every set of icons that may be used."""
    head: str
    """What NOTICES.md begins with."""
    levels: int
    build: Callable[[Json, Iterator[tuple[str, Json]], int], list[Class]]
    """``(collections.json, (prefix, set) of those that may be used, processes) ->`` the classes."""
    palette: bool
    """Whether the sets are in colour."""
    licences: Mapping[str, str] = {}
    """Licences of sets of which the authors' own words differ from the package's."""


def read_package(path: Path, image_set: ImageSet) -> tuple[Json, Iterator[tuple[str, Json]]]:
    """Return collections.json, and the sets that may be used, out of the package's folder or .tgz."""
    if path.is_dir():
        root = path / "package" if (path / "package").is_dir() else path
        infos = json.loads((root / "collections.json").read_text("utf-8"))
        prefixes = usable(infos, image_set)
        return infos, ((p, json.loads((root / f"json/{p}.json").read_text("utf-8"))) for p in prefixes)
    with tarfile.open(path) as tar:
        texts = {m.name: _text(tar, m) for m in tar if m.name.endswith("collections.json") or "/json/" in m.name}
    infos = json.loads(texts["package/collections.json"])
    return infos, ((p, json.loads(texts[f"package/json/{p}.json"])) for p in usable(infos, image_set))


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def usable(infos: Json, image_set: ImageSet) -> list[str]:
    """Return the prefixes of the sets to use; refuse one that has other colours or another licence than is known."""
    for prefix, spdx in image_set.licences.items():
        infos[prefix]["license"]["spdx"] = spdx
    wrong = [
        p
        for p in image_set.copyrights
        if p not in infos
        or bool(infos[p].get("palette")) != image_set.palette
        or infos[p]["license"]["spdx"] not in LICENCES
    ]
    if wrong:
        colours = "in colour" if image_set.palette else "single-colour"
        raise SystemExit(f"not in this package, or not {colours} under a permissive licence: {', '.join(wrong)}")
    return sorted(image_set.copyrights)


def container(name: str, classes: Sequence[Class], infos: Json, levels: int) -> bytes:
    """Return the data file."""
    ordered = [c for split, _ in SPLITS for c in classes if c.split == split]
    chosen = [choice for c in ordered for choice in c.choices]
    prefixes = sorted({choice.icon.prefix for choice in chosen})
    stacked = np.stack([choice.image for choice in chosen])
    images = stacked.tobytes()
    manifest = {
        "sets": [[p, infos[p]["name"], infos[p]["author"]["name"], infos[p]["license"]["spdx"]] for p in prefixes],
        "images": [[prefixes.index(c.icon.prefix), c.icon.name, _sha256(c.icon.svg.encode())] for c in chosen],
    }
    manifest_text = _dump(manifest)
    index = {
        "format": f"headstart-{name}-1",
        "source": SOURCE,
        "renderer": f"resvg-py {version('resvg-py')}",
        "shape": [len(chosen), *((1,) if stacked.ndim == 3 else ()), *stacked.shape[1:]],
        "levels": levels,
        "splits": {s: [[c.name, len(c.choices), c.turns] for c in ordered if c.split == s] for s, _ in SPLITS},
        "details": {
            "designers": len({choice.hand for choice in chosen}),
            "sets": len(prefixes),
            "licences": dict(sorted(Counter(infos[c.icon.prefix]["license"]["spdx"] for c in chosen).items())),
        },
        "sha256": {"images.bin": _sha256(images), "manifest.json": _sha256(manifest_text)},
    }
    return _zip({"index.json": _dump(index), "images.bin": images, "manifest.json": manifest_text})


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _zip(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, data, zipfile.ZIP_DEFLATED, 9)
    return file.getvalue()


def summary(classes: Sequence[Class], data: bytes) -> str:
    """Return the counts that a reader wants to see."""
    lines = []
    for split, of_split in [(s, [c for c in classes if c.split == s]) for s, _ in SPLITS] + [("all", list(classes))]:
        sizes = [len(c.choices) for c in of_split]
        turns = sum(c.turns for c in of_split)
        lines.append(f"{split:11}{len(sizes):5} classes {sum(sizes):6} images, {turns} classes may be turned")
    hands, sets = ({f(c) for k in classes for c in k.choices} for f in (lambda c: c.hand, lambda c: c.icon.prefix))
    lines.append(f"{len(sets)} sets of {len(hands)} designers; {len(data):,} bytes, sha256 {_sha256(data)}")
    return "\n".join(lines)


def difference(built: bytes, shipped: bytes) -> str | None:
    """Return what differs between two data files; ``None`` if nothing does."""
    if built == shipped:
        return None
    a, b = (zipfile.ZipFile(io.BytesIO(data)) for data in (built, shipped))
    parts = [n for n in a.namelist() if n not in b.namelist() or a.read(n) != b.read(n)]
    return f"differs in {', '.join(parts)}" if parts else "same contents, compressed differently (another zlib)"


def run(image_set: ImageSet, told: str | None, arguments: Sequence[str] | None = None) -> int:
    """Build, then write or compare, as a command line says; return the exit status."""
    file, folder = f"{image_set.name}.zip", IMAGES / image_set.name
    parser = argparse.ArgumentParser(description=(told or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="the npm package: its .tgz, or the folder it was unpacked to")
    parser.add_argument("--out", type=Path, default=folder, help=f"folder of {file} and NOTICES.md")
    parser.add_argument("--check", action="store_true", help="compare with the files in --out; write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    infos, sets = read_package(given.package, image_set)
    classes = image_set.build(infos, sets, given.processes)
    data = container(image_set.name, classes, infos, image_set.levels)
    used = sorted({choice.icon.prefix for c in classes for choice in c.choices})
    text = notices({prefix: infos[prefix] for prefix in used}, image_set.copyrights, image_set.head)
    print(summary(classes, data))
    if not given.check:
        (given.out / file).write_bytes(data)
        (given.out / "NOTICES.md").write_text(text, "utf-8")
        return 0
    found = difference(data, (given.out / file).read_bytes())
    if (given.out / "NOTICES.md").read_text("utf-8") != text:
        found = f"{found}; NOTICES.md differs" if found else "NOTICES.md differs"
    print(found or "identical")
    return 1 if found else 0
