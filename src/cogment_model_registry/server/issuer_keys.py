"""The keys of an issuer of JSON Web Tokens: where they are read, and which algorithms each key verifies.

Only public keys of asymmetric algorithms are taken. So no public key can be the secret of an HMAC, which anybody could
then compute, and private parts that somebody published by mistake are dropped.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cogment_model_registry._version import __version__
from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.addresses import is_http

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

_KEYS_MAX = 100
"""How many keys of an issuer are used; issuers have a few."""

_MAX_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 10
_OPERATION_SECONDS = 5.0
TOTAL_SECONDS = 10.0
"""How long reading the keys may take."""

_RSA_MIN_BITS = 2048
"""The least that RFC 7518 (section 3.3) allows."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_TYPES: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("OKP", "Ed448"): ("EdDSA",),
}
"""By type and curve, the algorithms of a key (RFC 7518, section 3.1; RFC 8037, section 3.1)."""

ALGORITHMS = frozenset(algorithm for algorithms in _TYPES.values() for algorithm in algorithms)
"""The algorithms of tokens that are accepted."""

_PUBLIC = ("kty", "crv", "n", "e", "x", "y")
"""The members of a key that are used."""


@dataclass(eq=False, slots=True)
class Key:
    """A public key of an issuer.

    Attributes:
        kid: Its id; None if it has none.
        algorithms: The algorithms that it verifies.
        public: The key itself.
        members: What it was made of, by which it is recognized when the keys are read again.
        is_withdrawn: Whether the issuer no longer has it.
    """

    kid: str | None
    algorithms: frozenset[str]
    public: "AllowedPublicKeys"
    members: str
    is_withdrawn: bool = False


def parse_keys(data: bytes) -> list[Key]:
    """Return the usable keys of a JSON Web Key Set (RFC 7517); other keys are left out, as it demands.

    Raises:
        UnavailableError: It is no such set.
    """
    keys = _json_object(data, "what the keys of the issuer are read from").get("keys")
    if not isinstance(keys, list):
        raise UnavailableError("what the keys of the issuer are read from is not a JSON Web Key Set")
    return [key for member in keys[:_KEYS_MAX] if isinstance(member, dict) and (key := _parse_key(member))]


def _parse_key(member: Mapping[str, object]) -> Key | None:
    """Return a key of a set; None if it is not usable."""
    import jwt  # noqa: PLC0415 # an extra that only servers with an issuer need

    kid, algorithms = member.get("kid"), _algorithms(member)
    if not algorithms or not isinstance(kid, str | None):
        return None
    public = {name: member[name] for name in _PUBLIC if name in member}
    try:
        key: Any = jwt.PyJWK(public, algorithm=min(algorithms)).key
    except Exception:  # whatever is wrong with it, it is not usable
        return None
    if member["kty"] == "RSA" and key.key_size < _RSA_MIN_BITS:
        return None
    return Key(kid, algorithms, key, json.dumps([kid, sorted(algorithms), public], sort_keys=True))


def _algorithms(member: Mapping[str, object]) -> frozenset[str]:
    """Return the algorithms that a key verifies: those of its type and its curve, of which it may name one."""
    operations = member.get("key_ops", ["verify"])
    if member.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return frozenset()
    kind, curve, own = member.get("kty"), member.get("crv"), member.get("alg")
    if not isinstance(kind, str) or not isinstance(curve, str | None) or not isinstance(own, str | None):
        return frozenset()
    algorithms = _TYPES.get((kind, None if kind == "RSA" else curve), ())
    return frozenset(each for each in algorithms if own in (None, each))


def reader(issuer: str, keys: str) -> Callable[[], bytes]:
    """Return what reads the keys of an issuer; it blocks, for some `TOTAL_SECONDS` unless a peer trickles headers.

    Args:
        issuer: The address of the issuer.
        keys: The address or the path of its keys; empty to ask the issuer for the address.

    Raises:
        UnavailableError: The returned function failed. The message is for the operator.
    """
    if not keys:
        return lambda: _discover(issuer)
    if is_http(keys):
        return lambda: _fetch(keys, monotonic() + TOTAL_SECONDS)
    return lambda: _read_file(keys)


def _read_file(path: str) -> bytes:
    try:
        # Without waiting for a writer, if it is a pipe.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UnavailableError(f"oidc_keys {path} cannot be read: {error.strerror}") from error
    if not data or len(data) > _MAX_BYTES:
        raise UnavailableError(f"oidc_keys {path} is empty, or has more than {_MAX_BYTES} bytes")
    return data


def _discover(issuer: str) -> bytes:
    """Return the keys from the address that the issuer's metadata gives (OpenID Connect Discovery 1.0, section 4)."""
    deadline = monotonic() + TOTAL_SECONDS
    address = issuer.rstrip("/") + "/.well-known/openid-configuration"
    metadata = _json_object(_fetch(address, deadline), address)
    if metadata.get("issuer") != issuer:
        raise UnavailableError(f"{address} is not about the issuer {issuer}")
    keys = metadata.get("jwks_uri")
    if not isinstance(keys, str) or not is_http(keys):
        raise UnavailableError(f"{address} has no jwks_uri that is an http or https address")
    if urlsplit(issuer).scheme == "https" != urlsplit(keys).scheme:
        raise UnavailableError(f"{address} has a jwks_uri that is not encrypted")
    return _fetch(keys, deadline)


def _json_object(data: bytes, source: str) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UnavailableError(f"{source} is not a JSON object")
    return value


def _fetch(address: str, deadline: float) -> bytes:
    """Return what an address has. Redirections are not followed: one could lead to an address without encryption."""
    request = urllib.request.Request(  # noqa: S310 # the opener knows no other schemes
        address, headers={"Accept": "application/json", "User-Agent": f"cogment-model-registry/{__version__}"}
    )
    data = bytearray()
    try:
        with _opener().open(request, timeout=_OPERATION_SECONDS) as reply:
            while block := reply.read1(_BLOCK_BYTES):
                data += block
                if len(data) > _MAX_BYTES:
                    raise UnavailableError(f"{address} answered with more than {_MAX_BYTES} bytes")
                if monotonic() > deadline:
                    raise UnavailableError(f"{address} did not answer within {TOTAL_SECONDS:g} seconds")
    except urllib.error.HTTPError as error:
        error.close()
        raise UnavailableError(f"{address} answered with the status {error.code}") from error
    except urllib.error.URLError as error:
        raise UnavailableError(f"{address} is not available: {_reason(error.reason)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"{address} is not available: {_reason(error)}") from error
    return bytes(data)


def _reason(error: object) -> str:
    """Return why, without what the other side wrote."""
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https addresses, and no files, through the proxy of the environment if it has one."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener
