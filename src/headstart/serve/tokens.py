"""Who may ask: tokens, of which only hashes are kept."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, TypeAlias, get_args

from headstart.errors import ConfigError, check_known
from headstart.serve.ids import PATTERN, ids
from headstart.serve.store import Store, now

Scope: TypeAlias = Literal["adapt", "predict", "admin"]
"""What a token allows: to teach, change and delete tasks; to predict by them; or all."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
#: Letters of a secret that nobody guesses.
_LEAST = 20


class Caller(NamedTuple):
    """Who asks."""

    tenant: str
    scopes: frozenset[str]

    def may(self, scope: Scope | None) -> bool:
        """Return whether this is allowed; ``None`` is to everybody."""
        return scope is None or bool({scope, "admin"} & self.scopes)


LOCAL = Caller("local", frozenset({"admin"}))
"""Who asks where no token is asked for."""


def make_token(store: Store, name: str, tenant: str, scopes: Collection[str], days: float | None = None) -> str:
    """Keep a new token's hash, and return the token, which nobody can read again.

    Raises:
        ConfigError: names that are none, or no scope.
        UnknownNameError: a scope that there is not.
    """
    for what, text in (("name", name), ("tenant", tenant)):
        if not _NAME.fullmatch(text):
            raise ConfigError(f"the {what} {text!r} is none; expected up to 64 letters, digits, dots, dashes or @")
    for scope in scopes:
        check_known("scope", scope, SCOPES)
    if not scopes or days is not None and not 0 < days < 36500:
        raise ConfigError(f"a token needs scopes ({', '.join(SCOPES)}), and days above 0 where it ends")
    token, secret = ids()(), secrets.token_urlsafe(32)
    until = None if days is None else (datetime.now(UTC) + timedelta(days=days)).isoformat()
    store.add_token((token, _hash(secret), name, tenant, ",".join(sorted(scopes)), now(), until))
    return f"hs_{token}_{secret}"


def caller(store: Store, given: str, own: bytes | None = None) -> Caller | None:
    """Return whose a token is, ``None`` where it is nobody's any more.

    Args:
        store: where tokens are kept.
        given: the token.
        own: the hash of a token that is not kept there (`hash_of`), which allows all.
    """
    if own is not None and hmac.compare_digest(_hash(given), own):
        return LOCAL
    parts = given.split("_", 2)
    if len(parts) != 3 or parts[0] != "hs" or not re.fullmatch(PATTERN, parts[1]):
        return None
    if (kept := store.token(parts[1])) is None:
        return None
    hashed, tenant, scopes, expires, revoked = kept
    over = revoked is not None or expires is not None and datetime.fromisoformat(expires) <= datetime.now(UTC)
    if not hmac.compare_digest(_hash(parts[2]), hashed) or over:
        return None
    return Caller(tenant, frozenset(scopes.split(",")))


def hash_of(secret: str, where: str) -> bytes:
    """Return the hash of a token of one's own choice.

    Raises:
        ConfigError: one that could be guessed.
    """
    secret = secret.strip()
    if len(secret) < _LEAST or not secret.isascii() or not secret.isprintable():
        raise ConfigError(
            f"{where} holds no token: expected one line of {_LEAST} ASCII letters or more, such as"
            f" `python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints"
        )
    return _hash(secret)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
