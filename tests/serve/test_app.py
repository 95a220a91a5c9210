"""What the service promises over HTTP, asked of one that runs."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import math
import socket
import threading
import time
import urllib.parse
import zlib

import numpy as np
import pytest
from PIL import Image

import headstart
from headstart.data.tables.schema import UnseenValueWarning
from headstart.serve.contract import Limits
from headstart.serve.server import running
from headstart.serve.tokens import make_token
from tests.serve.conftest import Http, drawing, png

TEXTS = [
    {"label": "card", "text": "where is my card"},
    {"label": "card", "text": "my card is lost"},
    {"label": "refund", "text": "give me my money back"},
    {"label": "refund", "text": "i want a refund"},
]
POINTS = [{"row": {"x": x / 4, "y": math.sin(x / 4)}} for x in range(-16, 17)]
UNKNOWN = "01M8PF7X8F5EJN298FZPEHA68Y"


def form(*parts, boundary="frontier"):
    """Return a form of ``(name, value)``; files where the value is bytes."""
    lines = b""
    for name, value in parts:
        file = b'; filename="x.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else b""
        data = value if isinstance(value, bytes) else value.encode()
        lines += b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (
            boundary.encode(), name.encode(), file, data,
        )  # fmt: skip
    return lines + b"--%s--\r\n" % boundary.encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@pytest.fixture(scope="module")
def ask(service):
    return service[0]


@pytest.fixture(scope="module")
def icons(ask, shapes):
    """A task of drawings."""
    answer = ask("POST", "/v1/tasks", {"run": "icons", "name": "shapes", "examples": shapes})
    assert answer.status == 201, answer
    return answer.json


@pytest.fixture(scope="module")
def mail(ask):
    """A task of texts."""
    return ask("POST", "/v1/tasks", {"run": "ngrams", "name": "mail", "examples": TEXTS}).json


def error(answer, status):
    """Return what an error says; it is one, as all are."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    told = answer.json["error"]
    assert set(answer.json) == {"error"} and set(told) == {"type", "message"} and told["type"].endswith("Error")
    return told["message"]


def test_images_are_learned_and_told_apart(ask, icons):
    assert icons["labels"] == ["bar", "cross", "square"] and icons["counts"] == [3, 3, 3]
    assert (icons["run"], icons["name"], icons["kind"]) == ("icons", "shapes", "images")
    told = icons["estimate"]
    assert told["judged"] == 9 and 0 <= told["low"] <= told["accuracy"] <= told["high"] <= 1
    inputs = [{"image": base64.b64encode(drawing(shape, 50)).decode()} for shape in icons["labels"]]
    found = ask("POST", f"/v1/tasks/{icons['id']}/predict", {"inputs": inputs})
    assert found.status == 200
    rows = found.json["predictions"]
    assert [row["prediction"] for row in rows] == icons["labels"]
    for row in rows:
        assert sum(row["probabilities"].values()) + row["unknown"] == pytest.approx(1)
        assert list(row["probabilities"]) == icons["labels"]
        assert row["probability"] == row["probabilities"][row["prediction"]] and {"unknown", "set"} <= set(row)


def test_a_form_is_as_good_as_json(ask, icons):
    parts = [(shape, drawing(shape, seed)) for shape in icons["labels"] for seed in range(3)]
    body, headers = form(("run", "icons"), ("name", "of a form"), *parts)
    made = ask("POST", "/v1/tasks", body, headers)
    assert made.status == 201 and made.json["name"] == "of a form" and made.json["estimate"] == icons["estimate"]
    body, headers = form(("a", drawing("cross", 9)), ("b", drawing("bar", 9)))
    rows = [ask("POST", f"/v1/tasks/{one['id']}/predict", body, headers).json for one in (made.json, icons)]
    assert rows[0] == rows[1] and [row["prediction"] for row in rows[0]["predictions"]] == ["cross", "bar"]


def odds(answer):
    """Return P(none of the classes) / P(one of them) of each input."""
    assert answer.status == 200, answer
    rows = answer.json["predictions"]
    for row in rows:
        assert row["unknown"] + sum(row["probabilities"].values()) == pytest.approx(1)
    return np.array([row["unknown"] / (1 - row["unknown"]) for row in rows])


def test_the_share_of_other_classes_is_said_by_who_asks_or_else_by_the_service(
    ask, icons, settings_of, tmp_path, shapes
):
    path, inputs = f"/v1/tasks/{icons['id']}/predict", [{"image": one["image"]} for one in shapes]
    half = odds(ask("POST", path, {"inputs": inputs}))
    assert (half > 0).all()
    assert odds(ask("POST", path, {"inputs": inputs, "unknown_share": 0.2})) == pytest.approx(half / 4)
    assert not odds(ask("POST", path, {"inputs": inputs, "unknown_share": 0})).any()
    body, headers = form(("a", base64.b64decode(inputs[0]["image"])), ("unknown_share", "0.2"))
    assert odds(ask("POST", path, body, headers)) == pytest.approx(half[:1] / 4, rel=1e-4)
    for share in (-0.1, 1, "many"):
        assert "unknown_share" in error(ask("POST", path, {"inputs": inputs, "unknown_share": share}), 422)
        body, headers = form(("a", drawing("bar")), ("unknown_share", str(share)))
        assert "unknown_share" in error(ask("POST", path, body, headers), 422)
    runs = {run["name"]: run["unknown_share"] for run in ask("GET", "/v1/limits").json["runs"]}
    assert runs == {"icons": 0.5, "ngrams": None, "curves": None}
    settings = settings_of(tmp_path / "tasks.db")
    with running(settings._replace(work=settings.work._replace(unknown_share=0.2))) as (url, _):
        own = Http(url)
        made = own("POST", "/v1/tasks", {"run": "icons", "examples": shapes}).json["id"]
        path = f"/v1/tasks/{made}/predict"
        assert odds(own("POST", path, {"inputs": inputs})) == pytest.approx(half / 4, rel=1e-4)
        assert odds(own("POST", path, {"inputs": inputs, "unknown_share": 0.5})) == pytest.approx(half, rel=1e-4)
        made = own("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json["id"]
        path, inputs = f"/v1/tasks/{made}/predict", [{"text": "card"}]
        assert own("POST", path, {"inputs": inputs}).json["predictions"][0]["unknown"] is None
        assert own("POST", path, {"inputs": inputs, "unknown_share": 0}).status == 200
        message = error(own("POST", path, {"inputs": inputs, "unknown_share": 0.2}), 422)
        assert "nothing tells examples of other classes" in message


def test_rows_are_learned_as_at_home(ask, curves_run, tmp_path):
    made = ask("POST", "/v1/tasks", {"run": "curves", "examples": POINTS})
    assert made.status == 201 and made.json["labels"] == [] and made.json["counts"] == [len(POINTS)]
    assert made.json["kind"] == "tables" and made.json["estimate"] is None
    found = ask(
        "POST", f"/v1/tasks/{made.json['id']}/predict", {"inputs": [{"row": {"x": 0.1}}, {"row": {"x": "1.5"}}]}
    )
    assert found.status == 200, found
    lines = "\n".join(f"{one['row']['x']},{one['row']['y']}" for one in POINTS)
    (tmp_path / "points.csv").write_text(f"x,y\n{lines}\n")
    (tmp_path / "asked.csv").write_text("x\n0.1\n1.5\n")
    model = headstart.adapt(curves_run, tmp_path / "points.csv", tmp_path / "adapted")
    for row, same in zip(found.json["predictions"], headstart.predict(model, tmp_path / "asked.csv"), strict=True):
        assert row["low"] < row["prediction"] < row["high"]
        assert {name: row[name] for name in ("prediction", "low", "high")} == pytest.approx(
            {name: float(same[name]) for name in ("prediction", "low", "high")}, rel=1e-5
        )


def test_a_task_grows_and_shrinks(ask):
    made = ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json
    path = f"/v1/tasks/{made['id']}"
    more = [{"label": "hours", "text": "when do you open"}, {"label": "hours", "text": "are you open on sunday"}]
    grown = ask("POST", f"{path}/examples", {"examples": [*more, {"label": "card", "text": "a new card please"}]})
    assert grown.status == 200 and grown.json["id"] == made["id"]
    assert (grown.json["labels"], grown.json["counts"]) == (["card", "hours", "refund"], [3, 2, 2])
    asked = {"inputs": [{"text": "when are you open?"}]}
    assert ask("POST", f"{path}/predict", asked).json["predictions"][0]["prediction"] == "hours"
    less = ask("DELETE", f"{path}/classes/hours")
    assert less.status == 200 and (less.json["labels"], less.json["counts"]) == (["card", "refund"], [3, 2])
    assert set(ask("POST", f"{path}/predict", asked).json["predictions"][0]["probabilities"]) == {"card", "refund"}
    assert ask("GET", path).json == less.json
    assert "one class only" in error(ask("DELETE", f"{path}/classes/card"), 422)
    error(ask("DELETE", f"{path}/classes/hours"), 404)


def test_growing_is_learning_from_all_at_once(ask):
    whole = ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json
    part = ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS[:3]}).json
    grown = ask("POST", f"/v1/tasks/{part['id']}/examples", {"examples": TEXTS[3:]}).json
    asked = {"inputs": [{"text": "money"}, {"text": "card"}]}
    rows = [ask("POST", f"/v1/tasks/{one['id']}/predict", asked).json for one in (whole, grown)]
    assert rows[0] == rows[1] and grown["estimate"] == whole["estimate"]


def test_any_name_of_a_class_can_be_removed(ask):
    odd = ["a/b", "c?d", "é#%2F", "<img src=x onerror=alert(1)>", "שלום", " ", "x" * 200]
    examples = [{"label": label, "text": f"text number {place}"} for place, label in enumerate(odd)]
    made = ask("POST", "/v1/tasks", {"run": "ngrams", "examples": examples})
    assert made.json["labels"] == sorted(odd)
    for left, label in enumerate(odd[:-2]):
        found = ask("DELETE", f"/v1/tasks/{made.json['id']}/classes/{urllib.parse.quote(label, safe='')}")
        assert found.status == 200 and len(found.json["labels"]) == len(odd) - left - 1


def test_tasks_are_listed_and_deleted(ask):
    made = [ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json for _ in range(3)]
    seen, after = [], ""
    while after is not None:
        page = ask("GET", f"/v1/tasks?limit=2&after={after}").json
        assert len(page["tasks"]) <= 2
        seen += page["tasks"]
        after = page["next"]
    assert [one for one in seen if one["id"] in {one["id"] for one in made}] == made
    assert ask("DELETE", f"/v1/tasks/{made[0]['id']}").status == 204
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/predict", {"inputs": [{"text": "a"}]}),
    ):
        error(ask(method, f"/v1/tasks/{made[0]['id']}{path}", body), 404)


def test_a_key_is_done_once(ask):
    body = {"run": "ngrams", "examples": TEXTS}
    first, again = (ask("POST", "/v1/tasks", body, {"Idempotency-Key": "once"}) for _ in range(2))
    assert first.status == again.status == 201 and first.body == again.body
    other = {"run": "ngrams", "examples": TEXTS[:3]}
    assert "another request" in error(ask("POST", "/v1/tasks", other, {"Idempotency-Key": "once"}), 422)
    error(ask("POST", "/v1/tasks", body, {"Idempotency-Key": "a b"}), 422)
    path = f"/v1/tasks/{first.json['id']}/examples"
    grown = [ask("POST", path, {"examples": TEXTS[:1]}, {"Idempotency-Key": "more"}).json for _ in range(2)]
    assert grown[0] == grown[1] and grown[0]["counts"] == [3, 2]


def test_the_same_examples_give_the_same_weights(service):
    ask, state = service
    made = [ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json["id"] for _ in range(2)]
    assert len({state.store.task("local", one).support for one in made}) == 1
    rows = state.store.database.rows("SELECT sha256 FROM parts WHERE part = 'adapted' AND task IN (?, ?)", made)
    assert len(rows) == 2 and len({bytes(row[0]) for row in rows}) == 1


def test_requests_at_the_same_time_are_answered_together_as_alone(service, icons, shapes):
    ask, state = service
    tasks = [icons, *(ask("POST", "/v1/tasks", {"run": "icons", "examples": shapes[:6]}).json for _ in range(2))]
    asked = [
        (task["id"], [{"image": base64.b64encode(drawing("bar", seed)).decode()} for seed in range(1 + place % 3)])
        for place, task in enumerate(tasks * 8)
    ]
    one_by_one = [ask("POST", f"/v1/tasks/{task}/predict", {"inputs": inputs}).json for task, inputs in asked]
    before = ask("GET", "/metrics").body.decode()
    with concurrent.futures.ThreadPoolExecutor(12) as many:
        together = list(
            many.map(lambda one: ask("POST", f"/v1/tasks/{one[0]}/predict", {"inputs": one[1]}).json, asked)
        )
    after = ask("GET", "/metrics").body.decode()
    for one, other in zip(one_by_one, together):
        for row, same in zip(one["predictions"], other["predictions"], strict=True):
            assert row["prediction"] == same["prediction"]
            assert row["probabilities"] == pytest.approx(same["probabilities"], abs=1e-5)
    batches = [float(text.split("headstart_batch_count ")[1].split()[0]) for text in (before, after)]
    assert batches[1] - batches[0] < len(asked), "none were answered together"


def test_probes_metrics_and_limits(ask):
    assert ask("GET", "/livez").json == {"alive": True} and ask("GET", "/readyz").json == {"ready": True}
    assert ask("GET", "/v2/health/ready").status == ask("GET", "/v2/health/live").status == 200
    text = ask("GET", "/metrics").body.decode()
    assert 'headstart_requests_total{method="GET",route="/livez",status="200"}' in text
    told = ask("GET", "/v1/limits").json
    runs = {one["name"]: one for one in told["runs"]}
    assert runs["icons"]["kind"] == "images" and runs["icons"]["ways"] == [2, 100]
    assert runs["ngrams"]["kind"] == "text"
    assert runs["curves"]["columns"] == ["x"] and runs["curves"]["target"] == "y" and runs["curves"]["ways"] is None
    assert (told["body_bytes"], told["ways"], told["examples"], told["queries"]) == (10_000_000, 100, 1000, 1000)


def test_the_page_is_served_with_strict_rules(ask):
    page = ask("GET", "/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["cache-control"] == "no-cache"
    assert ask("GET", "/v1/limits").headers["cache-control"] == "no-store"
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "/page/../../app.py", "//etc/passwd"):
        error(ask("GET", path), 404)


def test_pages_of_other_sites_and_other_names_are_refused(ask):
    body = {"run": "ngrams", "examples": TEXTS}
    assert "other sites" in error(ask("POST", "/v1/tasks", body, {"Origin": "https://evil.example"}), 403)
    assert ask("POST", "/v1/tasks", body, {"Origin": ask.url}).status == 201
    assert "--allow-host" in error(ask("GET", "/v1/limits", None, {"Host": "rebound.example"}), 400)


def test_no_request_reaches_files_or_addresses(ask):
    for text in ("file:///etc/passwd", "http://127.0.0.1:1/", "/etc/passwd"):
        assert "base64" in error(
            ask("POST", "/v1/tasks", {"run": "icons", "examples": [{"label": "a", "image": text}]}), 422
        )
    for run in ("../icons", "/etc", "hf:/etc"):
        assert "no run" in error(ask("POST", "/v1/tasks", {"run": run, "examples": TEXTS}), 422)


HOSTILE = "<script>\x1b[31m"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not as expected"),
        (b"{", "not as expected"),
        (b"[]", "not as expected"),
        (b"null", "not as expected"),
        (b'"' + b"x" * 1000, "not as expected"),
        (b"[" * 100_000, "not as expected"),
        (b'{"examples": NaN}', "not as expected"),
        (b"\xff\xfe", "not as expected"),
        (b'{"run": "\\ud800", "examples": []}', "not as expected"),
        (b'{"run": "ngrams", "examples": []}', "at least 1"),
        (b'{"run": "ngrams", "examples": [{"label": "a"}]}', "one of image, text and row"),
        (b'{"run": "ngrams", "examples": [{"label": "a", "text": "b", "row": {}}]}', "one of image, text and row"),
        (b'{"run": "ngrams", "examples": [{"text": "b"}]}', "has no label"),
        (b'{"run": "icons", "examples": [{"label": "a", "text": "b"}]}', "has no image"),
        (
            b'{"run": "icons", "examples": [{"label": "a", "image": "YQ=="}, {"label": "b", "image": "YQ=="}]}',
            "image 0",
        ),
        (b'{"run": "icons", "examples": [{"label": "a", "image": "Y Q=="}]}', "base64"),
        (b'{"run": "ngrams", "examples": [{"label": "a\\u0000b", "text": "b"}, {"label": "b", "text": "c"}]}', "print"),
        (
            b'{"run": "ngrams", "examples": [{"label": "a", "text": " "}, {"label": "b", "text": "c"}]}',
            "text 0 is empty",
        ),
        (b'{"run": "ngrams", "examples": [{"label": "a", "text": "b"}]}', "one class only"),
        (b'{"run": "curves", "examples": [{"row": {"x": NaN, "y": 1}}]}', "not as expected"),
        (b'{"run": "curves", "examples": [{"row": {"x": 1e999, "y": 1}}]}', "not as expected"),
        (b'{"run": "curves", "examples": [{"row": {"x": "NaN", "y": "inf"}}]}', "y"),
        (b'{"run": "curves", "examples": [{"row": {"x": 1}}]}', "no column 'y'"),
        (b'{"run": "curves", "examples": [{"row": {"x": 1, "y": 1e300}}]}', "column 'y': 1e+300 is too far"),
        (b'{"run": "curves", "examples": [{"row": {"x": 1, "y": -1e30}}]}', "from -1e+18 to 1e+18"),
        (b'{"run": "curves", "examples": [{"row": {"x": 1e300, "y": 1}}]}', "column 'x': 1e+300 is too far"),
        (b'{"run": "curves", "examples": [{"row": {"x": "=1+1", "y": 1}}]}', "x"),
        (b'{"run": "curves", "examples": [{"row": {"x": ' + b"9" * 400 + b', "y": 1}}]}', ""),
        (b'{"run": "curves", "examples": [{"row": {"x": "' + b"9" * 20_000 + b'", "y": 1}}]}', "not a finite number"),
        (b'{"run": "ngrams", "examples": [' + b'{"text": "a"},' * 20_000 + b'{"text": "b"}]}', "at most 10000 items"),
        (b'{"run": "curves", "examples": [{"label": "a", "row": {"x": 1, "y": 1}}]}', "leave the labels out"),
        (b'{"run": "ngrams", "examples": [{"label": "a", "text": "b", "<script>": 1}]}', "not permitted"),
    ],
)
def test_what_cannot_be_used_is_told_without_what_it_holds(ask, body, told):
    message = error(ask("POST", "/v1/tasks", body), 422)
    assert told in message and len(message) < 1000
    assert all(ord(letter) >= 32 for letter in message)


def test_a_number_too_large_is_named_in_what_is_asked_too(ask):
    task = ask("POST", "/v1/tasks", {"run": "curves", "examples": POINTS}).json["id"]
    for value in (1e300, -1e30, 10**308, "1e300"):
        message = error(ask("POST", f"/v1/tasks/{task}/predict", {"inputs": [{"row": {"x": value}}]}), 422)
        assert "row 0, column 'x'" in message and "from -1e+18 to 1e+18" in message


def test_examples_that_cannot_be_learned_from_are_no_fault_of_the_service(settings_of, tmp_path, tables_run):
    run = tables_run("maml", "y", steps=1, tasks_per_step=2)
    rows = [{"row": {"x": x, "food": "hay", "y": 10.0 ** (15 * (x == 2))}} for x in range(5)]
    with running(settings_of(tmp_path / "tasks.db", (str(run),))) as (url, _):
        answer = Http(url)("POST", "/v1/tasks", {"examples": rows})
        message = error(answer, 422)
        assert "not finite" in message and "column 'y': row 2: far from the" in message
        assert answer.json["error"]["type"] == "DivergenceError"


def test_rows_unlike_all_that_was_trained_on_say_so(settings_of, tmp_path, tables_run):
    run = tables_run("nearest", "ill")
    shown = [{"x": x, "food": "hay", "ill": str(x > 3)} for x in range(8)]
    asked = [
        {"x": 7, "food": "hay"},
        {"x": 1e9, "food": "hay"},
        {"x": -1e9, "food": "algae"},
        {"x": None, "food": "corn"},
    ]
    with running(settings_of(tmp_path / "tasks.db", (str(run),))) as (url, _):
        client = headstart.Client(url)
        task = client.adapt(None, shown)
        rows = client.predict(task, asked)
        assert [row["unseen"] for row in rows] == [[], ["x"], ["x", "food"], ["x"]]
        path, bodies = f"/v1/tasks/{task.id}/predict", [{"inputs": [{"row": row}]} for row in asked] * 8
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # requests that are answered together
            found = list(pool.map(lambda body: Http(url)("POST", path, body).json["predictions"][0]["unseen"], bodies))
        assert found == [row["unseen"] for row in rows] * 8
        client.close()
    (tmp_path / "shown.csv").write_text(
        "x,food,ill\n" + "".join(f"{','.join(map(str, one.values()))}\n" for one in shown)
    )
    model = headstart.adapt(run, tmp_path / "shown.csv", tmp_path / "adapted")
    with pytest.warns(UnseenValueWarning):
        same = headstart.predict(model, asked)
    assert [row["unseen"] for row in same] == [row["unseen"] for row in rows]


def bomb(width, height):
    """Return a PNG of a few bytes that asks for so many pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def tiff(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (bomb(50_000, 50_000), "pixels"),
        (bomb(8_000, 8_000), "pixels"),
        (png(np.zeros((1, 1), np.uint8)), "1 x 1"),
        (drawing("bar")[:60], "cannot read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "not a file"),
        (b"%PDF-1.4", "not a file"),
        (tiff(np.full((9, 9), np.nan, np.float32)), "no numbers of 8 or 16 bits"),
        (b"\x80\x04\x95", "not a file"),
    ],
)
def test_what_is_no_image_or_a_bomb_is_refused(ask, icons, image, told):
    body = {
        "inputs": [{"image": base64.b64encode(drawing("bar")).decode()}, {"image": base64.b64encode(image).decode()}]
    }
    message = error(ask("POST", f"/v1/tasks/{icons['id']}/predict", body), 422)
    assert told in message and "image 1" in message and "/" not in message.replace("text/", "")


@pytest.mark.parametrize("more", [1, 1000])
def test_each_limit_is_refused_when_it_is_exceeded(ask, mail, more):
    limits = Limits()
    text = {"text": "a"}
    ways = [{"label": f"class {place}", **text} for place in range(limits.ways + more)]
    shots = [{"label": "a", **text}] * (limits.shots + more) + [{"label": "b", **text}]
    both = [{"label": f"class {place % 50}", **text} for place in range(limits.examples + more)]
    for examples, told in ((ways, "classes"), (shots, "of a class"), (both, "examples")):
        told = told if more == 1 else "at most"
        assert told in error(ask("POST", "/v1/tasks", {"run": "ngrams", "examples": examples}), 422)
        assert told in error(ask("POST", f"/v1/tasks/{mail['id']}/examples", {"examples": examples}), 422)
    inputs = {"inputs": [text] * (limits.queries + more)}
    assert "at most 1000" in error(ask("POST", f"/v1/tasks/{mail['id']}/predict", inputs), 422)
    assert ask("GET", f"/v1/tasks/{mail['id']}").json == mail


def test_other_types_and_forms_are_refused(ask, mail):
    for kind in ("text/plain", "application/xml", "", "application/x-www-form-urlencoded"):
        error(ask("POST", "/v1/tasks", b"a=b", {"Content-Type": kind}), 415)
    body, headers = form(("a", drawing("bar")))
    assert "send JSON" in error(ask("POST", f"/v1/tasks/{mail['id']}/predict", body, headers), 415)
    for broken in (b"", b"--frontier", b"--frontier\r\nContent-Disposition: nonsense\r\n\r\n", body[:-30]):
        error(ask("POST", "/v1/tasks", broken, headers), 422)
    body, headers = form(("run", "icons"), ("other", "field"), ("a", drawing("bar")))
    assert "expected run, name" in error(ask("POST", "/v1/tasks", body, headers), 422)
    body, headers = form(("run", "icons"))
    assert "no file" in error(ask("POST", "/v1/tasks", body, headers), 422)
    error(ask("PUT", "/v1/tasks", b""), 405)
    error(ask("GET", "/v1/nothing"), 404)


def test_numbers_of_the_address_are_checked(ask):
    for limit in ("0", "1001", "x", "-1", "9" * 50, "NaN", ""):
        error(ask("GET", f"/v1/tasks?limit={limit}"), 422)
    for task in (UNKNOWN, "x", "0" * 26, "%00", "..", "é", "9" * 1000):
        error(ask("GET", f"/v1/tasks/{urllib.parse.quote(task, safe='%')}"), 404)


def raw(ask, *parts, timeout=30):
    """Send bytes as they are, and return the status line."""
    host, port = ask.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


def head(length=None, more=""):
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{size}\r\n{more}\r\n"
    ).encode()


def test_a_body_too_large_is_refused_before_it_is_read(ask):
    for more in (1, 10**9):
        status, body = raw(ask, head(10_000_000 + more))
        assert status == 413 and b"10000000 bytes" in body
    piece = b"100000\r\n" + b"a" * 2**20 + b"\r\n"
    status, _ = raw(ask, head(), *[piece] * 12)
    assert status == 413
    assert raw(ask, head("-1"))[0] in (400, 413) and raw(ask, head("9" * 30))[0] in (400, 413)


def test_a_body_that_does_not_come_is_given_up(settings_of, tmp_path):
    limits = Limits(body_seconds=0.5)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, _):
        assert raw(Http(url), head(100), b"{")[0] == 408
        assert Http(url)("GET", "/livez").status == 200


def all_of(url, *parts):
    """Send bytes, and return all that comes until the service closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_rest_of_a_body_that_is_refused_is_not_read(settings_of, tmp_path):
    limits = Limits(body_seconds=1.0, body_bytes=1000)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, _):
        task = Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        for path in (b"/v1/tasks", f"/v1/tasks/{task}/predict".encode()):
            assert b" 408 " in all_of(url, head(100).replace(b"/v1/tasks", path), b"{")
            assert b" 413 " in all_of(url, head().replace(b"/v1/tasks", path), b"400\r\n" + b"a" * 1024 + b"\r\n")


def test_a_connection_that_breaks_off_is_no_fault_of_the_service(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, _):
        task = Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"]
        host, port = url.removeprefix("http://").split(":")
        for path in (b"/v1/tasks", f"/v1/tasks/{task}/predict".encode()):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(head(100).replace(b"/v1/tasks", path) + b"{")
        for _ in range(100):
            counted = Http(url)("GET", "/metrics").body.decode()
            if counted.count('status="400"') >= 2:
                break
            time.sleep(0.05)
        assert 'status="400"' in counted and 'status="500"' not in counted


def test_who_reads_no_answer_keeps_no_place_from_others(settings_of, tmp_path):
    limits = Limits(requests=3, body_seconds=1.0)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 300
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                one = stack.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect((host, int(port)))
                one.sendall(asked)
            for _ in range(60):
                time.sleep(0.25)
                if (found := Http(url)("GET", "/v1/limits").status) == 200:
                    break
            assert found == 200


def test_what_is_asked_is_not_in_the_log(ask, mail, caplog):
    import logging

    logging.getLogger("headstart.serve").propagate = True
    with caplog.at_level("INFO", "headstart.serve"):
        ask("POST", f"/v1/tasks/{mail['id']}/predict", {"inputs": [{"text": "my secret is swordfish"}]})
        ask("DELETE", f"/v1/tasks/{mail['id']}/classes/swordfish")
        ask("POST", "/v1/tasks", b'{"swordfish": 1}')
    told = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "/v1/tasks/{task}/predict" in told and "swordfish" not in told and mail["id"] not in told


def test_tenants_are_apart_and_scopes_are_kept(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), guarded=True)) as (url, state):
        assert "headstart tokens add" in error(Http(url)("GET", "/v1/limits"), 401)
        assert (
            Http(url)("GET", "/readyz").status
            == Http(url)("GET", "/metrics").status
            == Http(url)("GET", "/").status
            == 200
        )
        made = {
            (tenant, scope): Http(url, make_token(state.store, "x", tenant, [scope]))
            for tenant in ("acme", "other")
            for scope in ("adapt", "predict", "admin")
        }
        body, asked = {"examples": TEXTS}, {"inputs": [{"text": "card"}]}
        task = made["acme", "adapt"]("POST", "/v1/tasks", body, {"Idempotency-Key": "k"}).json
        path = f"/v1/tasks/{task['id']}"
        assert "scope" in error(made["acme", "predict"]("POST", "/v1/tasks", body), 403)
        error(made["acme", "predict"]("DELETE", path), 403)
        error(made["acme", "adapt"]("POST", f"{path}/predict", asked), 403)
        assert made["acme", "predict"]("POST", f"{path}/predict", asked).status == 200
        assert made["acme", "admin"]("POST", f"{path}/predict", asked).status == 200
        other = made["other", "admin"]
        for method, place, sent in (
            ("GET", "", None), ("DELETE", "", None), ("POST", "/predict", asked), ("POST", "/examples", body),
            ("DELETE", "/classes/card", None), ("GET", "/export?to=onnx", None),
        ):  # fmt: skip
            unknown = error(other(method, f"/v1/tasks/{UNKNOWN}{place}", sent), 404)
            assert error(other(method, path + place, sent), 404) == unknown
        assert other("GET", "/v1/tasks").json["tasks"] == []
        # a key is a tenant's own
        assert other("POST", "/v1/tasks", body, {"Idempotency-Key": "k"}).json["id"] != task["id"]
        error(Http(url, "hs_wrong_token")("GET", path), 401)


def test_a_token_in_the_store_closes_a_service_that_was_open(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, state):
        assert Http(url)("GET", "/v1/limits").status == 200
        token = make_token(state.store, "x", "acme", ["admin"])
        error(Http(url)("GET", "/v1/limits"), 401)
        assert Http(url, token)("GET", "/v1/limits").status == 200
        state.store.revoke(token.split("_")[1])
        error(Http(url, token)("GET", "/v1/limits"), 401)
        error(Http(url)("GET", "/v1/limits"), 401)


def test_more_than_the_queue_holds_is_told_to_come_again(settings_of, tmp_path):
    limits = Limits(queue=2, adapt_seconds=120)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, state):
        held = threading.Event()
        state.pool._take, take = lambda: (held.wait(60), take())[1], state.pool._take
        with concurrent.futures.ThreadPoolExecutor(8) as many:
            asked = [many.submit(Http(url), "POST", "/v1/tasks", {"examples": TEXTS}) for _ in range(8)]
            concurrent.futures.wait(asked[:5], 20, concurrent.futures.FIRST_COMPLETED)
            held.set()
            answers = [one.result() for one in asked]
        assert {answer.status for answer in answers} == {201, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["retry-after"]) >= 1 and "ask again" in error(refused, 429)


def test_a_tenant_has_so_many_tasks_and_no_more(settings_of, tmp_path):
    limits = Limits(tasks=1, adapt_seconds=120)
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), limits)) as (url, _):
        assert Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).status == 201
        assert "delete some" in error(Http(url)("POST", "/v1/tasks", {"examples": TEXTS}), 409)


def test_a_full_disk_is_told_and_loses_nothing(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, state):
        ask = Http(url)
        made = ask("POST", "/v1/tasks", {"examples": TEXTS}).json
        (pages,) = state.store.database._connection.execute("PRAGMA page_count").fetchone()
        state.store.database._connection.execute(f"PRAGMA max_page_count={pages}")
        answer = ask("POST", "/v1/tasks", {"examples": TEXTS})
        assert "make room" in error(answer, 503) and answer.headers["retry-after"]
        assert ask("POST", f"/v1/tasks/{made['id']}/predict", {"inputs": [{"text": "card"}]}).status == 200
        assert [one["id"] for one in ask("GET", "/v1/tasks").json["tasks"]] == [made["id"]]


def test_a_damaged_task_is_named_or_learned_again_and_others_are_served(settings_of, tmp_path):
    store = tmp_path / "tasks.db"
    asked = {"inputs": [{"text": "card"}]}
    with running(settings_of(store, ("ngrams",))) as (url, state):
        made = [Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"] for _ in range(3)]
        rows = [Http(url)("POST", f"/v1/tasks/{one}/predict", asked).json for one in made]
        break_ = "UPDATE parts SET data = zeroblob(length(data)) WHERE task = ? AND part = ?"
        state.store.database.rows(break_, (made[0], "adapted"))
        for part in ("adapted", "support"):
            state.store.database.rows(break_, (made[1], part))
    with running(settings_of(store, ("ngrams",))) as (url, _):
        found = [Http(url)("POST", f"/v1/tasks/{one}/predict", asked) for one in made]
        assert found[0].json == rows[0], "what was learned is learned again from what it was learned from"
        assert made[1] in error(found[1], 500) and "damaged" in found[1].json["error"]["message"]
        assert found[2].json == rows[2]


@pytest.mark.parametrize(
    "damage", ['{"name": "a", "la', '{"name": "a"}', b'{"name": "\xff", "labels": [], "counts": []}']
)
def test_a_task_of_which_nobody_knows_what_it_is_is_named_and_can_be_deleted(settings_of, tmp_path, damage):
    asked = {"inputs": [{"text": "card"}]}
    store = tmp_path / "tasks.db"
    with running(settings_of(store, ("ngrams",))) as (url, state):
        bad, good = (Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"] for _ in range(2))
        state.store.database.rows("UPDATE tasks SET told = CAST(? AS TEXT) WHERE id = ?", (damage, bad))
    with running(settings_of(store, ("ngrams",))) as (url, _):
        for answer in (Http(url)("GET", f"/v1/tasks/{bad}"), Http(url)("POST", f"/v1/tasks/{bad}/predict", asked)):
            message = error(answer, 500)
            assert bad in message and "damaged" in message
        first, second = Http(url)("GET", "/v1/tasks").json["tasks"]
        assert first["id"] == bad and "damaged" in first["warnings"][0] and second["id"] == good
        assert Http(url)("POST", f"/v1/tasks/{good}/predict", asked).status == 200
        assert Http(url)("DELETE", f"/v1/tasks/{bad}").status == 204
        error(Http(url)("GET", f"/v1/tasks/{bad}"), 404)


def test_a_task_of_another_run_of_the_same_name_is_refused(settings_of, tmp_path, curves_run):
    import shutil

    store = tmp_path / "tasks.db"
    with running(settings_of(store, (str(curves_run),))) as (url, _):
        task = Http(url)("POST", "/v1/tasks", {"examples": POINTS}).json["id"]
    other = tmp_path / "curves"
    shutil.copytree(curves_run, other)
    config = json.loads((other / "config.json").read_text())
    config["run"]["seed"] = 1
    (other / "config.json").write_text(json.dumps(config))
    with running(settings_of(store, (str(other), "ngrams"))) as (url, _):
        message = error(Http(url)("POST", f"/v1/tasks/{task}/predict", {"inputs": [{"row": {"x": 1}}]}), 409)
        assert "another one by now" in message
        assert Http(url)("GET", f"/v1/tasks/{task}").status == 200
    with running(settings_of(store, ("ngrams",))) as (url, _):
        message = error(Http(url)("POST", f"/v1/tasks/{task}/predict", {"inputs": [{"row": {"x": 1}}]}), 409)
        assert "not served now" in message


def test_what_is_no_longer_in_memory_is_read_again(settings_of, tmp_path):
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",), memory=1)) as (url, _):
        made = [Http(url)("POST", "/v1/tasks", {"examples": TEXTS}).json["id"] for _ in range(3)]
        for task in made * 2:
            found = Http(url)("POST", f"/v1/tasks/{task}/predict", {"inputs": [{"text": "my card"}]})
            assert found.json["predictions"][0]["prediction"] == "card"


def test_a_zip_of_files_has_the_same_bytes_again():
    from headstart.serve.app import _zipped

    files = {"b.txt": b"2", "a.onnx": bytes(1000)}
    assert _zipped(files) == _zipped(dict(reversed(files.items())))
    import zipfile

    assert zipfile.ZipFile(io.BytesIO(_zipped(files))).namelist() == ["a.onnx", "b.txt"]


def test_what_is_asked_most_is_answered_as_the_description_says(service, monkeypatch):
    ask, state = service
    task = ask("POST", "/v1/tasks", {"run": "ngrams", "examples": TEXTS}).json["id"]
    path, body = f"/v1/tasks/{task}/predict", {"inputs": [{"text": "card"}]}
    rows = ask("POST", path, body)
    assert rows.status == 200 and rows.headers["content-type"] == "application/json"
    assert {"nosniff", "no-store"} <= set(rows.headers.values()) and rows.json["predictions"][0]["set"] is None
    counted = ask("GET", "/metrics").body.decode()
    assert 'route="/v1/tasks/{task}/predict",status="200"' in counted
    monkeypatch.setattr(state, "ask", lambda question: 1 / 0)
    assert "unexpected" in error(ask("POST", path, body), 500)
