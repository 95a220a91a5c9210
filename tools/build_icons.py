"""Build the `icons` data set: designs of many open-source designers, as 28 x 28 grey images.

Inputs (once; nothing is downloaded here)::

    npm pack @iconify/json@2.2.535                # iconify-json-2.2.535.tgz, 104 MB
    pip install resvg-py==0.5.0 numpy pillow      # or: pip install 'headstart[icons]'
    python tools/build_icons.py iconify-json-2.2.535.tgz            # writes the data file and NOTICES.md
    python tools/build_icons.py iconify-json-2.2.535.tgz --check    # compares with the shipped ones instead

What is kept, in this order:

1. Single-colour sets under a permissive licence whose copyright line is known (`icon_notices`); icons that do not
   move.
2. A class is what an icon shows (`icon_names`): its name without the style, words in any order, synonyms merged; no
   trade marks. One icon a class and designer, the plainest; sets by the same hand count as one designer.
3. Each drawing once: of drawings that correlate by more than 0.98 (`icon_images.SAME`), the one in the class of most
   designers stays, then the first by name. That takes out copies, forks, and one drawing under two names.
4. Classes of at least 12 designers.

Splits: classes of one family (the same words but for direction, number and plural) and classes of which step 3 found
the same drawing are near-synonyms; such a group goes into one split. Groups are taken in the order of the SHA-256 of
their first name: training until 60 % of the classes are in, validation until 75 %, then test. Classes whose name
tells a direction, or that look alike when turned by quarters, are marked as not to be turned.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from icon_images import LEVELS, SIDE, Drawing, Images, document, groups, looks_turned, render, same_drawings
from icon_names import SPLITS, family, is_brand, is_directional, set_styles, splits_of, subject
from icon_notices import COPYRIGHTS, LICENCES, notices

SOURCE = "@iconify/json 2.2.535"
SAME_HAND = {"Family": "Ben Sperry", "Material Design Authors": "Google", "Cole Bemis": "Lucide Contributors"}
"""Famicons is made from Ionicons, Lucide from Feather, and both Material sets are Google's."""
DESIGNERS = 12
TRIES = 4
FOLDER = Path(__file__).parents[1] / "src/headstart/data/images/icons"

Json = dict[str, Any]


class Icon(NamedTuple):
    """One drawing that may be taken."""

    penalty: tuple[int, int]
    prefix: str
    name: str
    words: str
    svg: str


class Choice(NamedTuple):
    """The drawing of one designer in one class."""

    key: str
    hand: str
    icon: Icon
    image: Images


class Class(NamedTuple):
    """A class of the data set."""

    name: str
    key: str
    split: str
    turns: bool
    choices: list[Choice]


def read_package(path: Path) -> tuple[Json, Iterator[tuple[str, Json]]]:
    """Return collections.json, and the sets that may be used, out of the package's folder or .tgz."""
    if path.is_dir():
        root = path / "package" if (path / "package").is_dir() else path
        infos = json.loads((root / "collections.json").read_text("utf-8"))
        return infos, ((p, json.loads((root / f"json/{p}.json").read_text("utf-8"))) for p in usable(infos))
    with tarfile.open(path) as tar:
        texts = {m.name: _text(tar, m) for m in tar if m.name.endswith("collections.json") or "/json/" in m.name}
    infos = json.loads(texts["package/collections.json"])
    return infos, ((p, json.loads(texts[f"package/json/{p}.json"])) for p in usable(infos))


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def usable(infos: Json) -> list[str]:
    """Return the prefixes of the sets to use; refuse one that is no longer single-colour and permissive."""
    wrong = [
        p
        for p in COPYRIGHTS
        if p not in infos or infos[p].get("palette") or infos[p]["license"]["spdx"] not in LICENCES
    ]
    if wrong:
        raise SystemExit(f"not in this package, or not single-colour under a permissive licence: {', '.join(wrong)}")
    return sorted(COPYRIGHTS)


def icons_of(prefix: str, icon_set: Json) -> Iterator[tuple[str, Icon]]:
    """Yield (class key, icon) for the icons of a set that are neither hidden nor moving nor trade marks."""
    still = {n: i for n, i in icon_set["icons"].items() if not i.get("hidden") and "<animate" not in i["body"]}
    styles = set_styles(list(still))
    for name, icon in still.items():
        key, words, penalty = subject(name, styles, prefix)
        if not is_brand(key):
            box = (icon.get(f, icon_set.get(f, d)) for f, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
            yield key, Icon(penalty, prefix, name, words, document(icon["body"], *box))


def candidates(infos: Json, sets: Iterator[tuple[str, Json]]) -> list[tuple[str, str, list[Icon]]]:
    """Return (class key, designer, icons from the plainest on) for classes of enough designers."""
    by_class: dict[str, dict[str, list[Icon]]] = defaultdict(lambda: defaultdict(list))
    for prefix, icon_set in sets:
        author = infos[prefix]["author"]["name"]
        for key, icon in icons_of(prefix, icon_set):
            by_class[key][SAME_HAND.get(author, author)].append(icon)
    return [
        (key, hand, sorted(icons, key=lambda i: (i.penalty, i.prefix, len(i.name), i.name))[:TRIES])
        for key, hands in sorted(by_class.items())
        if len(hands) >= DESIGNERS
        for hand, icons in sorted(hands.items())
    ]


def best(icons: Sequence[Icon]) -> tuple[Icon, Drawing] | None:
    """Return the first icon that is not cut out of a plate, else the first that shows anything."""
    plates = None
    for icon in icons:
        drawing = render(icon.svg)
        if drawing and not drawing.plate:
            return icon, drawing
        plates = plates or (drawing and (icon, drawing))
    return plates


def draw(wanted: Sequence[tuple[str, str, list[Icon]]], processes: int) -> list[Choice]:
    """Return the drawing of each designer in each class."""
    with Pool(processes) as pool:
        drawn = pool.map(best, [icons for _, _, icons in wanted], chunksize=64)
    return [Choice(key, hand, d[0], d[1].image) for (key, hand, _), d in zip(wanted, drawn) if d]


def each_once(choices: list[Choice]) -> tuple[list[Choice], list[tuple[str, str]]]:
    """Return each drawing once, and the pairs of classes of which a drawing was the same."""
    size = Counter(choice.key for choice in choices)
    choices = sorted(choices, key=lambda c: (-size[c.key], c.key, c.hand))
    first = same_drawings(np.stack([choice.image for choice in choices]))
    kept = [choice for i, choice in enumerate(choices) if first[i] == i]
    return kept, [(choices[f].key, choices[i].key) for i, f in enumerate(first) if choices[f].key != choices[i].key]


def classes_of(choices: list[Choice]) -> list[Class]:
    """Return the classes of enough designers, named and split, in alphabetical order."""
    kept, pairs = each_once(choices)
    by_key: dict[str, list[Choice]] = defaultdict(list)
    for choice in sorted(kept, key=lambda c: (c.hand, c.icon.prefix)):
        by_key[choice.key].append(choice)
    keys = sorted(key for key, found in by_key.items() if len(found) >= DESIGNERS)
    first_of_family = {family(key): key for key in reversed(keys)}
    pairs = [pair for pair in pairs if pair[0] in keys and pair[1] in keys]
    group = groups(pairs + [(key, first_of_family[family(key)]) for key in keys], keys)
    split = splits_of([group[key] for key in keys])
    classes = []
    for key in keys:
        found = by_key[key]
        turns = not is_directional(key) and not looks_turned(np.stack([choice.image for choice in found]))
        classes.append(Class(_usual_words(found), key, split[group[key]], turns, found))
    return sorted(classes)


def _usual_words(choices: Sequence[Choice]) -> str:
    """Return what most designers call the class."""
    counts = Counter(choice.icon.words for choice in choices)
    return min(counts, key=lambda words: (-counts[words], len(words), words))


def container(classes: Sequence[Class], infos: Json) -> bytes:
    """Return the data file: a zip of index.json, images.bin and manifest.json, the same bytes every time."""
    ordered = [c for split, _ in SPLITS for c in classes if c.split == split]
    chosen = [choice for c in ordered for choice in c.choices]
    prefixes = sorted({choice.icon.prefix for choice in chosen})
    images = np.stack([choice.image for choice in chosen]).tobytes()
    manifest = {
        "sets": [[p, infos[p]["name"], infos[p]["author"]["name"], infos[p]["license"]["spdx"]] for p in prefixes],
        "images": [[prefixes.index(c.icon.prefix), c.icon.name, _sha256(c.icon.svg.encode())] for c in chosen],
    }
    manifest_text = _dump(manifest)
    index = {
        "format": "headstart-icons-1",
        "source": SOURCE,
        "renderer": f"resvg-py {version('resvg-py')}",
        "shape": [len(chosen), 1, SIDE, SIDE],
        "levels": LEVELS,
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, then write or compare; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="the npm package: its .tgz, or the folder it was unpacked to")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of icons.zip and NOTICES.md")
    parser.add_argument("--check", action="store_true", help="compare with the files in --out; write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    infos, sets = read_package(given.package)
    classes = classes_of(draw(candidates(infos, sets), given.processes))
    data = container(classes, infos)
    used = sorted({choice.icon.prefix for c in classes for choice in c.choices})
    text = notices({prefix: infos[prefix] for prefix in used}, SOURCE)
    print(summary(classes, data))
    if not given.check:
        (given.out / "icons.zip").write_bytes(data)
        (given.out / "NOTICES.md").write_text(text, "utf-8")
        return 0
    found = difference(data, (given.out / "icons.zip").read_bytes())
    if (given.out / "NOTICES.md").read_text("utf-8") != text:
        found = f"{found}; NOTICES.md differs" if found else "NOTICES.md differs"
    print(found or "identical")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
