"""The description is true: whatever is made by it is answered as it says, and never by a fault of the service."""

import json

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from hypothesis import HealthCheck, Phase, given, settings as bounded  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headstart.serve.server import running  # noqa: E402
from tests.serve.conftest import Http  # noqa: E402

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TEXTS = [{"label": label, "text": f"{label} {place}"} for label in ("card", "refund") for place in range(2)]


@pytest.fixture(scope="module")
def served(settings_of, tmp_path_factory):
    with running(settings_of(tmp_path_factory.mktemp("store") / "tasks.db", ("ngrams",))) as (url, _):
        yield url


def test_it_is_openapi_3_1_with_examples(served):
    told = Http(served)("GET", "/openapi.json").json
    assert told["openapi"].startswith("3.1")
    paths = {(method, path) for path, own in told["paths"].items() for method in own}
    assert {("post", "/v1/tasks"), ("post", "/v1/tasks/{task}/predict"), ("get", "/v1/limits")} <= paths
    for path in ("/v1/tasks", "/v1/tasks/{task}/predict", "/v1/tasks/{task}/examples"):
        content = told["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"} and content["application/json"]["examples"]
    assert "$defs" not in json.dumps(told)


def test_no_operation_has_a_fault(served):
    """A bounded number of requests to each operation: as described, and as not."""
    made = Http(served)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
    schema = schemathesis.openapi.from_url(f"{served}/openapi.json")
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @bounded(max_examples=15, deadline=None, database=None, derandomize=True,
                 phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=operation.as_strategy())
        def ask(case):
            nonlocal asked
            if "task" in (case.path_parameters or {}) and asked % 2:
                case.path_parameters["task"] = made  # there is one, so that what comes behind its id is looked at
            answer = case.call(base_url=served, timeout=60)
            asked += 1
            case.validate_response(answer, checks=CHECKS)

        ask()
    assert asked > 100
