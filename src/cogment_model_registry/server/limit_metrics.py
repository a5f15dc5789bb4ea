"""The metrics of the limits per caller. They name no callers, of which there may be any number."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cogment_model_registry.serving.caller_limits import CallerLimits


class LimitMetrics(Collector):
    """Turns what limits count into metrics. They are plain numbers, which any thread may read.

    Args:
        namespace: What the names begin with.
        limits: The limits.
    """

    def __init__(self, namespace: str, limits: CallerLimits) -> None:
        self._namespace = namespace
        self._limits = limits

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        text = "Calls that were refused since their caller was over a limit."
        refused = CounterMetricFamily(f"{self._namespace}_limited_calls", text, labels=["limit"])
        for limit, count in self._limits.refused.items():
            refused.add_metric([limit], count)
        yield refused
        text = "How long streams waited since their caller was over its limit of bytes."
        yield CounterMetricFamily(f"{self._namespace}_slowed_seconds", text, value=self._limits.slowed_seconds)
        text = "Callers of which the limits keep something."
        yield GaugeMetricFamily(f"{self._namespace}_limited_callers", text, value=self._limits.callers)
