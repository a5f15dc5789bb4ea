"""The metrics of relays: what a server had to ask other servers for."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from cogment_model_registry.server.relay_sources import RelayCounts


class RelayMetrics(Collector):
    """Turns the counts of relays into metrics. They are plain numbers, which any thread may read.

    Args:
        namespace: What the names begin with.
        counts: The counts.
    """

    def __init__(self, namespace: str, counts: RelayCounts) -> None:
        self._namespace = namespace
        self._counts = counts

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        counts = self._counts
        for name, text, value in (
            ("relays_begun", "Relays of versions from other servers.", counts.begun),
            ("relays_joined", "Retrievals that joined a relay in progress.", counts.joined),
            ("relays_failed", "Relays that no other server completed.", counts.failed),
            ("relays_unkept", "Retrievals from other servers for which no memory was left.", counts.unkept),
            ("relayed_bytes", "Bytes of versions received from other servers.", counts.received_bytes),
        ):
            yield CounterMetricFamily(f"{self._namespace}_{name}", text, value=value)
