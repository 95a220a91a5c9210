"""How a suite's picture looks: colours of contenders, sizes of texts, and lines that fit."""

import textwrap
from collections.abc import Iterable
from typing import NamedTuple

from headstart.training.report.figures import BLUE, GREEN, ORANGE, RED

#: Who a picture is about: drawn in blue, before all others.
OURS = "headstart"
#: Sizes of texts in points.
HEADING, TITLE, TEXT, SMALL = 14.0, 10.0, 8.5, 8.0
#: The distance of lines of text in inches, for each point of their size.
LINE = 1.3 / 72
INK, QUIET = "#24292f", "#6b7280"

_OURS = BLUE, "#5fa8e6", "#153e6b", "#17a2b8", "#6a7fdb", "#9cc3e8"
#: The same colour in every picture.
_KNOWN = {
    "PyTorch loop": "#7c838d", "learn2learn": ORANGE, "higher": RED, "TorchOpt": "#8e5bb5", "iteryne": "#8c5a3c",
    "parallel-metalearn": "#a89a12", "JAX": GREEN, "easyfsl": "#d76a9e", "torchmeta": "#5e7d2b",
}  # fmt: skip
_OTHERS = "#3d434b", "#b56576", "#4f772d", "#c2a878", "#7b2d8b", "#bc4b00"
_MARKERS = "os^DvP"


class Style(NamedTuple):
    """How one contender is drawn in every panel."""

    colour: str
    marker: str = "o"
    dashed: bool = False
    ours: bool = False


def styles(contenders: Iterable[str]) -> dict[str, Style]:
    """Return a style for each contender: blues for ours, and one colour for each other with all its variants.

    A variant is called by the name and, after a comma, what is different: ``"learn2learn, 1 thread"``.

    >>> found = styles(["headstart", "JAX", "learn2learn", "learn2learn, 1 thread"])
    >>> found["learn2learn"].colour == found["learn2learn, 1 thread"].colour
    True
    """
    found: dict[str, Style] = {}
    colours, variants = dict(_KNOWN), 0
    for contender in contenders:
        name = contender.split(",")[0]
        if contender == OURS:
            found[contender] = Style(BLUE, ours=True)
        elif name.split(" ")[0] == OURS:
            variants += 1
            marker = _MARKERS[variants % len(_MARKERS)]
            found[contender] = Style(_OURS[1:][(variants - 1) % (len(_OURS) - 1)], marker, ours=True)
        else:
            colours.setdefault(name, _OTHERS[(len(colours) - len(_KNOWN)) % len(_OTHERS)])
            found[contender] = Style(colours[name], "s" if name != contender else "o", name != contender)
    return found


def soft(colour: str) -> str:
    """Return the colour half-way to white, for areas that are not to stand out.

    >>> soft("#000080")
    '#8080c0'
    """
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{(part + 256) // 2:02x}" for part in parts)


def wrapped(text: str, inches: float, size: float, bold: bool = False) -> str:
    """Return the text in lines that are no wider than so many inches where they are written in the size in points."""
    most = int(inches * 72 / (0.4 * size))  # hardly a line of words has more characters
    for characters in range(min(len(text), most), 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(width(line, size, bold) <= inches for line in lines):
            return "\n".join(lines)
    return text


def width(line: str, size: float, bold: bool = False) -> float:
    """Return the width in inches of a line of text in a size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(line, font, False)[0] / 72


def lines(text: str) -> int:
    """Return the number of lines of a text."""
    return 1 + text.count("\n") if text else 0
