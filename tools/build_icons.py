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

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing import Pool
from typing import NamedTuple

import numpy as np
from archive import SOURCE, Choice, Class, ImageSet, Json, Source, run
from icon_images import LEVELS, Drawing, document, groups, looks_turned, render, same_drawings
from icon_names import family, is_brand, is_directional, set_styles, splits_of, subject
from icon_notices import COPYRIGHTS

SAME_HAND = {"Family": "Ben Sperry", "Material Design Authors": "Google", "Cole Bemis": "Lucide Contributors"}
"""Famicons is made from Ionicons, Lucide from Feather, and both Material sets are Google's."""
DESIGNERS = 12
TRIES = 4
HEAD = f"""# Notices for the icons data set

`icons.zip` holds small grey images (28 x 28) rendered from the icons of the open-source sets below, as packed in
{SOURCE}. Each image is one icon, cropped, scaled and averaged down; `manifest.json` in the file
names the set, the icon, the author and the licence of every image. The artwork belongs to its authors, who do not
endorse this project.
"""


class Icon(NamedTuple):
    """One drawing that may be taken."""

    penalty: tuple[int, int]
    source: Source


def icons_of(prefix: str, icon_set: Json) -> Iterator[tuple[str, Icon]]:
    """Yield (class key, icon) for the icons of a set that are neither hidden nor moving nor trade marks."""
    still = {n: i for n, i in icon_set["icons"].items() if not i.get("hidden") and "<animate" not in i["body"]}
    styles = set_styles(list(still))
    for name, icon in still.items():
        key, words, penalty = subject(name, styles, prefix)
        if not is_brand(key):
            box = (icon.get(f, icon_set.get(f, d)) for f, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
            yield key, Icon(penalty, Source(prefix, name, document(icon["body"], *box), words))


def candidates(infos: Json, sets: Iterator[tuple[str, Json]]) -> list[tuple[str, str, list[Icon]]]:
    """Return (class key, designer, icons from the plainest on) for classes of enough designers."""
    by_class: dict[str, dict[str, list[Icon]]] = defaultdict(lambda: defaultdict(list))
    for prefix, icon_set in sets:
        author = infos[prefix]["author"]["name"]
        for key, icon in icons_of(prefix, icon_set):
            by_class[key][SAME_HAND.get(author, author)].append(icon)
    return [
        (
            key,
            hand,
            sorted(icons, key=lambda i: (i.penalty, i.source.prefix, len(i.source.name), i.source.name))[:TRIES],
        )
        for key, hands in sorted(by_class.items())
        if len(hands) >= DESIGNERS
        for hand, icons in sorted(hands.items())
    ]


def best(icons: Sequence[Icon]) -> tuple[Icon, Drawing] | None:
    """Return the first icon that is not cut out of a plate, else the first that shows anything."""
    plates = None
    for icon in icons:
        drawing = render(icon.source.svg)
        if drawing and not drawing.plate:
            return icon, drawing
        plates = plates or (drawing and (icon, drawing))
    return plates


def draw(wanted: Sequence[tuple[str, str, list[Icon]]], processes: int) -> list[Choice]:
    """Return the drawing of each designer in each class."""
    with Pool(processes) as pool:
        drawn = pool.map(best, [icons for _, _, icons in wanted], chunksize=64)
    return [Choice(key, hand, d[0].source, d[1].image) for (key, hand, _), d in zip(wanted, drawn) if d]


def each_once(choices: list[Choice]) -> tuple[list[Choice], list[tuple[str, str]]]:
    """Return each drawing once, and the pairs of classes of which a drawing was the same."""
    size = Counter(choice.key for choice in choices)
    choices = sorted(choices, key=lambda c: (-size[c.key], c.key, c.hand))
    first = same_drawings(np.stack([choice.image for choice in choices]))
    kept = [choice for i, choice in enumerate(choices) if first[i] == i]
    return kept, [(choices[f].key, choices[i].key) for i, f in enumerate(first) if choices[f].key != choices[i].key]


def build(infos: Json, sets: Iterator[tuple[str, Json]], processes: int) -> list[Class]:
    """Return the classes of the data set."""
    return classes_of(draw(candidates(infos, sets), processes))


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, then write or compare; return the exit status."""
    return run(ImageSet("icons", COPYRIGHTS, HEAD, LEVELS, build, palette=False), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
