"""What OpenAPI says beside the routes: bodies that are read by hand, keys, and errors."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from headstart.serve.contract import ErrorBody, Inputs, MoreExamples, NewTask

CODES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": text}
    for code, text in {
        400: "Not HTTP as it should be, or a name that the service is not called.",
        401: "No token, or none that holds.",
        403: "The token does not allow this.",
        404: "No such task, or it is another tenant's.",
        408: "The body took too long.",
        409: "Changed at the same time, or learned by a run that is no longer served.",
        413: "Too large.",
        415: "Another type of body.",
        422: "What came cannot be used; the message says why.",
        429: "Too much at once; see Retry-After.",
        500: "A fault of the service.",
        503: "Not now; see Retry-After.",
    }.items()
}


def body_of(model: type[BaseModel], form: dict[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return how OpenAPI says that a body is JSON or a form."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    examples = (model.model_config.get("json_schema_extra") or {}).get("examples", [])  # type: ignore[union-attr]
    named = {f"example {number + 1}": {"value": value} for number, value in enumerate(examples)}
    binary = {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
    files = {"type": "object", "properties": form, "additionalProperties": binary}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema, "examples": named},
                "multipart/form-data": {"schema": files},
            },
        }
    }


TEXT = {"type": "string"}
ONCE = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"},
    "description": "A request with the same key and body again is answered as before, and done once.",
}


def describe_bodies(app: FastAPI) -> None:
    """Add the bodies that are read by hand to what an application says of itself."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = plain()["components"]["schemas"]
            for model in (NewTask, MoreExamples, Inputs):
                own = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas |= own.pop("$defs", {})
                schemas[model.__name__] = own
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
