"""Drawings as small grey images, and how alike they are: the pixels of the `icons` data set."""

import io
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 28
MARGIN = 1
FINE = 224
"""Pixels of the longer side before averaging down: 8 for each of the 28."""
LEVELS = 16
"""Grey levels kept; images are 255 / 15 = 17 apart, which no eye tells apart at this size."""
SAME = 0.98
"""Correlation of two images above which they count as the same drawing."""
TURNS_ALIKE = 0.2
"""Share of a class's drawings nearer to the turned class mean than to the class mean (0.5: no difference)."""

Images: TypeAlias = NDArray[np.uint8]
"""(N, 28, 28), 255 where the icon is drawn."""


class Drawing(NamedTuple):
    """A drawing fitted to the frame."""

    image: Images
    """(28, 28)."""
    plate: bool
    """Whether the drawing is cut out of a filled plate."""


def document(body: str, left: float, top: float, width: float, height: float) -> str:
    """Return the SVG document of an icon, drawn in black."""
    scale = FINE / max(width, height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" '
        f'width="{round(width * scale)}" height="{round(height * scale)}">'
        f"{body.replace('currentColor', '#000')}</svg>"
    )


def render(svg: str) -> Drawing | None:
    """Return the drawing of an SVG document; ``None`` if there is nothing, or next to nothing, on it."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, background="#fff", skip_system_fonts=True)
    return fitted(255 - np.asarray(Image.open(io.BytesIO(png)).convert("L")))


def fitted(ink: Images) -> Drawing | None:
    """Return the drawing in a tight box, its shape kept, averaged down to the frame; ``None`` if blank."""
    rows, columns = np.flatnonzero((ink > 32).any(1)), np.flatnonzero((ink > 32).any(0))
    if rows.size == 0:
        return None
    tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longer = max(tight.shape)
    if longer < FINE // 8:
        return None
    height, width = (max(1, round((SIDE - 2 * MARGIN) * side / longer)) for side in tight.shape)
    small = np.asarray(Image.fromarray(tight).resize((width, height), Image.Resampling.BOX))
    frame = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    frame[top : top + height, left : left + width] = small
    step = 255 // (LEVELS - 1)
    grey = (frame.astype(np.int32) + step // 2) // step * step
    return Drawing(grey.astype(np.uint8), _is_plate(tight))


def _is_plate(tight: Images) -> bool:
    """Return whether ink covers most of the box and nearly all of its edge, the corners aside."""
    ink = tight > 127
    rows, columns = (slice(side // 6, side - side // 6) for side in ink.shape)
    edge = np.concatenate([ink[0, columns], ink[-1, columns], ink[rows, 0], ink[rows, -1]])
    return float(edge.mean()) > 0.9 and float(ink.mean()) > 0.6


def flat(images: Images) -> NDArray[np.float32]:
    """Return the images as rows of numbers in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def same_drawings(images: Images, rows: int = 1000) -> NDArray[np.int64]:
    """Return, for each image, the first kept image that is the same drawing, or its own number if it is kept.

    An image is kept unless it correlates by more than `SAME` with one kept before it.
    """
    x = flat(images)
    x -= x.mean(1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-6
    kept = np.ones(len(x), bool)
    first = np.arange(len(x))
    for start in range(0, len(x), rows):
        alike = x[start : start + rows] @ x[: start + rows].T > SAME
        for i, row in enumerate(alike, start):
            before = np.flatnonzero(row[:i])
            before = before[kept[before]]
            if before.size:
                kept[i], first[i] = False, before[0]
    return first


def looks_turned(images: Images) -> bool:
    """Return whether a class looks much the same turned by 90, 180 or 270 degrees.

    Each drawing is compared with the mean of the class's others, upright and turned; where many drawings are no
    nearer to the upright one, the turned class would be the same class under another name.
    """
    x = flat(images)
    others = (x.sum(0) - x) / (len(x) - 1)
    upright = ((x - others) ** 2).sum(1)
    for quarter in (1, 2, 3):
        turned = np.rot90(others.reshape(-1, SIDE, SIDE), quarter, (1, 2)).reshape(len(x), -1)
        if float((((x - turned) ** 2).sum(1) <= upright).mean()) >= TURNS_ALIKE:
            return True
    return False


def groups(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> dict[str, str]:
    """Return, for each name, the first name (in alphabetical order) of those that the pairs join it to."""
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {name: root(name) for name in names}
