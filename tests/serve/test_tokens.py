import pytest

from headstart.errors import ConfigError, UnknownNameError
from headstart.serve.store import Place, Store
from headstart.serve.tokens import LOCAL, caller, hash_of, make_token


@pytest.fixture
def store(place):
    found = Store(place)
    yield found
    found.close()


def test_a_token_says_whose_it_is_and_what_it_allows(store):
    token = make_token(store, "anna", "acme", ["predict"])
    who = caller(store, token)
    assert who.tenant == "acme" and who.may("predict") and who.may(None) and not who.may("adapt")
    admin = caller(store, make_token(store, "root", "acme", ["admin"]))
    assert admin.may("adapt") and admin.may("predict")


@pytest.mark.parametrize(
    "wrong", ["", "x", "hs_", "hs_a_b", "é" * 50, "\ud83d", "hs_01M8PF7X8F5EJN298FZPEHA68Y_" + "a" * 43]
)
def test_what_is_no_token_is_nobody(store, wrong):
    make_token(store, "anna", "acme", ["predict"])
    assert caller(store, wrong) is None


def test_a_token_ends_and_is_revoked(store):
    short = make_token(store, "anna", "acme", ["predict"], days=1e-9)
    other = make_token(store, "bert", "acme", ["predict"])
    assert caller(store, short) is None and caller(store, other) is not None
    assert store.revoke(other.split("_")[1]) and caller(store, other) is None
    assert store.has_tokens(), "to revoke the last one must not open the service"


def test_no_token_is_in_the_file(tmp_path):
    path = tmp_path / "tasks.db"
    store = Store(Place(str(path)))
    token = make_token(store, "anna", "acme", ["predict"])
    store.close()
    assert token.split("_", 2)[2].encode() not in path.read_bytes()


def test_names_and_scopes_are_checked(store):
    for name, tenant, scopes in (("", "a", ["admin"]), ("a", "b c", ["admin"]), ("a", "b", [])):
        with pytest.raises(ConfigError):
            make_token(store, name, tenant, scopes)
    with pytest.raises(UnknownNameError, match="adapt"):
        make_token(store, "a", "b", ["adap"])


def test_a_token_of_ones_own_has_to_be_long(store):
    own = hash_of("a" * 30 + "\n", "file")
    assert caller(store, "a" * 30, own) == LOCAL and caller(store, "b" * 30, own) is None
    for weak in ("", "secret", "é" * 40, "a b\nc" * 20):
        with pytest.raises(ConfigError, match="file"):
            hash_of(weak, "file")
