"""Under Ray Serve the same answers come, from whatever replica; slow to start, so all is asked of one that runs."""

import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from headstart.serve.server import running
from tests.serve.conftest import Http

if find_spec("ray") is None:
    pytest.skip("the extra ray is not installed", allow_module_level=True)

TEXTS = [{"label": label, "text": f"{label} {place}"} for label in ("card", "refund") for place in range(2)]
ASKED = {"inputs": [{"text": "my card"}, {"text": "a refund"}]}


@pytest.fixture(scope="module", params=[1, 2])
def ray(request, postgres, tmp_path_factory):
    """A service under Ray of so many replicas that speak HTTP, and as many that compute."""
    words = ["ngrams", "--ray", "--store", postgres.empty(), "--port", "0", "--replicas", request.param]
    command = [sys.executable, "-m", "headstart", "serve", *map(str, words), "--workers", str(request.param)]
    log = tmp_path_factory.mktemp("ray") / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        line = process.stdout.readline()
        try:
            assert line.startswith("serving at"), log.read_text()[-4000:]
            yield Http(line.split()[2]), process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.mark.timeout(600)
def test_it_answers_as_the_service_without_ray_does(ray, settings_of, tmp_path):
    ask, process = ray
    made = [ask("POST", "/v1/tasks", {"examples": TEXTS}) for _ in range(4)]
    assert [one.status for one in made] == [201] * 4
    ids = [one.json["id"] for one in made]
    rows = {ask("POST", f"/v1/tasks/{one}/predict", ASKED).body for one in ids for _ in range(4)}
    with running(settings_of(tmp_path / "tasks.db", ("ngrams",))) as (url, _):
        here = Http(url)
        task = here("POST", "/v1/tasks", {"examples": TEXTS}).json
        assert rows == {here("POST", f"/v1/tasks/{task['id']}/predict", ASKED).body}
        assert {name: made[0].json[name] for name in ("labels", "counts", "estimate")} == {
            name: task[name] for name in ("labels", "counts", "estimate")
        }
    more = {"examples": [{"label": "hours", "text": "when do you open"}]}
    assert ask("POST", f"/v1/tasks/{ids[0]}/examples", more).json["labels"] == ["card", "hours", "refund"]
    assert {len(ask("POST", f"/v1/tasks/{ids[0]}/predict", ASKED).json["predictions"][0]["probabilities"])
            for _ in range(8)} == {3}  # fmt: skip
    assert ask("DELETE", f"/v1/tasks/{ids[1]}").status == 204
    assert {ask("POST", f"/v1/tasks/{ids[1]}/predict", ASKED).status for _ in range(8)} == {404}
    assert ask("POST", "/v1/tasks", b"{").status == 422 and ask("GET", "/readyz").status == 200
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and time.monotonic() - began < 60


def test_a_file_is_no_store_for_several_processes():
    words = [sys.executable, "-m", "headstart", "serve", "ngrams", "--ray"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "PostgreSQL" in done.stderr
