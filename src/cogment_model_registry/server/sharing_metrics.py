"""The metrics of a server that shares its catalog."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage


class SharingMetrics(Collector):
    """Turns the state of what servers share into metrics. All of it is plain numbers, which any thread may read.

    Args:
        namespace: What the names begin with.
        shared: What they share.
    """

    def __init__(self, namespace: str, shared: "SharedStorage") -> None:
        self._namespace = namespace
        self._shared = shared

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        catalog, membership = self._shared.catalog, self._shared.membership
        for name, text, value in (
            ("servers", "Servers with a lease, this one included, as this one sees them.", membership.servers),
            ("leader", "Whether this server applies rules of retention for all servers.", int(membership.is_leader)),
            ("catalog_connections", "Connections to PostgreSQL, without the one that listens.", catalog.pool_size),
            ("catalog_connections_in_use", "Those of them that are in use.", catalog.pool_in_use),
            ("catalog_listening", "Whether changes of other servers arrive.", int(catalog.is_listening)),
        ):
            yield GaugeMetricFamily(f"{self._namespace}_{name}", text, value=value)
        for name, text, count in (
            ("leases_lost", "Leases of this server that others removed.", membership.leases_lost),
            ("leases_removed", "Leases of others that this server removed.", membership.leases_removed),
        ):
            yield CounterMetricFamily(f"{self._namespace}_{name}", text, value=count)
