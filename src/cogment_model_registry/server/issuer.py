"""JSON Web Tokens of one issuer, such as an identity provider or the API server of Kubernetes: are they valid?

Verifying is synchronous and takes some microseconds. Reading the keys blocks, so a thread does it, at most one at a
time. The thread is a daemon, so that a name server or an issuer that never answers does not delay a stop.
"""

import asyncio
import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import structlog
from cachetools import TTLCache

from cogment_model_registry.errors import InvalidError, StartError, UnauthenticatedError, UnavailableError
from cogment_model_registry.records.access import SCOPES_MAX, Scope, check_name, identity_of
from cogment_model_registry.records.addresses import is_http, is_loopback
from cogment_model_registry.server.issuer_keys import ALGORITHMS, TOTAL_SECONDS, Key, parse_keys, reader
from cogment_model_registry.settings import Settings

_log = structlog.stdlib.get_logger(__name__)

TOKEN_MAX_BYTES = 8 << 10
"""The longest token. By default, gRPC refuses calls with more metadata than this."""

_LEEWAY_NS = 5 * 10**9
"""How far the clock of the issuer may be ahead. A token is not accepted for longer than it says."""

_CHECKED_MAX = 1024
_CHECKED_SECONDS = 60.0
"""Of how many tokens, and for how long, it is kept what a check found: a check of a signature takes longer than a small
call, and a client repeats a token that is refused. What depends on the time is not kept, and other keys end it all."""

_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Three parts in base64url (RFC 7515, section 7.1); Python's decoder skips whatever else is between them."""

_NS = 10**9
_LATEST_SECONDS = 253_402_300_799  # the end of the year 9999
_INVALID = "the token is not valid: "


@dataclass(frozen=True, slots=True)
class Pace:
    """How often keys are read.

    Attributes:
        read_seconds: The pause after keys were read.
        failed_seconds: The pause after they could not be.
        again_seconds: The shortest time between two readings that unknown keys cause, however many tokens have such.
    """

    read_seconds: float
    failed_seconds: float
    again_seconds: float


ADDRESS_PACE = Pace(read_seconds=300.0, failed_seconds=5.0, again_seconds=10.0)
FILE_PACE = Pace(read_seconds=1.0, failed_seconds=1.0, again_seconds=1.0)


@dataclass(frozen=True, slots=True)
class Verified:
    """What a valid token says.

    Attributes:
        subject: Whose it is.
        scopes: The scopes of its claim.
        expires_ns: When it ends, in nanoseconds since the Unix epoch.
        key: The key that it is signed with.
    """

    subject: str
    scopes: tuple[Scope, ...]
    expires_ns: int
    key: Key


@dataclass(frozen=True, slots=True)
class _Signed:
    """What a token of the issuer says, whatever the time.

    Attributes:
        verified: What it says while it is valid.
        begins_ns: From when on it is valid, in nanoseconds since the Unix epoch, by the claims that say so.
    """

    verified: Verified
    begins_ns: Mapping[str, int]

    def at(self, now_ns: int) -> Verified:
        """Return what it says at a time.

        Raises:
            UnauthenticatedError: It is not valid then.
        """
        if now_ns >= self.verified.expires_ns:
            _refuse("it has expired")
        for name, begins_ns in self.begins_ns.items():
            if begins_ns > now_ns + _LEEWAY_NS:
                _refuse(f"it is not valid yet ({name})")
        return self.verified


class Issuer:
    """Verifies the tokens of an issuer, and follows its keys.

    Args:
        name: The issuer, as its tokens have it.
        audience: The audience that its tokens must be for.
        scopes_claim: The claim with the scopes.
        read_keys: Returns the JSON Web Key Set; it may block.
        pace: How often it is called.
        now_ns: Nanoseconds since the Unix epoch.

    Raises:
        StartError: The packages that verify tokens are not installed.
    """

    def __init__(
        self,
        name: str,
        audience: str,
        scopes_claim: str,
        *,
        read_keys: Callable[[], bytes],
        pace: Pace,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            import cryptography  # noqa: F401, PLC0415 # without it, the next one does without most algorithms
            import jwt  # noqa: PLC0415 # as above: an extra
        except ImportError as error:
            install = "pip install 'cogment-model-registry[oidc]'"
            raise StartError(f"oidc_issuer needs PyJWT and cryptography, which are not installed: {install}") from error
        self._jwt = jwt
        self._name = name
        self._audience = audience
        self._scopes_claim = scopes_claim
        self._read_keys = read_keys
        self._pace = pace
        self._now_ns = now_ns
        self._keys: tuple[Key, ...] | None = None
        self._data = b""
        self._thread_work: asyncio.Future[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -math.inf
        self._failures: set[str] = set()
        self._checked: TTLCache[str, _Signed | str | None] = TTLCache(_CHECKED_MAX, _CHECKED_SECONDS)

    # The keys.

    async def run(self) -> None:
        """Follow the keys, until it is cancelled."""
        while True:
            await asyncio.sleep(self._pace.failed_seconds if self._failures else self._pace.read_seconds)
            await self._begin_reading()

    async def read(self) -> None:
        """Read the keys; a failure is logged."""
        await self._begin_reading()

    async def look_again(self) -> None:
        """Read the keys, unless they were read a moment ago: a token has a key that is not known."""
        now = asyncio.get_running_loop().time()
        if self._reading is not None or now - self._read_at >= self._pace.again_seconds:
            await self._begin_reading()

    async def close(self) -> None:
        """End the reading that is under way; its thread ends by itself."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _begin_reading(self) -> "asyncio.Future[None]":
        """Return the reading that is under way, or a new one; whoever is cancelled does not end it for the others."""
        if self._reading is None:
            self._read_at = asyncio.get_running_loop().time()
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._note_end)
        return asyncio.shield(self._reading)

    def _note_end(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        try:
            data = await self._read_on_thread()
            if data != self._data:
                self._take_over(parse_keys(data))
                self._data = data
            self._failures.clear()
        except UnavailableError as error:
            if error.message not in self._failures:
                self._failures.add(error.message)
                _log.warning("reading the keys of the issuer failed; trying again", reason=error.message)

    def _take_over(self, keys: list[Key]) -> None:
        """Use these keys from now on; keys that are still there stay the same objects."""
        former = {key.members: key for key in self._keys or ()}
        self._keys = tuple(former.pop(key.members, key) for key in keys)
        self._checked.clear()
        for key in former.values():
            key.is_withdrawn = True
        log = _log.info if keys else _log.warning
        log("read the keys of the issuer", usable=len(self._keys), withdrawn=len(former))

    async def _read_on_thread(self) -> bytes:
        """Return what `read_keys` returns. If that takes too long, the next call waits for the same thread."""
        if self._thread_work is None:
            self._thread_work = _started(self._read_keys)
        done, _ = await asyncio.wait([self._thread_work], timeout=TOTAL_SECONDS)
        if not done:
            raise UnavailableError(f"reading them took more than {TOTAL_SECONDS:g} seconds")
        work, self._thread_work = self._thread_work, None
        return work.result()

    # The tokens.

    def missing(self) -> UnauthenticatedError:
        """Return the error for a token whose key is not known, after a look for it."""
        if self._keys is None:
            return UnauthenticatedError("the server has no keys of the issuer of the token; its log says why")
        return UnauthenticatedError(f"{_INVALID}its key (kid) is not among those of the issuer")

    def verify(self, token: str) -> Verified | None:
        """Return what a token says; None if its key is not known.

        Raises:
            UnauthenticatedError: The token is not valid. The message says why, and shows nothing of it.
        """
        if len(token) > TOKEN_MAX_BYTES:
            raise UnauthenticatedError(f"{_INVALID}it has more than {TOKEN_MAX_BYTES} bytes")
        if not _FORM.fullmatch(token):
            _refuse("it is malformed")
        identity = identity_of(token)
        try:
            checked = self._checked[identity]
        except KeyError:
            checked = self._checked[identity] = self._check(token)
        if isinstance(checked, str):
            raise UnauthenticatedError(checked)
        return None if checked is None else checked.at(self._now_ns())

    def _check(self, token: str) -> _Signed | str | None:
        """Return what a token says, or why it is never valid with the present keys; None if its key is not known."""
        try:
            algorithm, kid = self._header(token)
            key = self._key(kid, algorithm)
            return None if key is None else self._signed(self._claims(token, key, algorithm), key)
        except UnauthenticatedError as error:
            return error.message

    def _signed(self, claims: Mapping[str, Any], key: Key) -> _Signed:
        """Return what the claims of a token say."""
        subject = claims["sub"]
        try:
            check_name("sub", subject)
        except InvalidError:
            _refuse("its subject (sub) is longer than 255 bytes, or not printable")
        begins_ns = {name: _nanoseconds(claims, name) for name in ("nbf", "iat") if name in claims}
        return _Signed(Verified(subject, self._scopes(claims), _nanoseconds(claims, "exp"), key), begins_ns)

    def _header(self, token: str) -> tuple[str, str | None]:
        """Return the algorithm and the id of the key that a token names."""
        try:
            header = self._jwt.get_unverified_header(token)
        except Exception:  # whatever the library makes of a text of a stranger, it is no token
            _refuse("it is malformed")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not isinstance(kid, str | None):
            _refuse("it is malformed")
        if algorithm not in ALGORITHMS:
            _refuse("its algorithm (alg) is not accepted")
        if header.keys() & {"crit", "b64"}:
            _refuse("its header has extensions that the server does not know")
        return algorithm, kid

    def _key(self, kid: str | None, algorithm: str) -> Key | None:
        """Return the key of a token. One without an id may only have the only key."""
        keys = self._keys or ()
        if kid is None:
            if len(keys) > 1:
                _refuse("it names no key (kid), and the issuer has several")
            candidates = keys
        else:
            candidates = tuple(key for key in keys if key.kid == kid)
        fitting = [key for key in candidates if algorithm in key.algorithms]
        if candidates and not fitting:
            _refuse("its algorithm (alg) is not that of its key")
        return fitting[0] if fitting else None

    def _claims(self, token: str, key: Key, algorithm: str) -> Mapping[str, Any]:
        """Return the claims of a token whose signature, issuer and audience are right."""
        jwt = self._jwt
        # The times are checked each time, by the clock that also ends the token.
        times = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key.public,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._name,
                options={"require": ["iss", "aud", "sub", "exp"], **times},
            )
            return claims
        except jwt.InvalidSignatureError:
            _refuse("its signature is wrong")
        except jwt.MissingRequiredClaimError as error:
            _refuse(f"it has no {error.claim}")
        except jwt.InvalidAudienceError:
            _refuse("its audience (aud) is not that of this server")
        except jwt.InvalidIssuerError:
            _refuse("its issuer (iss) is not that of this server")
        except Exception:  # as above
            _refuse("it is malformed")

    def _scopes(self, claims: Mapping[str, Any]) -> tuple[Scope, ...]:
        """Return the scopes of a token; what is not a scope of ours is for others."""
        claim = claims.get(self._scopes_claim, ())
        words = claim.split() if isinstance(claim, str) else claim
        scopes: dict[Scope, None] = {}
        for word in words if isinstance(words, list) else ():
            with contextlib.suppress(InvalidError):
                if isinstance(word, str) and len(scopes) < SCOPES_MAX:
                    scopes[Scope.parse(word)] = None
        return tuple(scopes)


def _refuse(reason: str) -> NoReturn:
    raise UnauthenticatedError(_INVALID + reason) from None


def _nanoseconds(claims: Mapping[str, Any], name: str) -> int:
    """Return the time of a claim, in nanoseconds since the Unix epoch."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST_SECONDS:
        _refuse(f"its time {name} is malformed")
    return int(value * _NS)


def _started(read: Callable[[], bytes]) -> "asyncio.Future[bytes]":
    """Return the result of a function that runs on a thread of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def finish(data: bytes, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(data)
            else:
                future.set_exception(error)
                future.exception()  # nobody may be left who asks for it

    def work() -> None:
        data, failure = b"", None
        try:
            data = read()
        except Exception as error:  # whoever waits has it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
            loop.call_soon_threadsafe(finish, data, failure)

    threading.Thread(target=work, name="server issuer keys", daemon=True).start()
    return future


def issuer_of(settings: Settings) -> Issuer | None:
    """Return the issuer that settings describe; None for none.

    Raises:
        StartError: The settings contradict each other, or packages are missing.
    """
    if not settings.oidc_issuer:
        for name in ("oidc_audience", "oidc_keys"):
            if getattr(settings, name):
                raise StartError(f"{name} is set, but oidc_issuer is not; set both or none")
        return None
    if not settings.oidc_audience:
        raise StartError("oidc_issuer is set, but oidc_audience is not: set it to the audience (aud) of the tokens")
    source = settings.oidc_keys or settings.oidc_issuer
    if _is_open(source):
        _log.warning("the keys of the issuer come without encryption; use an https address", address=source)
    return Issuer(
        settings.oidc_issuer,
        settings.oidc_audience,
        settings.oidc_scopes_claim,
        read_keys=reader(settings.oidc_issuer, settings.oidc_keys),
        pace=ADDRESS_PACE if is_http(source) else FILE_PACE,
    )


def _is_open(source: str) -> bool:
    """Return whether others may read and change what comes from an address."""
    parts = urlsplit(source)
    return parts.scheme == "http" and parts.hostname != "localhost" and not is_loopback(parts.hostname or "")
