"""Two services at one PostgreSQL database: what one learns, changes or deletes, the other knows at once."""

import concurrent.futures
import contextlib
import json
import logging
import time

import pytest

from headstart.serve.gate import log_to
from headstart.serve.server import running
from headstart.serve.store import Place, Store
from headstart.serve.tokens import make_token
from tests.serve.conftest import Http

TEXTS = [{"label": label, "text": f"{label} {place}"} for label in ("card", "refund") for place in range(2)]
ASKED = {"inputs": [{"text": "my card"}]}
KEY = {"Idempotency-Key": "one"}


@pytest.fixture(scope="module")
def url(postgres):
    """The address of a database with a password, which this server does not ask for."""
    return postgres.empty().replace("postgres@", "postgres:hidden@")


@pytest.fixture(scope="module")
def two(settings_of, url, tmp_path_factory):
    """Two services, their tensors in one folder."""
    pytest.importorskip("obstore", reason="the extra blobs is not installed")
    blobs = tmp_path_factory.mktemp("blobs").as_uri()
    settings = settings_of(url, ("ngrams",))
    settings = settings._replace(work=settings.work._replace(blobs=blobs))
    with contextlib.ExitStack() as stack:
        yield tuple(Http(stack.enter_context(running(settings))[0]) for _ in range(2))


def test_what_one_learns_the_other_answers_and_deletes(two):
    here, there = two
    task = here("POST", "/v1/tasks", {"examples": TEXTS}).json
    path = f"/v1/tasks/{task['id']}"
    assert there("GET", path).json == task
    row = here("POST", f"{path}/predict", ASKED)
    assert row.status == 200 and there("POST", f"{path}/predict", ASKED).body == row.body
    more = {"examples": [{"label": "hours", "text": "when do you open"}]}
    grown = there("POST", f"{path}/examples", more)
    assert grown.status == 200 and here("GET", path).json == grown.json
    assert here("POST", f"{path}/predict", ASKED).body == there("POST", f"{path}/predict", ASKED).body != row.body
    assert here("DELETE", path).status == 204
    for one in (there, here):
        assert one("POST", f"{path}/predict", ASKED).status == 404 and one("GET", path).status == 404
    assert not there("GET", "/v1/tasks").json["tasks"]


def test_both_answer_as_a_service_of_a_file_does(two, settings_of, tmp_path):
    def rows(ask):
        task = ask("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        answer = ask("POST", f"/v1/tasks/{task}/predict", ASKED).body
        ask("DELETE", f"/v1/tasks/{task}")
        return answer

    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, _):
        assert rows(Http(url)) == rows(two[0]) == rows(two[1])


def test_a_request_that_is_sent_to_both_at_once_is_done_once(two):
    with concurrent.futures.ThreadPoolExecutor(4) as several:
        asked = [several.submit(two[n % 2], "POST", "/v1/tasks", {"examples": TEXTS}, KEY) for n in range(4)]
        answers = [one.result() for one in asked]
    # at one service a request with a key that is not answered yet is refused; of two at two services one is done
    assert {one.status for one in answers} <= {201, 409}
    (body,) = {one.body for one in answers if one.status == 201}
    assert two[1]("POST", "/v1/tasks", {"examples": TEXTS}, KEY).body == body
    assert [one["created"] for one in two[0]("GET", "/v1/tasks").json["tasks"]] == [json.loads(body)["created"]]
    two[0]("DELETE", f"/v1/tasks/{json.loads(body)['id']}")


def test_examples_that_are_added_at_both_at_once_are_all_there(two):
    task = two[0]("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]

    def add(number):
        body = {"examples": [{"label": "card", "text": f"more {number}"}]}
        for _ in range(20):
            answer = two[number % 2]("POST", f"/v1/tasks/{task}/examples", body)
            if answer.status != 409:
                return answer.status
        return 409

    with concurrent.futures.ThreadPoolExecutor(4) as several:
        assert set(several.map(add, range(4))) == {200}
    assert [two[n]("GET", f"/v1/tasks/{task}").json["counts"] for n in range(2)] == [[6, 2]] * 2


def test_a_database_that_is_away_is_told_and_asked_again(two, postgres, url, capfd):
    here = two[0]
    task = here("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
    log_to()
    try:
        postgres.stop()
        try:
            answer = here("POST", f"/v1/tasks/{task}/predict", ASKED)
            assert answer.status == 503 and answer.headers["retry-after"]
            assert answer.json["error"]["type"] == "StoreAwayError" and "nothing is lost" in answer.body.decode()
            assert here("GET", "/readyz").status == 503 and here("GET", "/livez").status == 200
        finally:
            postgres.start()
        assert here("POST", f"/v1/tasks/{task}/predict", ASKED).status == 200
        assert here("GET", "/readyz").status == 200
        told = capfd.readouterr().err
        assert '"message": "failed"' in told and "hidden" not in told
        assert "hidden" not in here("GET", "/metrics").body.decode()
    finally:
        for name in ("headstart.serve", "uvicorn", "psycopg"):
            logging.getLogger(name).handlers = []


def test_a_token_of_the_database_counts_at_both(two, url):
    store = Store(Place(url))
    try:
        token = make_token(store, "anna", "acme", ["adapt", "predict"])
        time.sleep(1.1)  # that there is a token is seen within a second
        both = [Http(one.url, token) for one in two]
        task = both[0]("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        assert both[1]("GET", f"/v1/tasks/{task}").status == 200
        assert store.revoke(token.split("_")[1])
        assert [one("GET", f"/v1/tasks/{task}").status for one in both] == [401, 401]
    finally:
        store.close()
