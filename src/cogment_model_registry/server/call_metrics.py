"""Counts of finished calls, for Prometheus.

They are plain numbers that only the event loop changes, and become metrics when they are scraped: the library's own
counters lock each change, which took a tenth of the time of a small call.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cogment_model_registry.serving.calls import Call
from cogment_model_registry.system.durations import BUCKETS, count_duration, no_durations


@dataclass(eq=False, slots=True)
class _Totals:
    """What the finished calls of a method took together; `in_bucket` counts those of each bucket alone."""

    seconds: float = 0.0
    received_bytes: int = 0
    received_messages: int = 0
    sent_bytes: int = 0
    sent_messages: int = 0
    in_bucket: list[int] = field(default_factory=no_durations)
    by_status: dict[str, int] = field(default_factory=dict)


class CallMetrics(Collector):
    """The metrics of finished calls.

    Args:
        namespace: What the names of the metrics begin with.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._methods: dict[str, _Totals] = {}

    def observe(self, call: Call, status: str, seconds: float) -> None:
        """Record a finished call."""
        totals = self._methods.get(call.method)
        if totals is None:
            totals = self._methods[call.method] = _Totals()
        totals.by_status[status] = totals.by_status.get(status, 0) + 1
        count_duration(totals.in_bucket, seconds)
        totals.seconds += seconds
        totals.received_bytes += call.received_bytes
        totals.received_messages += call.received_messages
        totals.sent_bytes += call.sent_bytes
        totals.sent_messages += call.sent_messages

    def describe(self) -> Sequence[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        methods = sorted(self._methods.items())
        calls = self._counter("calls", "Finished calls.", ["method", "status"])
        for method, totals in methods:
            for status, count in sorted(totals.by_status.items()):
                calls.add_metric([method, status], count)
        yield calls
        text = "Duration of finished calls, streams from first to last."
        durations = [(method, totals.in_bucket, totals.seconds) for method, totals in methods]
        yield histogram(f"{self._namespace}_call_seconds", text, "method", durations)
        for name, text in (
            ("received_bytes", "Bytes of request messages."),
            ("received_messages", "Request messages."),
            ("sent_bytes", "Bytes of reply messages."),
            ("sent_messages", "Reply messages."),
        ):
            family = self._counter(name, text, ["method"])
            for method, totals in methods:
                family.add_metric([method], getattr(totals, name))
            yield family

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
        return CounterMetricFamily(f"{self._namespace}_{name}", text, labels=labels)


def histogram(name: str, text: str, label: str, durations: Iterable[tuple[str, Sequence[int], float]]) -> Metric:
    """Return the metric of durations.

    Args:
        name: Its name.
        text: Its description.
        label: The name of its label.
        durations: For each value of the label, the counts for each bucket alone, and the sum in seconds.
    """
    family = HistogramMetricFamily(name, text, labels=[label])
    bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
    for value, in_bucket, seconds in durations:
        family.add_metric([value], [*zip(bounds, map(float, accumulate(in_bucket)), strict=True)], seconds)
    return family
