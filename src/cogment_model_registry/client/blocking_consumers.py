"""The calls of the blocking client for consumers."""

from collections.abc import Iterable, Mapping
from typing import SupportsIndex

from cogment_model_registry.client.blocking_client import BlockingClient
from cogment_model_registry.client.consumers import checked_report
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.records.consumers import TTL_DEFAULT_SECONDS, Consumer


class ConsumerMethods(BlockingClient):
    """Who runs which version; a part of `ModelRegistry`."""

    def consumers(
        self,
        model_id: str | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[Consumer]:
        """Return who runs which version, ordered by model and id.

        Args:
            model_id: The model; None for all models.
            filter: Such as ``state = active AND versions_behind > 2``; empty for all consumers.
            limit: The most consumers to return; None for all.
            timeout: How many seconds it may take.

        Raises:
            InvalidError: The filter is malformed; the message points at the position.
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.consumers.find(model_id, filter, limit, timeout))

    def report_consumer(
        self,
        model_id: str,
        consumer_id: str,
        *,
        version: SupportsIndex | None = None,
        state: str = "active",
        error: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_seconds: SupportsIndex = TTL_DEFAULT_SECONDS,
        held_versions: Iterable[SupportsIndex] = (),
        timeout: float | None = None,
    ) -> Consumer:
        """Say which version of a model a process runs; `track` does so automatically.

        Args:
            model_id: The model.
            consumer_id: The name of the process, which no other consumer of the model has.
            version: The number of the version that it runs; None for none yet.
            state: ``loading``, ``active``, ``failed``, ``gone`` or ``unknown``.
            error: Why it failed.
            labels: Texts by name, such as its host.
            ttl_seconds: It is gone if it does not report again within this time.
            held_versions: Versions that are neither evicted nor deleted while it is not gone.
            timeout: How many seconds it may take.

        Returns:
            The consumer, with its lag.

        Raises:
            InvalidError: The report breaks a rule.
            NotFoundError: The model, or a version to be held, does not exist.
            TooLargeError: There are too many consumers, or they hold too much.
        """
        report = checked_report(
            model_id,
            consumer_id,
            version=version,
            state=state,
            error=error,
            labels=labels,
            ttl_seconds=ttl_seconds,
            held_versions=held_versions,
        )
        return self._run(lambda core: core.consumers.report(report, timeout))

    def wait_for_consumers(
        self,
        model_id: str,
        version: Key | None = None,
        *,
        count: SupportsIndex | None = None,
        max_versions_behind: SupportsIndex | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        timeout: float | None = None,
    ) -> list[Consumer]:
        """Wait until consumers of a model run a version, or one that is new enough.

        Args:
            model_id: The model.
            version: The version that they must run, or a later one; None for any.
            count: How many must; None for all that are not gone, of which there must be one at least.
            max_versions_behind: How many newer versions there may be at most; None for any number.
            filter: Of which consumers, such as ``labels.role = actor``; empty for all.
            timeout: How many seconds to wait.

        Returns:
            The consumers, as many as were waited for.

        Raises:
            TimedOutError: They did not in time; the message says how many do, and who does not.
            NotFoundError: The model or the version does not exist.
            InvalidError: The filter is malformed, or neither a version nor `max_versions_behind` is given.
        """
        return self._run(
            lambda core: core.consumers.wait_for(
                model_id, version, timeout, count=count, max_versions_behind=max_versions_behind, accepted=filter
            )
        )
