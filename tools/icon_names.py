"""From an icon's name to what the icon shows: the naming rules of the `icons` data set.

An icon is called ``arrow-left-circle-bold``, ``circle-left-arrow``, ``arrow-circle-left-24-filled`` …: the name holds
what is drawn and the style it is drawn in. `subject` takes the style off, replaces words that mean the same picture
by one of them, and sorts the words, so that all of these become ``arrow-circle-left``.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

PLAIN_STYLES = {"outline", "outlined", "regular", "line", "rounded", "baseline", "round"}
"""Styles nearest to a plain drawing: taken before the others where a designer offers several."""
ALWAYS_STYLES = {"outline", "outlined", "fill", "filled", "solid", "duotone", "twotone", "rounded"} | {
    "sharp", "variant", "alt", "mirrored", "stroke", "stroked", "regular"
}  # fmt: skip
"""A style at the end of any set's names."""
SOMETIMES_STYLES = {"line", "bold", "light", "thin", "round", "o", "r", "f", "tone", "two", "one", "three"} | {
    "small", "duo", "ltr", "rtl", "1", "2", "01", "02", "03"
}  # fmt: skip
"""A style only in a set where many names end with it: in 'traffic-light' and 'number-1' it is the subject."""
SIZES = {"8", "10", "12", "14", "15", "16", "18", "20", "24", "28", "32", "36", "40", "42", "48", "64", "96", "24px"}
"""Pixel sizes; a style in a set where many names end with one."""
MANY = 0.04
"""'Many': this share of a set's names."""
PREFIX_STYLES = {"ic": {"baseline", "outline", "round", "sharp", "twotone"}}
"""Sets that put the style first."""

SYNONYMS = {
    "account": "user", "person": "user", "avatar": "user", "cog": "gear", "settings": "gear", "setting": "gear",
    "house": "home", "magnifier": "search", "magnify": "search", "email": "mail", "envelope": "mail",
    "bin": "trash", "trashcan": "trash", "close": "x", "xmark": "x", "times": "x", "add": "plus", "subtract": "minus",
    "tick": "check", "checkmark": "check", "information": "info", "help": "question", "mic": "microphone",
    "telephone": "phone", "smartphone": "mobile", "cellphone": "mobile", "picture": "image", "photo": "image",
    "earth": "globe", "world": "globe", "lightbulb": "bulb", "lightning": "bolt", "zap": "bolt",
    "airplane": "plane", "aeroplane": "plane", "bike": "bicycle", "printer": "print", "television": "tv",
    "videocam": "video", "movie": "film", "flame": "fire", "attachment": "paperclip", "document": "file",
    "processor": "cpu", "hashtag": "hash", "percentage": "percent", "thumbs": "thumb",
    "store": "shop", "signin": "login", "signout": "logout", "favourite": "favorite", "cheveron": "chevron",
    "chevrons": "chevron-double", "colour": "color", "centre": "center", "vertically": "vertical",
    "horizontally": "horizontal", "circled": "circle", "squared": "square", "bubbles": "bubble", "suitcase": "luggage",
    "notification": "bell", "notifications": "bell", "datetime": "calendar", "qrcode": "code-qr", "warning": "alert",
    "laptops": "laptop", "medicine": "medical", "award": "medal", "labels": "label", "dot": "dots",
}  # fmt: skip
"""Words that icon designers use for the same picture. Where they do not, look-alikes still share a split (see
`build_icons`)."""
PHRASES = {
    "in log": "login", "in sign": "login", "log out": "logout", "out sign": "logout", "cart shopping": "cart",
    "basket shopping": "basket", "bag shopping": "bag", "camera video": "video", "disk floppy": "floppy",
    "piece puzzle": "puzzle", "glass magnifying": "search", "paper plane": "send", "bin trash": "trash",
    "can trash": "trash", "can garbage": "trash", "mobile phone": "mobile", "mark question": "question",
    "exclamation mark": "exclamation", "check mark": "check", "mark x": "x", "ball tennis": "tennis",
    "bulb light": "bulb", "eye shut": "eye-off", "closed eye": "eye-off", "map marker": "map-pin",
    "dollar sign": "dollar", "brush paint": "paintbrush", "music note": "music", "off power": "power",
}  # fmt: skip
"""The same for words that come together (after `SYNONYMS`), each phrase in alphabetical order."""

BRANDS = set(
    "adobe airbnb airplay alipay amazon android angular apple aws bandcamp behance bing bitbucket blogger brand chrome "
    "codepen css3 deezer deviantart discord docker dribbble dropbox etsy evernote facebook figma firefox flickr "
    "foursquare github gitlab gmail google html5 instagram javascript kickstarter lastfm linkedin linux logo markdown "
    "mastercard mastodon medium messenger microsoft netflix nodejs notion npm openai patreon paypal php pinterest "
    "playstation python quora react reddit safari shopify sketch skype slack snapchat social soundcloud spotify "
    "stackoverflow stripe svelte telegram threads tiktok trello tumblr twitch twitter typescript uber unsplash viber "
    "vimeo visa vk vue wechat whatsapp wikipedia windows wordpress xbox xing yahoo yelp youtube".split()
)
"""Trade marks: every designer draws the same mark, and an icon set's licence does not cover it."""

DIRECTIONS = set(
    "left right up down top bottom north south east west northeast northwest southeast southwest horizontal vertical "
    "start end forward back backward next previous prev undo redo rotate rotation clockwise counterclockwise cw ccw "
    "rewind turn landscape portrait upload download ascending descending asc desc reply refresh rise fall rising "
    "falling height width row rows column columns flip upward downward italic login logout trending skip fast h v "
    "n e s w ltr rtl triangle import export increase decrease outgoing incoming upright sort enter exit external play "
    "eject".split()
)
"""A name with one of these says which way the drawing points: turned, it would show something else."""

SPLITS = (("train", 0.60), ("validation", 0.75), ("test", 1.0))
"""The splits, in the order they are filled, and the share of the classes up to which."""


class Subject(NamedTuple):
    """What an icon shows, and how far its style is from the plain drawing (0: plain)."""

    key: str
    """The same for all word orders and synonyms: ``arrow-left`` for ``left-arrow``."""
    words: str
    """The designer's own words for it, without the style: ``left-arrow``."""
    penalty: tuple[int, int]


def set_styles(names: Sequence[str]) -> set[str]:
    """Return the words that are styles at the end of this set's names."""
    known = ALWAYS_STYLES | SOMETIMES_STYLES | SIZES
    ends: Counter[str] = Counter()
    for name in names:
        ends.update(_ending(name.split("-"), known))
    many = MANY * len(names)
    styles = ALWAYS_STYLES | {word for word in SOMETIMES_STYLES if ends[word] >= many}
    return styles | SIZES if sum(ends[size] for size in SIZES) >= many else styles


def _ending(words: list[str], styles: set[str]) -> list[str]:
    """Return the run of style words at the end; the first word is always part of the subject."""
    first = next((i for i in range(len(words), 1, -1) if words[i - 1] not in styles), 1)
    return words[first:]


def subject(name: str, styles: set[str], prefix: str = "") -> Subject:
    """Return what the icon called ``name`` shows, in the set ``prefix`` whose style words are ``styles``."""
    words = name.split("-")
    taken = [words.pop(0)] if words[0] in PREFIX_STYLES.get(prefix, ()) and len(words) > 1 else []
    ending = _ending(words, styles)
    shown = words[: len(words) - len(ending)]
    return Subject(canonical(shown), "-".join(shown), _penalty(taken + ending))


def _penalty(taken: Sequence[str]) -> tuple[int, int]:
    """Return (how far from plain, how far from 24 pixels)."""
    styles = [word for word in taken if word not in SIZES]
    sizes = [abs(int(word.removesuffix("px")) - 24) for word in taken if word in SIZES]
    return sum(1 if word in PLAIN_STYLES else 3 for word in styles), sum(sizes)


def canonical(words: Sequence[str]) -> str:
    """Return one name for all orders and synonyms of the words.

    >>> canonical(["left", "arrow"]), canonical(["add", "shopping", "cart"]), canonical(["bell", "slash"])
    ('arrow-left', 'cart-plus', 'bell-off')
    """
    same = [part for word in words for part in SYNONYMS.get(word, word).split("-")]
    if len(same) > 1:
        same = ["off" if word == "slash" else word for word in same]
    for phrase, word in PHRASES.items():
        parts = phrase.split()
        if all(part in same for part in parts):
            same = [part for part in same if part not in parts] + [word]
    return "-".join(sorted(same))


def is_brand(name: str) -> bool:
    """Return whether the subject is a trade mark."""
    return name == "line" or any(word in BRANDS for word in name.split("-"))


def is_directional(name: str) -> bool:
    """Return whether the subject's name says which way the drawing points."""
    return any(word in DIRECTIONS for word in name.split("-"))


def family(name: str) -> str:
    """Return the subject's words without direction, number and plural: one family, one split.

    >>> family("arrow-left"), family("arrows-down"), family("users"), family("battery-2")
    ('arrow', 'arrow', 'user', 'battery')
    """
    words = [word for word in name.split("-") if word not in DIRECTIONS and not word.isdigit()]
    return "-".join(sorted(_singular(word) for word in words or name.split("-")))


def _singular(word: str) -> str:
    """Return the word without the plural's ending."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def splits_of(groups: Sequence[str]) -> dict[str, str]:
    """Return the split of each group, given the group of every class.

    Groups are taken in the order of their names' SHA-256; a split is full when it holds its share of the classes.
    """
    split, taken = {}, 0
    sizes = Counter(groups)
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        split[group] = next(name for name, share in SPLITS if taken < share * len(groups))
        taken += sizes[group]
    return split
