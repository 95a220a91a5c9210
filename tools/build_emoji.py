"""Build the `emoji` data set: emoji in colour as several designers draw them, 32 x 32 RGB images.

Inputs (once; nothing is downloaded here)::

    npm pack @iconify/json@2.2.535                # iconify-json-2.2.535.tgz, 104 MB
    pip install resvg-py==0.5.0 numpy pillow      # or: pip install 'headstart[icons]'
    python tools/build_emoji.py iconify-json-2.2.535.tgz            # writes the data file and NOTICES.md
    python tools/build_emoji.py iconify-json-2.2.535.tgz --check    # compares with the shipped ones instead

What is kept, in this order:

1. Coloured sets under a permissive licence or CC-BY; of OpenMoji and EmojiOne 1, which are share-alike, nothing.
2. A class is a character of Unicode: no sequences of several, so no skin tones, no professions in two genders, no
   families and no flags (they are the data set `flags`), and no plain squares, circles, diamonds and triangles, which
   a tight frame makes the same in all their sizes. A designer's drawing is found by the names of the character.
3. Each drawing once: of drawings that are the same (`colour_images.same_drawings`), the one in the class of most
   designers stays, then the first by name.
4. Classes of at least 6 designers.

Splits: classes are held apart by what they mean and how they look. Classes whose names are the same but for
qualifiers, end alike ("palm tree"), or are the one within the other ("cat" in "cat with wry smile"), those of which
step 3 found the same drawing, and those that at least half of their common designers draw alike (`ALIKE`: the phases
of the moon, most yellow faces) are a group, and a group goes into one split, in the order of the SHA-256 of its first
name: training until 60 % of the classes are in, validation until 75 %, then test.
"""

import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from archive import SOURCE, Choice, Class, ImageSet, Json, Source, run
from colour_images import LEVELS, box_of, by_class, document, drawn, each_once, look_alikes
from icon_images import groups
from icon_names import splits_of

COPYRIGHTS = {
    "emojione": "Emoji artwork is provided by Emojitwo (https://github.com/EmojiTwo/emojitwo), originally released as"
    " Emojione 2.2 (https://www.emojione.com) by Ranks.com with contributions from the Emojitwo community",
    "fluent-emoji-flat": "Copyright (c) Microsoft Corporation",
    "fxemoji": "Copyright 2015, Mozilla Foundation",
    "noto": "Copyright Google LLC",
    "noto-v1": "Copyright Google LLC",
    "streamline-emojis": "Copyright Streamline (https://www.streamlinehq.com)",
    "twemoji": "Copyright (c) 2022-present Jason Sofonia & Justine De Caires; Copyright (c) 2014-2021 Twitter",
}
LICENCES = {"fxemoji": "CC-BY-4.0"}
"""Its code is under Apache-2.0, as the package has it, its drawings are under CC-BY-4.0."""
WRONG = {("fxemoji", "keyboard"), ("streamline-emojis", "turkey")}
"""Drawings that show something else of that name: a piano's keys, and a country's flag."""
NAMED = ("twemoji", "noto", "fluent-emoji-flat")
"""The sets that say which character each drawing is of."""
DESIGNERS = 6
ALIKE = 0.9
HEAD = f"""# Notices for the emoji data set

`emoji.zip` holds small images (32 x 32) rendered from the emoji of the sets below, as packed in {SOURCE}.
Each image is one emoji, cropped, scaled and averaged down to 16 levels of each colour; `manifest.json` in the file
names the set, the emoji, the author and the licence of every image. The artwork belongs to its authors, who do not
endorse this project.
"""

SHAPES = ("square", "circle", "diamond", "triangle", "square-button", "dot")
QUALIFIERS = set(
    "face with of and on in the a for no not person man woman boy girl men women people old older baby button sign"
    " symbol mark black white red blue green yellow orange purple brown grey pink light dark heavy large medium small"
    " big double left right up down backhand pointing curved top back forward first second third last two three open"
    " closed smiling over under behind japanese one oclock thirty full half quarter new wavy raised lowered".split()
)
"""Words that tell classes of one meaning apart."""


def characters(sets: Mapping[str, Json]) -> dict[str, list[str]]:
    """Return the names of every emoji that is one character, its usual name first."""
    found = defaultdict[str, list[str]](list)
    for prefix in NAMED:
        for code, name in sets[prefix]["chars"].items():
            points = [point for point in code.split("-") if point != "fe0f"]
            if len(points) == 1 and not 0x1F3FB <= int(points[0], 16) <= 0x1F3FF:
                found[points[0]].append(name)
    others = defaultdict[str, set[str]](set)
    for icon_set in sets.values():
        for alias, of in icon_set.get("aliases", {}).items():
            others[of["parent"]].add(alias)
            others[alias].add(of["parent"])
    return {
        names[0]: [*names, *sorted({alias for name in names for alias in others[name]}), _unicode(code)]
        for code, names in sorted(found.items())
        if not names[0].endswith(SHAPES)
    }


def _unicode(code: str) -> str:
    return unicodedata.name(chr(int(code, 16)), "").lower().replace(" ", "-")


def _plain(name: str) -> str:
    return name.replace("-", "")


def sources(icon_set: Json, prefix: str) -> dict[str, Source]:
    """Return the icons of a set by all their names, without hyphens; of numbered drawings, the first."""
    icons = {name: icon for name, icon in icon_set["icons"].items() if (prefix, name) not in WRONG}
    found = {
        name: Source(prefix, name, document(icon["body"], *box_of(icon, icon_set)), name)
        for name, icon in icons.items()
    }
    first = {_plain(name.removesuffix("-1")): icon for name, icon in found.items() if name.endswith("-1")}
    aliases = icon_set.get("aliases", {}).items()
    others = {_plain(alias): found[of["parent"]] for alias, of in aliases if of["parent"] in found}
    return first | others | {_plain(name): icon for name, icon in found.items()}


def build(infos: Json, sets: Iterator[tuple[str, Json]], processes: int) -> list[Class]:
    """Return the classes of the data set."""
    by_prefix = dict(sets)
    icons = {prefix: sources(icon_set, prefix) for prefix, icon_set in by_prefix.items()}
    wanted = list[tuple[str, str, Source]]()
    for key, names in characters(by_prefix).items():
        plain = [_plain(name) for name in names]
        found = {prefix: next((own[name] for name in plain if name in own), None) for prefix, own in icons.items()}
        hits = [(key, prefix, icon) for prefix, icon in found.items() if icon is not None]
        wanted += hits if len(hits) >= DESIGNERS else []
    return classes_of(drawn(wanted, processes))


def classes_of(choices: Sequence[Choice]) -> list[Class]:
    """Return the classes of enough designers, split, in alphabetical order."""
    kept, pairs = each_once([choice for own in by_class(choices, DESIGNERS).values() for choice in own])
    classes = by_class(kept, DESIGNERS)
    left = [choice for own in classes.values() for choice in own]
    pairs = [pair for pair in pairs if pair[0] in classes and pair[1] in classes]
    group = groups(pairs + near_synonyms(list(classes)) + look_alikes(left, ALIKE), sorted(classes))
    split = splits_of([group[key] for key in sorted(classes)])
    return [Class(key, key, split[group[key]], False, own) for key, own in sorted(classes.items())]


def meaning(name: str) -> list[str]:
    """Return what a name says but for qualifiers, or all that it says where they are all.

    >>> meaning("smiling-cat-with-heart-eyes")
    ['cat', 'heart', 'eye']
    """
    words = name.split("-")
    said = [word for word in words if word not in QUALIFIERS] or words
    return [word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word for word in said]


def near_synonyms(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of names of which one says all that the other does, or that end alike ("palm tree")."""
    said = {name: meaning(name) for name in names}
    return [
        (a, b) for a in names for b in names if a != b and (set(said[a]) <= set(said[b]) or said[a][-1] == said[b][-1])
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, then write or compare; return the exit status."""
    return run(ImageSet("emoji", COPYRIGHTS, HEAD, LEVELS, build, True, LICENCES), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
