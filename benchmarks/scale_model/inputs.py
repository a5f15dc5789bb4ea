"""What the reader says: the work, the machines, what is kept, and the prices. Each is an option of the command."""

from dataclasses import dataclass, field

GIB = 2**30


def given(default: float, what: str) -> float:
    """Return the field of an input, with its description."""
    value: float = field(default=default, metadata={"what": what})
    return value


@dataclass(frozen=True, slots=True)
class Work:
    """What is published and fetched."""

    actors: float = given(10_000, "actors that fetch every version")
    version_gib: float = given(1.0, "size of a version, in GiB")
    interval_seconds: float = given(60.0, "time between two versions of a model, in seconds")
    publishing_models: float = given(1, "models that publish at that pace, each to all actors")
    actors_per_fetch: float = given(1, "actors of a host that share one fetch")

    @property
    def version_bytes(self) -> float:
        """The size of a version."""
        return self.version_gib * GIB

    @property
    def fetches(self) -> float:
        """How often each version is fetched."""
        return max(1.0, self.actors / self.actors_per_fetch)


@dataclass(frozen=True, slots=True)
class Machines:
    """What each server runs on."""

    cores: float = given(4.0, "cores for a server process; it keeps no more busy than was measured")
    network_gbit: float = given(100.0, "network of a server, in Gbit/s and in each direction")
    memory_gib: float = given(64.0, "memory of a server, in GiB")
    usable: float = given(0.7, "part of cores, network and memory that may be planned with")
    database_cores: float = given(16, "cores of PostgreSQL")

    @property
    def network_bytes(self) -> float:
        """The bytes a second that may be planned with."""
        return self.network_gbit * 1e9 / 8 * self.usable


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept for good."""

    models: float = given(1e6, "models that exist")
    versions: float = given(1e8, "archived versions that exist")
    archived_mib: float = given(10.0, "size of an archived version, in MiB")
    stores_per_second: float = given(40.0, "versions that are stored a second")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in any currency; 0 leaves a price out."""

    server_hour: float = given(0.0, "price of a server for an hour")
    database_hour: float = given(0.0, "price of PostgreSQL for an hour, with its standby")
    database_gib_month: float = given(0.0, "price of a GiB of PostgreSQL's disk for a month")
    stored_gib_month: float = given(0.0, "price of a GiB in the object store for a month")
    thousand_writes: float = given(0.0, "price of 1,000 requests that write objects")
    network_gib: float = given(0.0, "price of a GiB that a server sends")


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that the reader says."""

    work: Work = field(default_factory=Work)
    machines: Machines = field(default_factory=Machines)
    kept: Kept = field(default_factory=Kept)
    prices: Prices = field(default_factory=Prices)


INPUTS: tuple[type[Work | Machines | Kept | Prices], ...] = (Work, Machines, Kept, Prices)
"""The parts of the inputs, in the order of `Inputs`."""
