"""Build the `flags` data set: flags of countries and territories as several designers draw them, 32 x 32 RGB images.

Inputs (once; nothing is downloaded here)::

    npm pack @iconify/json@2.2.535                # iconify-json-2.2.535.tgz, 104 MB
    pip install resvg-py==0.5.0 numpy pillow      # or: pip install 'headstart[icons]'
    python tools/build_flags.py iconify-json-2.2.535.tgz            # writes the data file and NOTICES.md
    python tools/build_flags.py iconify-json-2.2.535.tgz --check    # compares with the shipped ones instead

What is kept, in this order:

1. Coloured sets under a permissive licence or CC-BY. One drawing a designer and flag: rectangles of 4:3 and of the
   flag's own proportions, rounded, waving, and discs.
2. A class is a flag of ISO 3166-1 by its code, without drawings that show something else (`WRONG`). Territories that
   fly another's flag (`SAME_FLAG`) are left out, and of two flags that at least half of their designers draw almost
   the same (`LIKE_ONE`: Chad and Romania, Indonesia and Monaco), the first by name stays.
3. Each drawing once: of drawings that are the same (`colour_images.same_drawings`), the one in the class of most
   designers stays, then the first by name.
4. Classes of at least 5 designers.

Splits: flags of which step 3 found the same drawing, and those that at least half of their common designers draw alike
(`ALIKE`: Iceland and Norway, Australia and New Zealand), are a group, and a group goes into one split, in the order of
the SHA-256 of its first name: training until 60 % of the classes are in, validation until 75 %, then test.
"""

import sys
from collections.abc import Iterator, Sequence

from archive import SOURCE, Choice, Class, ImageSet, Json, Source, run
from colour_images import LEVELS, box_of, by_class, document, drawn, each_once, look_alikes
from icon_images import groups
from icon_names import splits_of

COPYRIGHTS = {
    "cif": "none claimed",
    "circle-flags": "Copyright (c) 2021 HatScripts",
    "emojione": "Emoji artwork is provided by Emojitwo (https://github.com/EmojiTwo/emojitwo), originally released as"
    " Emojione 2.2 (https://www.emojione.com) by Ranks.com with contributions from the Emojitwo community",
    "flag": "Copyright (c) 2025 Panayiotis Lipiridis",
    "flagpack": "Copyright (c) 2021 Yummygum",
    "twemoji": "Copyright (c) 2022-present Jason Sofonia & Justine De Caires; Copyright (c) 2014-2021 Twitter",
}
SAME_FLAG = set("ac bv cp cq dg ea gf gp hm mf mq pm re sh sj ta um wf yt bl nc".split())
"""Territories whose designers draw the flag of the country that they belong to, or some this and some one of its
own."""
WRONG = {("circle-flags", code) for code in ("ar", "ie", "io", "la")} | {("cif", "dz"), ("flagpack", "gb")}
"""Drawings that show something else: flags of languages of that code, a disc for a crescent, England for Britain."""
NAMES_OF_EMOJI = "flag-", "flag-for-"
DESIGNERS = 5
ALIKE, LIKE_ONE = 0.9, 0.97
HEAD = f"""# Notices for the flags data set

`flags.zip` holds small images (32 x 32) rendered from the flags of the sets below, as packed in {SOURCE}.
Each image is one flag, cropped, scaled and averaged down to 16 levels of each colour; `manifest.json` in the file
names the set, the flag, the author and the licence of every image. The artwork belongs to its authors, who do not
endorse this project.
"""


def countries(twemoji: Json) -> dict[str, str]:
    """Return the English names of the flags of two regional letters, by their code: ``at`` for ``flag-austria``."""
    found = {}
    for code, name in twemoji["chars"].items():
        letters = [int(point, 16) - 0x1F1E6 for point in code.split("-")]
        if len(letters) == 2 and all(0 <= letter < 26 for letter in letters):
            found["".join(chr(ord("a") + letter) for letter in letters)] = name.removeprefix("flag-")
    return {code: name for code, name in sorted(found.items()) if code not in SAME_FLAG}


def source(prefix: str, icon_set: Json, code: str, name: str) -> Source | None:
    """Return a designer's drawing of a country's flag, if there is one."""
    aliases = {alias: of["parent"] for alias, of in icon_set.get("aliases", {}).items()}
    called = {"flag": [f"{code}-4x3"]}.get(prefix, [code])
    if prefix in ("twemoji", "emojione"):
        called = [f"{start}{name}" for start in NAMES_OF_EMOJI]
    for own in called:
        own = aliases.get(own, own)
        if icon := icon_set["icons"].get(own):
            return Source(prefix, own, document(icon["body"], *box_of(icon, icon_set)), name)
    return None


def build(infos: Json, sets: Iterator[tuple[str, Json]], processes: int) -> list[Class]:
    """Return the classes of the data set."""
    by_prefix = dict(sets)
    wanted = [
        (name, prefix, icon)
        for code, name in countries(by_prefix["twemoji"]).items()
        for prefix, icon_set in by_prefix.items()
        if (prefix, code) not in WRONG and (icon := source(prefix, icon_set, code, name)) is not None
    ]
    return classes_of(drawn(wanted, processes))


def classes_of(choices: Sequence[Choice]) -> list[Class]:
    """Return the classes of enough designers, split, in alphabetical order."""
    twins = {b for _, b in look_alikes(choices, LIKE_ONE)}
    kept, pairs = each_once([choice for choice in choices if choice.key not in twins])
    classes = by_class(kept, DESIGNERS)
    left = [choice for own in classes.values() for choice in own]
    pairs = [pair for pair in pairs if pair[0] in classes and pair[1] in classes]
    group = groups(pairs + look_alikes(left, ALIKE), sorted(classes))
    split = splits_of([group[key] for key in sorted(classes)])
    return [Class(key, key, split[group[key]], False, own) for key, own in sorted(classes.items())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, then write or compare; return the exit status."""
    return run(ImageSet("flags", COPYRIGHTS, HEAD, LEVELS, build, True), __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
