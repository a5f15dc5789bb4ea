"""The metrics of the server, for Prometheus. `docs/metrics.md` explains each of them; `monitoring` serves them.

The registry and its storage do not know this module: it is notified of finished calls and of finished work on the
archive, and asks for everything else when it is scraped.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cogment_model_registry._version import __version__
from cogment_model_registry.records.lifecycle import Decision
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.registry import RegistryStatus
from cogment_model_registry.server.audit import AuditLog
from cogment_model_registry.server.call_metrics import CallMetrics
from cogment_model_registry.server.consumer_metrics import ConsumerMetrics
from cogment_model_registry.server.http_metrics import HttpMetrics
from cogment_model_registry.server.limit_metrics import LimitMetrics
from cogment_model_registry.server.registration import State
from cogment_model_registry.server.relay_metrics import RelayMetrics
from cogment_model_registry.server.relay_sources import RelayCounts
from cogment_model_registry.server.sharing_metrics import SharingMetrics
from cogment_model_registry.serving.caller_limits import CallerLimits

if TYPE_CHECKING:
    from cogment_model_registry.server.shared_backend import SharedStorage

_NAMESPACE = "cogment_model_registry"

_STATUS_SECONDS = 5.0
"""How long a scrape waits for the event loop: half of what Prometheus gives a whole scrape by default."""

_FILE_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


# The library would add to each series the time at which it was created, which nobody needs.
disable_created_metrics()  # type: ignore[no-untyped-call] # the library has no types for it


StatusOf: TypeAlias = Callable[[], Coroutine[Any, Any, RegistryStatus]]


class Metrics:
    """The metrics of one server.

    Attributes:
        registry: What a scrape collects.
        observe_call: Records a finished call. To be called on the event loop.
        relays: Counts the relays of versions that other servers hold.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        calls = CallMetrics(_NAMESPACE)
        self.registry.register(calls)
        self.observe_call = calls.observe
        self.relays = RelayCounts()
        self.registry.register(RelayMetrics(_NAMESPACE, self.relays))
        self._archive_seconds = self._histogram(
            "archive_operation_seconds", "Duration of operations on the archive.", ["operation"], _FILE_BUCKETS
        )
        self._query_seconds: Histogram | None = None
        self._sync_seconds = self._histogram("sync_seconds", "Duration of fsync.", ["kind"], _FILE_BUCKETS)

        self._retention_deletions = Counter(
            "retention_deletions",
            "Versions that rules of retention deleted.",
            ["tier"],
            namespace=_NAMESPACE,
            registry=self.registry,
        )
        for tier in ("transient", "archived"):
            self._retention_deletions.labels(tier)

    def _histogram(self, name: str, text: str, labels: list[str], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, namespace=_NAMESPACE, registry=self.registry, buckets=buckets)

    def observe_retention(self, decision: Decision) -> None:
        """Record a version that rules deleted."""
        self._retention_deletions.labels("archived" if decision.version.info.archived else "transient").inc()

    def observe_archive(self, operation: str, seconds: float) -> None:
        """Record a finished operation on the archive. Called from its threads."""
        self._archive_seconds.labels(operation).observe(seconds)

    def observe_query(self, name: str, seconds: float) -> None:
        """Record a finished query of a catalog in PostgreSQL."""
        if self._query_seconds is None:
            text = "Duration of queries of a catalog in PostgreSQL."
            self._query_seconds = self._histogram("query_seconds", text, ["query"], _FILE_BUCKETS)
        self._query_seconds.labels(name).observe(seconds)

    def observe_sync(self, kind: str, seconds: float) -> None:
        """Record a finished fsync of a file or a directory. Called from the archive's threads."""
        self._sync_seconds.labels(kind).observe(seconds)

    def watch(self, status: StatusOf, registration: Callable[[], State]) -> None:
        """Ask for the state of the registry, on the running event loop, and of its registration at each scrape."""
        self.registry.register(_StateCollector(status, registration, asyncio.get_running_loop()))

    def watch_audit(self, audit: AuditLog) -> None:
        """Ask for the state of the audit log at each scrape."""
        self.registry.register(_AuditCollector(audit))

    def watch_consumers(self, consumers: Consumers) -> None:
        """Ask for the consumers, on the running event loop, at each scrape."""
        self.registry.register(ConsumerMetrics(_NAMESPACE, consumers, asyncio.get_running_loop(), _STATUS_SECONDS))

    def watch_sharing(self, shared: "SharedStorage") -> None:
        """Ask for the state of what servers share at each scrape."""
        self.registry.register(SharingMetrics(_NAMESPACE, shared))

    def watch_limits(self, limits: CallerLimits) -> None:
        """Ask what the limits per caller have refused at each scrape."""
        self.registry.register(LimitMetrics(_NAMESPACE, limits))

    def watch_http(self) -> HttpMetrics:
        """Return what counts the requests over HTTP, of which each scrape asks."""
        http = HttpMetrics(_NAMESPACE)
        self.registry.register(http)
        return http

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Ask at each scrape when the certificate of the server expires, in seconds since the Unix epoch."""
        Gauge(
            "certificate_expires_timestamp_seconds",
            "When the certificate of the server expires, in seconds since the Unix epoch.",
            namespace=_NAMESPACE,
            registry=self.registry,
        ).set_function(expires_at)


class _AuditCollector(Collector):
    """Turns the state of the audit log into metrics."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape."""
        for name, text, value in (
            ("audit_lines", "Lines of the audit log that were written.", self._audit.written),
            ("audit_failures", "Lines of the audit log that could not be written at once.", self._audit.failed),
        ):
            family = CounterMetricFamily(f"{_NAMESPACE}_{name}", text)
            family.add_metric([], value)
            yield family
        text = "Whether the audit log works: 0 while it cannot be written, so that changes are refused."
        yield _gauge("audit_usable", text, {}, int(not self._audit.failure))


class _StateCollector(Collector):
    """Turns the state of the registry into metrics."""

    def __init__(
        self,
        status: StatusOf,
        registration: Callable[[], State],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._status = status
        self._registration = registration
        self._loop = loop

    def describe(self) -> list[Metric]:
        """Return nothing: the metrics are reported when they are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Called from the thread of a scrape.

        Raises:
            TimeoutError: The server is too busy to answer; the scrape fails.
        """
        status = asyncio.run_coroutine_threadsafe(self._status(), self._loop).result(_STATUS_SECONDS)
        transient = status.transient
        yield _gauge("info", "The server.", {"version": __version__}, 1)
        yield _gauge("models", "Models that exist.", {}, status.models)
        yield _family(
            "versions",
            "Versions that can be retrieved.",
            "tier",
            {"transient": transient.items, "archived": status.versions - transient.items},
        )
        yield _family(
            "version_bytes",
            "Bytes of versions; transient includes uploads, and removed versions that are being read.",
            "tier",
            {"transient": transient.bytes, "archived": status.archived_bytes},
        )
        evictions = CounterMetricFamily(
            f"{_NAMESPACE}_evictions", "Evicted versions, by the limit that was reached.", labels=["reason"]
        )
        for reason, count in transient.evictions.items():
            evictions.add_metric([reason], count)
        yield evictions
        yield _gauge("budget_bytes", "The limit on the bytes of transient versions.", {}, transient.max_bytes)
        yield _gauge("budget_items", "The limit on the number of transient versions.", {}, transient.max_items)
        text = "Bytes that cannot be evicted: being read, held, or reserved for uploads."
        yield _gauge("held_bytes", text, {}, transient.held_bytes)
        yield _gauge("uploads", "Uploads in progress.", {}, status.uploads)
        yield _gauge("readers", "Retrievals in progress.", {}, status.readers)
        yield _gauge("watchers", "Watchers that wait for new versions.", {}, status.watchers)
        yield _gauge(
            "load", "The load that Status reports: 0 to 254; 255 if the archive is not writable.", {}, status.load
        )
        yield _gauge(
            "archive_usable",
            "Whether the archive works: 0 when it accepts no writes and is not read-only.",
            {},
            int(not status.archive_failure),
        )
        yield _gauge(
            "catalog_usable",
            "Whether the catalog works: 0 when aliases, tags, metrics and rules cannot be changed.",
            {},
            int(not status.catalog_failure),
        )
        state = self._registration()
        yield _family(
            "registration",
            "The registration with the Directory: 1 for the current state.",
            "state",
            {each.value: int(each is state) for each in State},
        )


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"{_NAMESPACE}_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _family(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{_NAMESPACE}_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
