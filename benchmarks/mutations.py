"""Ways to spoil a file: by its bytes, by its lines, or by what its format says it is.

Each is a function ``(bytes, random) -> bytes``. Those that know a format return the bytes as they are where they meet
another one.
"""

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

Mutate: TypeAlias = Callable[[bytes, random.Random], bytes]

#: Numbers at the edges of types, and such as no file can mean.
NUMBERS = (0, -1, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\ud800", "\0", "../../../etc/passwd", "/etc/passwd", "nan", "%s%n", "a" * 70_000),
    *([], {}, [[]], [None], {"": None}, 0.5, -0.0, 1e308, -1e308, 1e-320, *NUMBERS, 10**400),
)
#: What the payload makes where it runs; the runner looks for it.
MARK = "headstart-fuzz-payload-ran"


def mark() -> Path:
    """Return the file that a payload makes."""
    return Path(os.environ.get("TMPDIR", "/tmp")) / MARK


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {mark()}",)


def flips(data: bytes, draw: random.Random) -> bytes:
    """Flip some bits."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64)) if data else 0):
        found[_place(data, draw)] ^= 1 << draw.randrange(8)
    return bytes(found)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Cut the end off, or the beginning."""
    place = _place(data, draw)
    return data[:place] if draw.random() < 0.8 else data[place:]


def emptied(data: bytes, draw: random.Random) -> bytes:
    """Leave nothing, or zeros."""
    return b"" if draw.random() < 0.5 else bytes(len(data))


def spliced(data: bytes, draw: random.Random) -> bytes:
    """Move, repeat or leave out a piece."""
    a, b = sorted((_place(data, draw), _place(data, draw)))
    return draw.choice((data[:a] + data[b:], data[:b] + data[a:], data[b:] + data[:b], data + data[a:b]))


def lengths(data: bytes, draw: random.Random) -> bytes:
    """Write a number of two to eight bytes over some place, as it were a length."""
    kind = draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    most = 256 ** struct.calcsize(kind)
    place = draw.randrange(64) if draw.random() < 0.5 else _place(data, draw)
    number = struct.pack(kind, draw.choice((*NUMBERS, draw.randrange(most), len(data))) % most)
    return data[:place] + number + data[place + len(number) :]


def noise(data: bytes, draw: random.Random) -> bytes:
    """Put random bytes somewhere, or in the place of all."""
    place, extra = _place(data, draw), draw.randbytes(draw.choice((1, 4, 100, 5000)))
    return extra if draw.random() < 0.1 else data[:place] + extra + data[place:]


def pickled(data: bytes, draw: random.Random) -> bytes:
    """Be a pickle that runs a program when it is read, as it is or as PyTorch packs it."""
    own = pickle.dumps(_Payload(), protocol=draw.randrange(0, 5))
    if draw.random() < 0.5:
        return own
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", own)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def tagged(data: bytes, draw: random.Random) -> bytes:
    """Hide a program in YAML, or references that grow without bound."""
    tag = f"!!python/object/apply:os.system ['touch {mark()}']".encode()
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
    )
    place = data.find(b": ") + 2
    return bomb if draw.random() < 0.3 else data[:place] + tag + b"\n" + data[place:]


def values(data: bytes, draw: random.Random) -> bytes:
    """Change values in JSON, lines of JSON or the header of safetensors: types, sizes, keys, depth."""
    if len(data) > 8 and data[8:9] == b"{":
        size = struct.unpack("<Q", data[:8])[0]
        change = _told if draw.random() < 0.5 else _json
        header = change(data[8 : 8 + size], draw)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if data.count(b"\n{") > 1:
        lines = data.split(b"\n")
        place = draw.randrange(len(lines))
        lines[place] = _json(lines[place], draw)
        return b"\n".join(lines)
    return _json(data, draw)


def _told(data: bytes, draw: random.Random) -> bytes:
    """Change the JSON that the header of safetensors tells as a text, where there is some."""
    try:
        header = json.loads(data)
        ((name, text),) = header["__metadata__"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return _json(data, draw)
    header["__metadata__"][name] = _json(text.encode(), draw).decode("utf-8", "surrogatepass")
    return json.dumps(header).encode()


def _json(data: bytes, draw: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except ValueError:
        return data
    way = draw.randrange(12)
    if way == 0:
        return b"[" * draw.choice((500, 5000, 200_000)) + data
    if way == 1:
        depth = draw.choice((500, 5000, 100_000))
        return data.rstrip()[:-1] + b',"deep":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    if way == 2:
        return data.rstrip()[:-1] + b"," + data.strip()[1:] if len(data) > 4 else data  # keys that are there twice
    if way == 3:
        return data.replace(
            draw.choice((b"1", b"0", b'"')), draw.choice((b"NaN", b"-Infinity", b"1e999", b"0x1", b"'")), 1
        )
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        value = _changed(value, draw)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _changed(value: Any, draw: random.Random) -> Any:
    """Change something somewhere in a JSON value."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw.choice(keys)
        found: Any = dict(value) if isinstance(value, dict) else list(value)
        way = draw.random()
        if way < 0.1:
            del found[key]
        elif way < 0.2 and isinstance(found, dict):
            found[draw.choice(("", "x", "name", "__class__", "../x"))] = found.pop(key)
        elif way < 0.25 and isinstance(found, list):
            found *= draw.choice((2, 1000 if len(found) < 1000 else 3))
        elif way < 0.3:
            other = draw.choice(keys)
            found[key], found[other] = found[other], found[key]
        else:
            found[key] = _changed(found[key], draw)
        return found
    if isinstance(value, (int, float)) and draw.random() < 0.4:
        return draw.choice((value + 1, -value, value * 1000, 0.3 if value else 0.1, str(value), [value]))
    if isinstance(value, str) and draw.random() < 0.4:
        return draw.choice((value + "x", value[:-1], value.upper(), [value], {value: value}, value * 1000))
    return draw.choice(VALUES)


def cells(data: bytes, draw: random.Random) -> bytes:
    """Change lines and cells of a text table, or of lists of words."""
    lines = data.split(b"\n")
    place = draw.randrange(len(lines))
    separator = draw.choice((b",", b"\t", b";"))
    parts = lines[place].split(separator)
    odd = (b"", b"nan", b"inf", b"1e999", b"-1e308", b'"', b'"a\nb"', b"\xff\xfe", b"\0", b"=1+1", b"1,5", b"9" * 400)
    odd += (b"x" * 200_000, "٣".encode(), b"2024-02-30", b"9999-12-31", b"../../etc/passwd", b"0x10", b"1_000")
    way = draw.randrange(8)
    if way == 0:
        lines[place] = lines[place] * draw.choice((0, 2, 3))
    elif way == 1:
        lines[0], lines[place] = lines[place], lines[0]
    elif way == 2:
        lines = [separator.join(parts * 500)] + lines if draw.random() < 0.3 else lines * 20
    elif way == 3:
        return data.decode("utf-8", "replace").encode(
            draw.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig")), "replace"
        )
    elif way == 4:
        return data.replace(b"\n", draw.choice((b"\r", b"\r\n", b"\n\n", b"\0\n"))).replace(b",", separator)
    else:
        parts[draw.randrange(len(parts))] = draw.choice(odd)
        lines[place] = separator.join(parts)
    return b"\n".join(lines)


def zipped(data: bytes, draw: random.Random) -> bytes:
    """Pack a zip anew with names that lead outside, links, bombs, members twice or under another's name."""
    if data[:2] != b"PK":
        return data
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
            members = [(one, source.read(one)) for one in source.infolist()]
            chosen = draw.randrange(len(members))
            for place, (one, content) in enumerate(members):
                if place != chosen:
                    target.writestr(one.filename, content)
                    continue
                _packed(target, one.filename, content, draw)
    except (zipfile.BadZipFile, ValueError, zlib.error, RuntimeError):
        return data
    return out.getvalue()


def _packed(target: zipfile.ZipFile, name: str, content: bytes, draw: random.Random) -> None:
    suffix = Path(name).suffix
    way = draw.randrange(7)
    if way == 0:
        target.writestr(
            draw.choice((f"../../../{MARK}{suffix}", f"/tmp/{MARK}{suffix}", f"..\\..\\x{suffix}")), content
        )
    elif way == 1:
        link = zipfile.ZipInfo(name)
        link.external_attr = 0o120777 << 16
        target.writestr(link, b"/etc/passwd")
    elif way == 2:
        with target.open(name, "w", force_zip64=True) as file:  # a thousandth when packed
            for _ in range(draw.choice((8, 64))):
                file.write(bytes(1 << 20))
    elif way == 3:
        target.writestr(name, content)
        target.writestr(name + "/" + Path(name).name, content)
    elif way == 4:
        target.writestr(name, values(flips(content, draw), draw))
    elif way == 5:
        target.writestr(
            draw.choice(
                (
                    "." + suffix,
                    "a" * 300 + suffix,
                    f"a\0b{suffix}",
                    f"con:{suffix}",
                    f"é\ud800{suffix}".encode("utf-8", "replace").decode(),
                )
            ),
            content,
        )
    else:
        target.writestr(name, pickled(content, draw))


def image_sizes(data: bytes, draw: random.Random) -> bytes:
    """Have a PNG, JPEG, GIF, BMP or TIFF say that it is of another size, such as one of gigabytes."""
    size = draw.choice((0, 1, 65_535, 30_000, 2**31 - 1, 2**31))
    if data[:4] == b"\x89PNG":
        header = data[12:16] + struct.pack(">II", size % 2**32, draw.choice((1, size)) % 2**32) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", size % 2**16, size % 2**16) + data[10:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<II", size % 2**32, size % 2**32) + data[26:]
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    if data[:2] == b"\xff\xd8" and place > 0:
        return data[: place + 5] + struct.pack(">HH", size % 2**16, size % 2**16) + data[place + 9 :]
    return lengths(data, draw)


#: By names; those of a kind of file are tried most on that kind.
ANY: dict[str, Mutate] = {
    "flips": flips, "cut": cut, "emptied": emptied, "spliced": spliced, "lengths": lengths, "noise": noise,
    "pickled": pickled,
}  # fmt: skip
BY_SUFFIX: dict[str, dict[str, Mutate]] = {
    ".json": {"values": values},
    ".jsonl": {"values": values, "cells": cells},
    ".journal": {"values": values},
    ".safetensors": {"values": values},
    ".yaml": {"tagged": tagged, "cells": cells},
    ".toml": {"cells": cells},
    **{suffix: {"cells": cells} for suffix in (".csv", ".tsv", ".txt")},
    **{suffix: {"zipped": zipped} for suffix in (".zip", ".npz", ".bin", ".pth")},
    **{suffix: {"image_sizes": image_sizes} for suffix in (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp")},
}


def mutated(name: str, data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return what was done to a file of this name, and its bytes now."""
    own = BY_SUFFIX.get(Path(name).suffix, {})
    ways = own if own and draw.random() < 0.6 else ANY
    way = draw.choice(list(ways))
    found = ways[way](data, draw)
    return (way, found) if found != data else ("flips", flips(data, draw))


def misplaced(path: Path, draw: random.Random) -> str:
    """Have something else stand in a file's place: nothing, a folder, a link, a pipe."""
    way = draw.choice(("missing", "a folder", "a link", "a link to itself", "a pipe", "a link to zeros"))
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way == "a pipe":
        os.mkfifo(path)
    elif way != "missing":
        path.symlink_to({"a link": "/etc/passwd", "a link to itself": path, "a link to zeros": "/dev/zero"}[way])
    return way


def _place(data: bytes, draw: random.Random) -> int:
    return draw.randrange(len(data)) if data else 0
