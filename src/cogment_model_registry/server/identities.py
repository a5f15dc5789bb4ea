"""Who makes a call: the holder of a token or of a certificate that was granted something, or somebody anonymous."""

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache

import structlog

from cogment_model_registry.errors import ModelRegistryError, UnauthenticatedError
from cogment_model_registry.records.access import Grant, GrantKind, Scope, identity_of
from cogment_model_registry.records.addresses import is_loopback
from cogment_model_registry.registry.access import INVALID_TOKEN, Caller
from cogment_model_registry.server.issuer import Issuer, Verified
from cogment_model_registry.server.needs import NEEDS, OPEN
from cogment_model_registry.serving.calls import Call

_log = structlog.stdlib.get_logger(__name__)

_REFRESH_SECONDS = 1.0
"""How soon a grant that was revoked is noticed."""

_LOOK_SECONDS = 0.1
"""The shortest time between two looks for a token that is not known, however many callers have such tokens."""

_KNOWN_MAX = 4096
"""How many callers are known by what they send: looking up a token takes a part of a small call, and verifying one of
the issuer longer than such a call."""

_HEADER = "authorization"
_SCHEME = "bearer "
_MALFORMED = "authorization is malformed; it must be one Bearer TOKEN"

_READER = Caller(
    "a caller without a token",
    [Scope("read")],
    advice="; it may only read",
    is_named=False,
)
_ANYBODY = Caller("a caller without a token", [Scope("admin")], is_named=False)
_STRANGER = Caller("a caller without a token", (), is_named=False)


class Identities:
    """Finds out who makes a call, and refuses what they may not do.

    Args:
        anonymous: What callers may do who do not say who they are: ``everything``, ``read``, ``nothing``, or ``auto``
            for everything from this host, and reading from elsewhere.
        read_grants: Returns all grants.
        certificate_names: Returns the verified names of the certificate with which a call came.
        issuer: Verifies the JSON Web Tokens of an issuer, whose subjects may have grants; None without one.
        on_grant: Called with each grant that was made (with True) or revoked since the first look.
        now_ns: Nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        anonymous: str,
        read_grants: Callable[[], Awaitable[Sequence[Grant]]],
        certificate_names: Callable[[Call], Sequence[str]] = lambda _: (),
        issuer: Issuer | None = None,
        *,
        on_grant: Callable[[Grant, bool], object] = lambda _grant, _is_new: None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._anonymous = anonymous
        self._read_grants = read_grants
        self._certificate_names = certificate_names
        self._issuer = issuer
        self._on_grant = on_grant
        self._now_ns = now_ns
        self._is_first_look = True
        self._grants: dict[Grant, Caller] = {}
        self._callers: dict[GrantKind, dict[str, Caller]] = {"token": {}, "certificate": {}, "subject": {}}
        self._known: dict[bytes, Caller] = {}
        self._secret = os.urandom(32)
        self._looking: asyncio.Task[None] | None = None
        self._looked = float("-inf")

    # The grants.

    async def run(self) -> None:
        """Follow the grants and the keys of the issuer, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_grants())
            if self._issuer is not None:
                group.create_task(self._issuer.run())

    async def _follow_grants(self) -> None:
        failure = ""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.refresh()
                failure = ""
            except ModelRegistryError as error:
                if error.message != failure:
                    failure = error.message
                    _log.warning("reading tokens failed", reason=failure)

    async def refresh(self) -> None:
        """Take over the grants as they are now.

        Raises:
            UnavailableError: The catalog failed.
        """
        grants = {*await self._read_grants()}
        if grants != self._grants.keys():
            self._known.clear()
        for grant in self._grants.keys() - grants:
            self._grants.pop(grant).is_revoked = True
            _log.info("token revoked", name=grant.name)
            self._on_grant(grant, False)
        for grant in grants - self._grants.keys():
            self._grants[grant] = Caller(
                grant.name,
                grant.scopes,
                kind=grant.kind,
                identity=f"grant:{grant.name}",  # a subject without a grant may be called alike
                expires_ns=grant.expires_ns,
            )
            if not self._is_first_look:
                self._on_grant(grant, True)
        self._is_first_look = False
        for kind, callers in self._callers.items():
            callers.clear()
            callers.update((each.identity, caller) for each, caller in self._grants.items() if each.kind == kind)

    # The guard of calls; see `serving.calls.Guard`.

    def check_method(self, method: str) -> None:
        """Raise `KeyError` for a method about which it could not decide."""
        NEEDS[method]  # raises it

    def decide(self, call: Call, request: object) -> None:
        """Refuse what the caller may not do."""
        if not call.caller.may_everything:
            call.caller.require(NEEDS[call.method](request))

    def check_still(self, caller: Caller) -> None:
        """Refuse a caller whose time is over."""
        if caller.is_named:
            caller.check_valid(self._now_ns())

    def identify(self, call: Call) -> Caller | None:
        """Return who makes a call; None for an unknown token, which may be a new one."""
        authorization = _authorization(call)
        if authorization is None:
            return self._without_token(call)
        key, now_ns = self._key(authorization), self._now_ns()
        caller = self._known.get(key)
        if caller is None or caller.is_over(now_ns):
            caller = self._holder(_token(authorization), now_ns)
            if caller is not None:
                self._remember(key, caller)
        return caller

    def is_known(self, call: Call) -> bool:
        """Return whether `identify` has nothing to check that takes time: there is no token, or a known one."""
        authorization = _authorization(call)
        if authorization is None or self._key(authorization) in self._known:
            return True
        return identity_of(_token(authorization)) in self._callers["token"]

    def _key(self, authorization: str) -> bytes:
        """Return what a caller is known by; the tokens themselves are not kept.

        BLAKE2 takes a half of what SHA-256 does here. Its key makes the hashes useless outside of this process.
        """
        return hashlib.blake2b(authorization.encode(errors="surrogatepass"), key=self._secret, digest_size=32).digest()

    def _remember(self, key: bytes, caller: Caller) -> None:
        self._known.pop(key, None)
        if len(self._known) >= _KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = caller

    def _holder(self, token: str, now_ns: int) -> Caller | None:
        """Return who has a token; None if it is not known."""
        if self._issuer is not None and _is_issued(token):
            verified = self._issuer.verify(token)
            return None if verified is None else self._caller_of(verified, now_ns)
        caller = self._callers["token"].get(identity_of(token))
        if caller is not None:
            caller.check_valid(now_ns)
        return caller

    async def look_up(self, call: Call) -> Caller:
        """Return who makes a call whose token, or the key of whose token, was not known, after a look for it."""
        if self._issuer is not None and _is_issued(_token(_authorization(call) or _SCHEME)):
            await self._issuer.look_again()
            caller = self.identify(call)
            if caller is None:
                raise self._issuer.missing()
            return caller
        # A look that is under way may have missed it.
        for _ in range(1 if self._looking is None else 2):
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(self._note_look)
            await asyncio.shield(self._looking)
            caller = self.identify(call)
            if caller is not None:
                return caller
        raise UnauthenticatedError(INVALID_TOKEN)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time
        await asyncio.sleep(max(0, self._looked + _LOOK_SECONDS - now()))
        self._looked = now()
        await self.refresh()

    def _note_look(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def close(self) -> None:
        """End the look for new grants that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _caller_of(self, verified: Verified, now_ns: int) -> Caller:
        """Return who has a valid token: with its scopes, and with those of the grant for its subject."""
        key, granted = verified.key, self._callers["subject"].get(verified.subject)
        if granted is None or granted.is_over(now_ns):
            return Caller(
                verified.subject,
                verified.scopes,
                kind="subject",
                identity=f"subject:{verified.subject}",
                expires_ns=verified.expires_ns,
                is_withdrawn=lambda: key.is_withdrawn,
            )
        expires_ns = verified.expires_ns if granted.expires_ns is None else min(verified.expires_ns, granted.expires_ns)
        return Caller(
            granted.name,
            dict.fromkeys([*verified.scopes, *granted.scopes]),
            kind=granted.kind,
            identity=granted.identity,
            expires_ns=expires_ns,
            is_withdrawn=lambda: key.is_withdrawn or granted.is_revoked,
        )

    def _without_token(self, call: Call) -> Caller:
        """Return who makes a call without a token: the holder of a certificate, or somebody anonymous."""
        if self._callers["certificate"]:
            for name in self._certificate_names(call):
                caller = self._callers["certificate"].get(name)
                if caller is not None:
                    caller.check_valid(self._now_ns())
                    return caller
        if self._anonymous == "everything" or (self._anonymous == "auto" and _is_here(call.context.peer())):
            return _ANYBODY
        if self._anonymous == "nothing":
            if call.method in OPEN:
                return _STRANGER
            advice = "give the client a token_file, or send authorization: Bearer TOKEN"
            raise UnauthenticatedError(f"this server needs a token: {advice}")
        return _READER


def _authorization(call: Call) -> str | None:
    """Return what came with a call to say who makes it; None if nothing did.

    Raises:
        UnauthenticatedError: There are two, or it is no text.
    """
    found = None
    for name, value in call.context.invocation_metadata() or ():
        if name == _HEADER:
            if found is not None or not isinstance(value, str):
                raise UnauthenticatedError(_MALFORMED)
            found = value
    return found


def _token(authorization: str) -> str:
    """Return the token in what came with a call.

    Raises:
        UnauthenticatedError: It is malformed.
    """
    if authorization[: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError(_MALFORMED)
    return authorization[len(_SCHEME) :].strip()


def _is_issued(token: str) -> bool:
    """Return whether a token has the form of a JSON Web Token; our own tokens have no dots."""
    return token.count(".") == 2


@lru_cache(1024)
def _is_here(peer: str) -> bool:
    """Return whether a peer, in gRPC's words, is on this host.

    Args:
        peer: Such as ``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``, or ``unix:...``.
    """
    family, _, address = peer.partition(":")
    if family == "unix":
        return True
    host = address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return is_loopback(host)
