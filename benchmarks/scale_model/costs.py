"""What the servers, PostgreSQL and the object store cost in a month, in the quantities that are paid for."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.scale_model.figures import Figures
from benchmarks.scale_model.inputs import GIB, Inputs
from benchmarks.scale_model.keeping import MONTH_SECONDS, room
from benchmarks.scale_model.spreading import Spread

HOURS = MONTH_SECONDS / 3600


@dataclass(frozen=True, slots=True)
class Cost:
    """One thing that is paid for.

    Attributes:
        what: What it is.
        quantity: How much of it a month takes.
        unit: The unit of `quantity`.
        price: The price of one unit; 0 if the reader gave none.
    """

    what: str
    quantity: float
    unit: str
    price: float

    @property
    def amount(self) -> float:
        """What a month costs."""
        return self.quantity * self.price


def costs(inputs: Inputs, servers: Spread, figures: Figures) -> Iterator[Cost]:
    """Yield what a month costs with some servers."""
    prices, kept, work = inputs.prices, inputs.kept, inputs.work
    taken = room(kept, figures)
    sent_gib = work.fetches * work.publishing_models * work.version_gib
    writes = kept.stores_per_second * taken.objects_per_version * MONTH_SECONDS
    yield Cost(f"{servers.servers:,} servers", servers.servers * HOURS, "hours", prices.server_hour)
    yield Cost("bytes to actors", sent_gib * MONTH_SECONDS / work.interval_seconds, "GiB", prices.network_gib)
    yield Cost("PostgreSQL", HOURS, "hours", prices.database_hour)
    yield Cost("disk of PostgreSQL", taken.database_bytes / GIB, "GiB-months", prices.database_gib_month)
    yield Cost("bytes in the object store", taken.stored_bytes / GIB, "GiB-months", prices.stored_gib_month)
    yield Cost("requests that write objects", writes / 1000, "thousands", prices.thousand_writes)
