"""The leases of servers, and what they hold.

A server takes a lease at its start, and lets it beat. Another one that has seen no beat for some time removes it, with
the transient versions that no other server has: no clocks are compared, and while PostgreSQL is away, nobody removes
anything. A server that finds its lease gone takes another one.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.core import Core
from cogment_model_registry.storage.postgres.pending import Pending


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a server.

    Attributes:
        server: Its number, which no other lease ever has.
        endpoint: Where the server is reached by others.
        beat: Grows while the server is alive.
    """

    server: int
    endpoint: str
    beat: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A server that has the bytes of a transient version.

    Attributes:
        server: The number of its lease.
        endpoint: Where it is reached.
    """

    server: int
    endpoint: str


class Resolution:
    """A pending change that is being resolved, while nobody else changes the model.

    Attributes:
        pending: The change.
    """

    def __init__(self, pending: Pending) -> None:
        self.pending = pending
        self.is_finished = False

    def finish(self) -> None:
        """Let the rows of what was to be removed go, since the archive has not got all of it any more."""
        self.is_finished = True


class Leases:
    """The leases. Made by `PostgresCatalog`.

    All methods raise `UnavailableError` while PostgreSQL does not answer.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def server(self) -> int:
        """The number of this server's lease; 0 for none."""
        return self._core.server

    async def take(self, endpoint: str) -> int:
        """Take a lease; return its number. What the last lease of this server held is not held by this one."""
        raise NotImplementedError

    async def beat(self) -> int | None:
        """Let the lease of this server beat; return the generation of PostgreSQL's transient rows.

        The generation is another number after a crash of PostgreSQL, which empties its transient rows: then `announce`.

        Returns:
            The generation, or None when the lease is gone: then the bytes of all transient versions are of no use any
            more, and `take` takes a new lease.
        """
        raise NotImplementedError

    async def servers(self) -> list[Lease]:
        """Return all leases."""
        raise NotImplementedError

    async def remove(self, server: int) -> None:
        """Remove a lease with what it holds, its own or that of a server that is gone.

        Transient versions that no other server has are lost, with the reason ``server gone``. Changes of that server
        that are under way fail; one that has been entered is waited for, for as long as a frozen server keeps its lock.
        """
        raise NotImplementedError

    async def locate(self, info: VersionInfo) -> list[Holder]:
        """Return the other servers that have the bytes of a transient version; none if it does not exist any more."""
        raise NotImplementedError

    async def held_numbers(self, server: int) -> dict[str, list[int]]:
        """Return the transient versions that a server has: their numbers by model."""
        raise NotImplementedError

    async def announce(self) -> list[VersionInfo]:
        """Make the versions that this server has visible again, after a crash of PostgreSQL.

        Returns:
            Those that were deleted, or archived, or whose model is gone, on any server: to be freed.
        """
        raise NotImplementedError

    async def unresolved(self) -> list[Pending]:
        """Return changes of servers that are gone, and those of this one whose outcome was not clear or that failed."""
        raise NotImplementedError

    @asynccontextmanager
    async def resolving(self, pending: Pending) -> AsyncGenerator[Resolution | None, None]:
        """Return the change that resolves a pending one, in which nobody else changes the model; see `pending`.

        It yields None when there is nothing to resolve any more. Otherwise, of a version that was to be stored or
        promoted, what the archive has is to be removed before it is left. Of one, or of a model, that was to be
        removed: if the archive has it still whole, nothing is to be done; otherwise the rest is to be removed, and
        `Resolution.finish` to be called.
        """
        raise NotImplementedError
        yield None

    async def prune(self) -> None:
        """Remove what is too old: deleted versions and ended models after an hour, requests after a day."""
        raise NotImplementedError
