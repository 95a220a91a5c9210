"""What comes with a request, as values: JSON and forms, read and checked before anything is learned or answered.

What is refused is told without what the body holds.
"""

import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from headstart.errors import DataError
from headstart.serve.contract import Input, Limits, RefusedError, RunTold, Shares, invalid, shown

Body = TypeVar("Body", bound=BaseModel)


def kind_of(request: Request) -> str:
    """Return the type of a body, in small letters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Body]) -> Body:
    """Return the JSON of a body; what is wrong with it is told without what it holds."""
    if kind_of(request) != "application/json":
        raise RefusedError(
            415, "TypeError", "the body is of another type; send application/json, or multipart/form-data"
        )
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        told = invalid(error.errors(include_url=False, include_context=False, include_input=False))
        raise RefusedError(422, "DataError", f"the body is not as expected: {told}") from None


class Part(NamedTuple):
    """A file of a form."""

    name: str
    data: bytes


async def read_form(request: Request, limits: Limits, fields: Sequence[str]) -> tuple[dict[str, str], list[Part]]:
    """Return the fields and the files of a form, the files with the names of their parts."""
    most = max(limits.examples, limits.queries)
    boundary = re.search(r'boundary="?([^";,]+)', request.headers.get("content-type", ""))
    if boundary is None or not (await request.body()).rstrip().endswith(f"--{boundary[1].strip()}--".encode()):
        raise RefusedError(422, "DataError", "the form cannot be read: it ends before its last boundary")
    found, files = dict[str, str](), list[Part]()
    try:
        # one more than may be, so that it is told which limit that is
        async with request.form(max_files=most + 1, max_fields=len(fields) + 8) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    found[name] = value
                else:
                    files.append(Part(name, await value.read()))
    except (MultiPartException, HTTPException) as error:
        told = shown(getattr(error, "message", getattr(error, "detail", "")), 120)
        raise RefusedError(422, "DataError", f"the form cannot be read: {told}") from None
    if other := next((name for name in found if name not in fields), None):
        told = f"the form has a field {shown(other)!r}; expected {', '.join(fields)}, and files"
        raise RefusedError(422, "DataError", told)
    return found, files


def _decoded(part: Input, place: int) -> Any:
    if part.image is None:
        return part.text if part.text is not None else part.row
    try:
        return binascii.a2b_base64(part.image, strict_mode=True)
    except ValueError:
        raise RefusedError(422, "DataError", f"the image {place} is no base64 of a file") from None


def values_of(parts: Sequence[Input], run: RunTold, limits_most: int, what: str) -> tuple[Any, ...]:
    """Return the values of examples or inputs, all of the kind of a run."""
    if len(parts) > limits_most:
        raise RefusedError(422, "DataError", f"{len(parts)} {what} came; at most {limits_most} are taken at once")
    name = {"images": "image", "text": "text", "tables": "row"}[run.kind]
    odd = next((place for place, part in enumerate(parts) if getattr(part, name) is None), None)
    if odd is not None:
        raise RefusedError(422, "DataError", f"{what[:-1]} {odd} has no {name}, which is what the run {run.name} takes")
    return tuple(_decoded(part, place) for place, part in enumerate(parts))


def labels_of(parts: Sequence[Any], run: RunTold) -> tuple[str, ...]:
    """Return the labels of examples; of rows none, for they have their targets in themselves."""
    if run.kind == "tables":
        if any(part.label is not None for part in parts):
            told = f"a row has its target in itself, as {run.target!r}; leave the labels out"
            raise RefusedError(422, "DataError", told)
        return ()
    lacking = next((place for place, part in enumerate(parts) if part.label is None), None)
    if lacking is not None:
        raise RefusedError(422, "DataError", f"example {lacking} has no label")
    return tuple(part.label for part in parts)


def digest_of(*parts: Any) -> bytes:
    """Return the SHA-256 of what is asked."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def files_of(files: Sequence[Part], run: RunTold) -> tuple[bytes, ...]:
    """Return the files of a form, for a run that takes images."""
    if run.kind != "images":
        raise RefusedError(415, "TypeError", f"forms are of images, but the run {run.name} takes {run.kind}; send JSON")
    if not files:
        raise RefusedError(422, "DataError", "the form has no file")
    return tuple(file.data for file in files)


def check_new(labels: Sequence[str], count: int, limits: Limits) -> None:
    """Refuse a new task that is too large."""
    counts = {label: labels.count(label) for label in set(labels)} if len(set(labels)) <= limits.ways else {}
    if len(set(labels)) > limits.ways:
        raise DataError(f"the task has {len(set(labels))} classes; at most {limits.ways} are taken")
    limits.check(list(counts), list(counts.values()) or [count])
    if count > limits.examples:
        raise DataError(f"the task has {count} examples; at most {limits.examples} are taken")


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are none to print in a line: with control characters, or halves of letters."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError("a name is no text that UTF-8 can write") from None
        if len(name) > 200 or any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
            raise DataError("a name is longer than 200 letters, or has letters that cannot be printed in a line")


def shares_of(fields: Mapping[str, str]) -> Shares:
    """Return the shares that fields of a form have."""
    try:
        return Shares.model_validate(fields)
    except ValidationError as error:
        told = invalid(error.errors(include_url=False, include_context=False, include_input=False))
        raise RefusedError(422, "DataError", f"the form is not as expected: {told}") from None
