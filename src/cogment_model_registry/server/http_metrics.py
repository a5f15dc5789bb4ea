"""The metrics of the process that serves HTTP, which reports every second what it has counted."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cogment_model_registry.server.call_metrics import histogram
from cogment_model_registry.wire.http_reports import Counts, Report, State

_LOGINS = ("accepted", "refused", "limited")


class HttpMetrics(Collector):
    """Adds up the reports of the process, also over its restarts.

    Only the event loop changes it.

    Args:
        namespace: What the names of the metrics begin with.
    """

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{namespace}_http"
        self._operations: dict[str, Counts] = {}
        self._logins = dict.fromkeys(_LOGINS, 0)
        self._state = State()
        self._restarts = 0

    def add(self, report: Report) -> None:
        """Add a report."""
        for operation, counts in report.operations.items():
            totals = self._operations.get(operation)
            if totals is None:
                self._operations[operation] = counts
            else:
                totals.add(counts)
        for result, count in report.logins.items():
            self._logins[result] = self._logins.get(result, 0) + count
        self._state = report.state

    def note_restart(self) -> None:
        """Record that the process is started again; it has no connections and no sessions then."""
        self._restarts += 1
        self._state = State()

    def describe(self) -> Sequence[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        operations = sorted(self._operations.items())
        yield self._requests(operations)
        yield self._durations(operations)
        for name, text in (
            ("received_bytes", "Bytes of bodies of requests over HTTP."),
            ("sent_bytes", "Bytes of bodies of answers over HTTP."),
        ):
            values = {operation: getattr(counts, name) for operation, counts in operations}
            yield self._counter(name, text, "operation", values)
        yield self._counter("logins", "Logins of browsers, by result.", "result", self._logins)
        state = self._state
        yield self._gauge("requests_in_progress", "Requests over HTTP in progress.", state.requests)
        yield self._gauge("streams", "Streams of events over HTTP that are open.", state.streams)
        yield self._gauge("connections", "Connections of HTTP clients.", state.connections)
        yield self._gauge("sessions", "Sessions of browsers.", state.sessions)
        text = "How often the process that serves HTTP was started again."
        yield CounterMetricFamily(f"{self._prefix}_restarts", text, value=self._restarts)

    def _requests(self, operations: Sequence[tuple[str, Counts]]) -> Metric:
        text = "Answered requests over HTTP."
        family = CounterMetricFamily(f"{self._prefix}_requests", text, labels=["operation", "status"])
        for operation, counts in operations:
            for status, count in sorted(counts.by_status.items()):
                family.add_metric([operation, status], count)
        return family

    def _durations(self, operations: Sequence[tuple[str, Counts]]) -> Metric:
        text = "Duration of requests over HTTP, until the last byte of the answer was sent."
        durations = [(name, counts.in_bucket, counts.seconds) for name, counts in operations if counts.by_status]
        return histogram(f"{self._prefix}_request_seconds", text, "operation", durations)

    def _counter(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(f"{self._prefix}_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"{self._prefix}_{name}", text, value=value)
