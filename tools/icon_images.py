"""Drawings as small grey images, and measures of how alike they are: the pixels of the `icons` data set."""

import io
from typing import NamedTuple

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image

SIDE = 28
MARGIN = 1
FINE = 224
"""Pixels of the longer side before averaging down: 8 for each of the 28."""
LEVELS = 16
"""Grey levels kept: 17 grey values apart, below what the eye tells apart at this size."""

Images = NDArray[np.uint8]
"""(N, 28, 28), 255 where the icon is drawn."""


def document(body: str, left: float, top: float, width: float, height: float) -> str:
    """Return the SVG document of an icon, drawn in black."""
    body = body.replace("currentColor", "#000")
    scale = FINE / max(width, height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" '
        f'width="{round(width * scale)}" height="{round(height * scale)}">{body}</svg>'
    )


class Drawing(NamedTuple):
    """A drawing fitted to the frame."""

    image: Images
    """(28, 28), 255 where the icon is drawn."""
    plate: bool
    """Whether the drawing is cut out of a filled plate."""


def render(svg: str) -> Drawing | None:
    """Return the drawing of an SVG document; ``None`` if there is nothing, or next to nothing, on it."""
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#fff", skip_system_fonts=True)
    ink = 255 - np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    rows, columns = np.flatnonzero((ink > 32).any(1)), np.flatnonzero((ink > 32).any(0))
    if rows.size == 0:
        return None
    tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if max(tight.shape) < FINE // 8:
        return None
    room = SIDE - 2 * MARGIN
    height, width = (max(1, round(room * side / max(tight.shape))) for side in tight.shape)
    small = np.asarray(Image.fromarray(tight).resize((width, height), Image.Resampling.BOX))
    frame = np.zeros((SIDE, SIDE), np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    frame[top : top + height, left : left + width] = small
    step = 255 // (LEVELS - 1)
    grey = (frame.astype(np.int32) + step // 2) // step * step
    return Drawing(grey.astype(np.uint8), _is_plate(tight))


def _is_plate(tight: Images) -> bool:
    """Return whether the drawing is cut out of a plate: ink along most of the box's edge, and much of it."""
    ink = tight > 127
    h, w = ink.shape
    edge = np.concatenate([ink[0, w // 6 : -w // 6], ink[-1, w // 6 : -w // 6], ink[h // 6 : -h // 6, 0], ink[h // 6 : -h // 6, -1]])
    return bool(edge.size) and float(edge.mean()) > 0.9 and float(ink.mean()) > 0.6
