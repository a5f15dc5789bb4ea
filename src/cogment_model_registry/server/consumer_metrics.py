"""The metrics of consumers: how many there are, and how far behind. Only models that have consumers have series."""

import asyncio
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cogment_model_registry.records.consumers import STATES
from cogment_model_registry.registry.consumers import Consumers


class ConsumerMetrics(Collector):
    """Turns consumers into metrics.

    Args:
        namespace: What the names begin with.
        consumers: The consumers.
        loop: The event loop on which they live.
        timeout_seconds: How long a scrape waits for it.
    """

    def __init__(
        self, namespace: str, consumers: Consumers, loop: asyncio.AbstractEventLoop, timeout_seconds: float
    ) -> None:
        self._namespace = namespace
        self._consumers = consumers
        self._loop = loop
        self._timeout_seconds = timeout_seconds

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape.

        Raises:
            TimeoutError: The server is too busy to answer; the scrape fails.
        """
        asked = asyncio.run_coroutine_threadsafe(self._consumers.summarize(), self._loop)
        summaries = asked.result(self._timeout_seconds)
        counts = self._family("consumers", "Consumers that report which version they run.", "model_id", "state")
        versions = self._family("consumer_versions_behind", "Largest lag of a consumer in versions.", "model_id")
        seconds = self._family("consumer_seconds_behind", "Largest lag of a consumer in seconds.", "model_id")
        for each in summaries:
            for state in STATES:
                counts.add_metric([each.model_id, state], each.states.get(state, 0))
            if each.versions_behind is not None and each.seconds_behind is not None:
                versions.add_metric([each.model_id], each.versions_behind)
                seconds.add_metric([each.model_id], each.seconds_behind)
        held = self._family("consumers_held_bytes", "Bytes of the versions that consumers hold.")
        held.add_metric([], self._consumers.held_bytes)
        yield from (counts, versions, seconds, held)

    def _family(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._namespace}_{name}", text, labels=labels)
