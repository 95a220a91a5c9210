"""The commands of the service: what they refuse, and tokens; tests/serve starts services."""

import json

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from headstart.cli.app import run
from headstart.serve.store import Place, Store
from headstart.serve.tokens import caller


def test_tokens_are_made_listed_and_revoked(tmp_path, capsys):
    store = str(tmp_path / "tasks.db")
    assert run(["tokens", "add", "anna", "--store", store, "--tenant", "acme", "--scopes", "adapt,predict"]) == 0
    token = capsys.readouterr().out.strip()
    kept = Store(Place(str(tmp_path / "tasks.db")))
    assert caller(kept, token).tenant == "acme"
    assert run(["tokens", "list", "--store", store, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (
        listed["name"] == "anna" and listed["scopes"] == "adapt,predict" and token.split("_", 2)[2] not in str(listed)
    )
    assert run(["tokens", "revoke", listed["id"], "--store", store]) == 0
    assert caller(kept, token) is None
    kept.close()
    assert run(["tokens", "list", "--store", store]) == 0 and "acme" in capsys.readouterr().out


def test_the_share_of_other_classes_goes_to_those_who_compute(tmp_path, monkeypatch):
    from headstart.serve import server

    settings = []
    monkeypatch.setattr(server, "run", lambda given, *others: settings.append(given))
    assert run(["serve", "ngrams", "--unknown-share", "0.1"]) in (0, None) and run(["serve", "ngrams"]) in (0, None)
    assert [one.work.unknown_share for one in settings] == [0.1, None]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tokens", "add"], "say whom"),
        (["tokens", "add", "a b"], "name"),
        (["tokens", "add", "anna", "--scopes", "adap"], "did you mean 'adapt'"),
        (["tokens", "add", "anna", "--days", "-1"], "days"),
        (["tokens", "list", "--store", "none.db"], "no store"),
        (["serve"], "RUNS"),
        (["serve", "nowhere"], "neither a run nor a network"),
        (["serve", "ngrams", "some/ngrams"], "called 'ngrams'"),
        (["serve", "ngrams", "--port", "70000"], "port"),
        (["serve", "ngrams", "--host", "0.0.0.0"], "needs a token"),
        (["serve", "ngrams", "--host", "0.0.0.0", "--no-auth"], "--i-know"),
        (["serve", "ngrams", "--host", "198.51.100.1", "--no-auth", "--i-know"], "cannot listen"),
        (["serve", "ngrams", "--token-file", "weak.txt"], "holds no token"),
        (["serve", "ngrams", "--store", "weak.txt"], "no store"),
        (["serve", "ngrams", "--unknown-share", "1"], "--unknown-share"),
    ],
)
def test_what_cannot_be_is_refused(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weak.txt").write_text("secret" * 3)
    assert run(words) in (1, 2)
    assert told in capsys.readouterr().err
