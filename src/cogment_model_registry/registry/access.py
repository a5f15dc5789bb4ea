"""Who calls, and whether they may: the one place where access is decided."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from cogment_model_registry.errors import PermissionDeniedError, UnauthenticatedError
from cogment_model_registry.records.access import ANY, Need, Scope

INVALID_TOKEN = "the token is not valid: it is unknown, was revoked, or has expired"  # noqa: S105 # a message
"""The error for such a token; it does not say which of these is true, since a stranger may ask."""

_DECISIONS_MAX = 1024
"""How many decisions are kept for a caller, which asks for the same few models all the time."""

_EVERYTHING = Need(("admin",), ANY)
_READ_EVERY = Need(("read",), ANY)

_T = TypeVar("_T")
_Position = TypeVar("_Position")


class Caller:
    """Who makes a call, and what they may do.

    Args:
        name: For the log: the name of a grant, or ``anonymous``.
        scopes: What they may do.
        advice: What to say to those who may not.
        kind: How it showed who it is: the kind of a grant, or ``anonymous``.
        is_named: Whether it has a name of its own.
        identity: What no other caller has; its name if it is not given.
        expires_ns: When it ends, in nanoseconds since the Unix epoch; None for never.
        is_withdrawn: Returns whether what it rests on is no longer valid; None if it rests on nothing else.

    Attributes:
        name: As above.
        kind: As above.
        expires_ns: As above.
        is_named: As above.
        identity: As above.
        is_revoked: Whether it has been taken back.
        may_everything: Whether there is nothing it may not.
        reads_everything: Whether it may see every model.
    """

    __slots__ = (
        "_advice",
        "_decisions",
        "_is_withdrawn",
        "_scopes",
        "expires_ns",
        "identity",
        "is_named",
        "is_revoked",
        "kind",
        "may_everything",
        "name",
        "reads_everything",
    )

    def __init__(
        self,
        name: str,
        scopes: Iterable[Scope],
        *,
        kind: str = "anonymous",
        advice: str = "",
        is_named: bool = True,
        identity: str = "",
        expires_ns: int | None = None,
        is_withdrawn: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.expires_ns = expires_ns
        self.is_named = is_named
        self.identity = identity or name
        self.is_revoked = False
        self._is_withdrawn = is_withdrawn
        self._scopes = tuple(scopes)
        self._advice = advice
        self._decisions: dict[Need, bool] = {}
        self.may_everything = self.may(_EVERYTHING)
        self.reads_everything = self.may(_READ_EVERY)

    def may(self, need: Need) -> bool:
        """Return whether the caller may do what a call needs."""
        decision = self._decisions.get(need)
        if decision is None:
            decision = any(scope.covers(need) for scope in self._scopes)
            if len(self._decisions) >= _DECISIONS_MAX:
                self._decisions.clear()
            self._decisions[need] = decision
        return decision

    def may_read(self, model_id: str) -> bool:
        """Return whether the caller may see a model."""
        return self.reads_everything or self.may(Need(("read",), model_id))

    def require(self, needs: Iterable[Need]) -> None:
        """Refuse what the caller may not do.

        Raises:
            PermissionDeniedError: A scope is missing. The message names it, and nothing that exists.
        """
        for need in needs:
            # A decision that is known needs no call.
            if not (self._decisions.get(need) or self.may(need)):
                raise PermissionDeniedError(f"{self._described} lacks the scope {need}{self._advice}")

    @property
    def _described(self) -> str:
        return f"{self.kind} {self.name}" if self.is_named else self.name

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """What it may do."""
        return self._scopes

    def is_over(self, now_ns: int) -> bool:
        """Return whether its time is over: it was revoked, or has expired.

        Args:
            now_ns: Nanoseconds since the Unix epoch.
        """
        return (
            self.is_revoked
            or (self.expires_ns is not None and now_ns >= self.expires_ns)
            or (self._is_withdrawn is not None and self._is_withdrawn())
        )

    def check_valid(self, now_ns: int) -> None:
        """Refuse a caller whose time is over.

        Args:
            now_ns: Nanoseconds since the Unix epoch.

        Raises:
            UnauthenticatedError: It was revoked, or has expired.
        """
        if self.is_over(now_ns):
            raise UnauthenticatedError(INVALID_TOKEN)


NOBODY = Caller("nobody", (), is_named=False)
"""Whoever makes a call, before it is known who that is."""


async def find_readable(
    caller: Caller,
    find: Callable[[_Position, int], Awaitable[Sequence[_T]]],
    after: _Position,
    limit: int,
    described: Callable[[_T], tuple[str, _Position]],
) -> list[_T]:
    """Return what a search finds of the models that a caller may read: fewer than `limit` only when no more exist.

    Args:
        caller: Who asks.
        find: Returns what follows a position, at most so many; fewer only when no more exist.
        after: Where to begin.
        limit: The most to return.
        described: Returns the model of what was found, and its position.
    """
    if caller.reads_everything:
        return [*await find(after, limit)]
    readable: list[_T] = []
    while len(readable) < limit:
        found = await find(after, limit)
        readable += [each for each in found if caller.may_read(described(each)[0])]
        if len(found) < limit:
            break
        after = described(found[-1])[1]
    return readable[:limit]
