"""How long the servers take to bring one version to every actor, and what keeps them from being faster.

Actors are spread evenly over the servers, and the servers share the models that publish.

A *published* version is sent by the server that received it, to its own actors and once to every other server; those
send it on while it arrives. So the first server sends most: its share of the fetches, and one copy for each other
server. The best number of servers is about the root of the fetches: fewer servers have too many actors each, and more
ask too much of the first one.

A *stored* version is read from the object store for each fetch, by whichever server is asked, so twice the servers are
twice as fast.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.scale_model.figures import Figures
from benchmarks.scale_model.inputs import GIB, Machines, Work

_SERVERS_MAX = 2_000


@dataclass(frozen=True, slots=True)
class Spread:
    """How a number of servers bring the versions of one interval to all actors.

    Attributes:
        servers: Their number.
        sent_bytes: What the busiest of them sends.
        processor_seconds: How long its cores are busy with that.
        network_seconds: How long its network is busy with that.
    """

    servers: int
    sent_bytes: float
    processor_seconds: float
    network_seconds: float

    @property
    def seconds(self) -> float:
        """The time until the last actor has the version."""
        return max(self.processor_seconds, self.network_seconds)

    @property
    def limit(self) -> str:
        """What keeps them from being faster."""
        return "processor" if self.processor_seconds >= self.network_seconds else "network"


Route = Callable[[int, Work, Machines, Figures], Spread]
"""A way of versions to actors: what a number of servers makes of the work."""


def cores(machines: Machines, figures: Figures) -> float:
    """Return how many cores of a server may be planned with."""
    return min(machines.cores, figures.send_cores) * machines.usable


def published(servers: int, work: Work, machines: Machines, figures: Figures) -> Spread:
    """Return how servers bring transient versions to all actors."""
    most, least = math.ceil(work.publishing_models / servers), math.floor(work.publishing_models / servers)
    return max(
        (_first(first_of, servers, work, machines, figures) for first_of in (most, least)),
        key=lambda each: each.seconds,
    )


def _first(first_of: int, servers: int, work: Work, machines: Machines, figures: Figures) -> Spread:
    """Return what a server does that is the first one of some models, and one of the others for the rest."""
    sent_gib = work.version_gib * (work.publishing_models * work.fetches / servers + first_of * (servers - 1))
    published_gib = work.version_gib * first_of
    relayed_gib = work.version_gib * (work.publishing_models - first_of)
    seconds = sent_gib * figures.send + published_gib * figures.publish + relayed_gib * figures.relay
    return Spread(
        servers=servers,
        sent_bytes=sent_gib * GIB,
        processor_seconds=seconds / cores(machines, figures),
        network_seconds=max(sent_gib, published_gib + relayed_gib) * GIB / machines.network_bytes,
    )


def stored(servers: int, work: Work, machines: Machines, figures: Figures) -> Spread:
    """Return how servers bring archived versions to all actors."""
    first_of = math.ceil(work.publishing_models / servers)
    sent_gib = work.version_gib * work.publishing_models * work.fetches / servers
    seconds = sent_gib * figures.bucket_read + work.version_gib * first_of * figures.bucket_write
    return Spread(
        servers=servers,
        sent_bytes=sent_gib * GIB,
        processor_seconds=seconds / cores(machines, figures),
        network_seconds=sent_gib * GIB / machines.network_bytes,
    )


def spreads(route: Route, work: Work, machines: Machines, figures: Figures) -> Iterator[Spread]:
    """Yield what each number of servers makes of the work, up to one for every fetch."""
    most = min(_SERVERS_MAX, math.ceil(work.fetches))
    return (route(servers, work, machines, figures) for servers in range(1, most + 1))


def fewest(route: Route, work: Work, machines: Machines, figures: Figures) -> Spread | None:
    """Return the fewest servers that are done before the next version; None if no number of them is."""
    every = spreads(route, work, machines, figures)
    return next((each for each in every if each.seconds <= work.interval_seconds), None)


def fastest(route: Route, work: Work, machines: Machines, figures: Figures) -> Spread:
    """Return the number of servers that is done first."""
    return min(spreads(route, work, machines, figures), key=lambda each: each.seconds)


def memory_bytes(work: Work, servers: int, figures: Figures) -> float:
    """Return the memory that each server needs: for itself, its actors, and three versions of each model.

    One version is the newest, one is being fetched by those that are late, and one arrives.
    """
    actors = work.actors / servers
    versions = 3 * work.version_bytes * work.publishing_models
    return figures.idle * 2**20 + actors * (figures.connection + figures.watcher) * 2**10 + versions
