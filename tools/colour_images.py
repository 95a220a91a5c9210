"""Drawings as small colour images, and how alike they are: the pixels of the `emoji` and `flags` data sets."""

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from multiprocessing import Pool
from typing import Any

import numpy as np
from archive import Choice, Source
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
MARGIN = 1
FINE = 240
"""Pixels of the longer side before averaging down: 8 for each of the 30 that the margin leaves."""
LEVELS = 16
"""Levels kept of red, green and blue; 255 / 15 = 17 apart, which the eye hardly tells apart at this size."""

SAME, APART = 0.98, 68
"""Of the same drawings: the least correlation, and the most that a pixel differs, four levels."""


def document(body: str, left: float, top: float, width: float, height: float) -> str:
    """Return the SVG document of a coloured icon."""
    scale = FINE / max(width, height)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" '
        f'width="{round(width * scale)}" height="{round(height * scale)}">{body}</svg>'
    )


def render(svg: str) -> NDArray[np.uint8] | None:
    """Return the drawing of an SVG document on white, ``(3, 32, 32)``; ``None`` where next to nothing is drawn."""
    import resvg_py

    return fitted(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))).convert("RGBA"))


def fitted(drawing: Image.Image) -> NDArray[np.uint8] | None:
    """Return a drawing in a tight box, its shape kept, averaged down to the frame; ``None`` if blank."""
    box = drawing.getchannel("A").point(lambda value: 255 * (value > 32)).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < FINE // 8:
        return None
    tight = Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB").crop(box)
    width, height = (max(1, round((SIDE - 2 * MARGIN) * side / max(tight.size))) for side in tight.size)
    frame = Image.new("RGB", (SIDE, SIDE), "white")
    frame.paste(tight.resize((width, height), Image.Resampling.BOX), ((SIDE - width) // 2, (SIDE - height) // 2))
    step = 255 // (LEVELS - 1)
    return ((np.asarray(frame).astype(np.int32) + step // 2) // step * step).astype(np.uint8).transpose(2, 0, 1)


def unit_rows(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the images as rows whose products are correlations over all pixels and colours."""
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def drawn(wanted: Sequence[tuple[str, str, Source]], processes: int) -> list[Choice]:
    """Return the drawings of (class, designer, icon) that show anything."""
    with Pool(processes) as pool:
        images = pool.map(render, [icon.svg for _, _, icon in wanted], chunksize=64)
    return [Choice(*one, image) for one, image in zip(wanted, images) if image is not None]


def box_of(icon: Mapping[str, Any], icon_set: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of an icon, as Iconify has them."""
    sizes = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    left, top, width, height = (icon.get(field, icon_set.get(field, default)) for field, default in sizes)
    return left, top, width, height


def same_drawings(images: NDArray[np.uint8], rows: int = 1000) -> NDArray[np.int64]:
    """Return, for each image, the first kept image that is the same drawing, or its own number if it is kept.

    The same are images that correlate by more than `SAME` and differ nowhere by more than `APART`: two faces that
    differ in their mouths alone are two drawings, but one flag in two reds is one.
    """
    x, pixels = unit_rows(images), images.astype(np.int16)
    kept, first = np.ones(len(x), bool), np.arange(len(x))
    for start in range(0, len(x), rows):
        alike = x[start : start + rows] @ x[: start + rows].T > SAME
        for i, row in enumerate(alike, start):
            before = np.flatnonzero(row[:i])
            before = before[kept[before]]
            same = before[np.abs(pixels[before] - pixels[i]).max((1, 2, 3), initial=0) <= APART]
            if same.size:
                kept[i], first[i] = False, same[0]
    return first


def each_once(choices: Sequence[Choice]) -> tuple[list[Choice], list[tuple[str, str]]]:
    """Return each drawing once, and the pairs of classes of which a drawing was the same."""
    size = Counter(choice.key for choice in choices)
    ordered = sorted(choices, key=lambda c: (-size[c.key], c.key, c.hand))
    first = same_drawings(np.stack([choice.image for choice in ordered]))
    kept = [choice for i, choice in enumerate(ordered) if first[i] == i]
    return kept, [(ordered[f].key, ordered[i].key) for i, f in enumerate(first) if ordered[f].key != ordered[i].key]


def look_alikes(choices: Sequence[Choice], above: float) -> list[tuple[str, str]]:
    """Return the pairs of classes that at least half of their common designers draw alike.

    Args:
        choices: the drawings of all classes.
        above: the correlation of two drawings above which they are alike.
    """
    keys, hands = (sorted({value(c) for c in choices}) for value in (lambda c: c.key, lambda c: c.hand))
    place = {key: number for number, key in enumerate(keys)}
    alike, common = np.zeros((2, len(keys), len(keys)), np.int64)
    for hand in hands:
        own = [choice for choice in choices if choice.hand == hand]
        at, rows = [place[choice.key] for choice in own], unit_rows(np.stack([choice.image for choice in own]))
        alike[np.ix_(at, at)] += rows @ rows.T > above
        common[np.ix_(at, at)] += 1
    return [(keys[a], keys[b]) for a, b in np.argwhere((2 * alike >= common) & (alike > 0)) if a < b]


def by_class(choices: Sequence[Choice], least: int) -> dict[str, list[Choice]]:
    """Return the drawings of the classes of at least so many designers, in order."""
    found = defaultdict[str, list[Choice]](list)
    for choice in sorted(choices, key=lambda c: (c.key, c.hand)):
        found[choice.key].append(choice)
    return {key: own for key, own in found.items() if len(own) >= least}
