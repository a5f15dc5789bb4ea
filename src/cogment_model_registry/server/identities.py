"""Who makes a call: the holder of a token or of a certificate that was granted something, or somebody anonymous."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache

import structlog

from cogment_model_registry.errors import ModelRegistryError, UnauthenticatedError
from cogment_model_registry.records.access import Grant, GrantKind, Scope, identity_of
from cogment_model_registry.records.addresses import is_loopback
from cogment_model_registry.registry.access import Caller
from cogment_model_registry.server.needs import NEEDS
from cogment_model_registry.serving.calls import Call

_log = structlog.stdlib.get_logger(__name__)

_REFRESH_SECONDS = 1.0
"""How soon a grant that was revoked is noticed."""

_LOOK_SECONDS = 0.1
"""The shortest time between two looks for a token that is not known, however many callers have such tokens."""

_HEADER = "authorization"
_SCHEME = "bearer "

_INVALID = "the token is not valid: it is unknown, was revoked, or has expired"

_READER = Caller(
    "a caller without a token",
    [Scope("read")],
    advice="; it may only read",
    is_named=False,
)
_ANYBODY = Caller("a caller without a token", [Scope("admin")], is_named=False)


class Identities:
    """Finds out who makes a call, and refuses what they may not do.

    Args:
        anonymous: What callers may do who do not say who they are: ``everything``, ``read``, ``nothing``, or ``auto``
            for everything from this host, and reading from elsewhere.
        read_grants: Returns all grants.
        certificate_names: Returns the verified names of the certificate with which a call came.
        verify: Returns the caller that a token of an issuer stands for, by the grants for subjects; None without one.
        now_ns: Nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        anonymous: str,
        read_grants: Callable[[], Awaitable[Sequence[Grant]]],
        certificate_names: Callable[[Call], Sequence[str]] = lambda _: (),
        verify: Callable[[str, Mapping[str, Caller]], Caller] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._anonymous = anonymous
        self._read_grants = read_grants
        self._certificate_names = certificate_names
        self._verify = verify
        self._now_ns = now_ns
        self._grants: dict[Grant, Caller] = {}
        self._callers: dict[GrantKind, dict[str, Caller]] = {"token": {}, "certificate": {}, "subject": {}}
        self._looking: asyncio.Task[None] | None = None
        self._looked = float("-inf")

    # The grants.

    async def run(self) -> None:
        """Follow the grants, until it is cancelled."""
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
        for grant in self._grants.keys() - grants:
            self._grants.pop(grant).is_revoked = True
            _log.info("token revoked", name=grant.name)
        for grant in grants - self._grants.keys():
            self._grants[grant] = Caller(grant.name, grant.scopes, expires_ns=grant.expires_ns)
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
        token = _token(call)
        if token is None:
            return self._without_token(call)
        if self._verify is not None and token.count(".") == 2:
            return self._verify(token, self._callers["subject"])
        caller = self._callers["token"].get(identity_of(token))
        if caller is not None:
            caller.check_valid(self._now_ns())
        return caller

    async def look_up(self, call: Call) -> Caller:
        """Return who makes a call whose token was not known, after a look whether it is now."""
        # A look that is under way may have missed it.
        for _ in range(1 if self._looking is None else 2):
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(self._note_look)
            await asyncio.shield(self._looking)
            caller = self.identify(call)
            if caller is not None:
                return caller
        raise UnauthenticatedError(_INVALID)

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
            raise UnauthenticatedError("this server needs a token, as the metadata authorization: Bearer TOKEN")
        return _READER


def _token(call: Call) -> str | None:
    """Return the token that came with a call; None without one.

    Raises:
        UnauthenticatedError: What came is malformed, or there are two.
    """
    values = [value for name, value in call.context.invocation_metadata() or () if name == _HEADER]
    if not values:
        return None
    [value, *others] = values
    if others or not isinstance(value, str) or not value.lower().startswith(_SCHEME):
        raise UnauthenticatedError("the metadata authorization is malformed; it must be one Bearer TOKEN")
    return value[len(_SCHEME) :].strip()


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
