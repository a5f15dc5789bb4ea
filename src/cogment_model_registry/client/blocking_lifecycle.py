"""The calls of the blocking client for versions that exist."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cogment_model_registry.client.arguments import LATEST, SupportsItem
from cogment_model_registry.client.blocking_client import BlockingClient
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.records.lifecycle import Alias, Version

if TYPE_CHECKING:
    pass  # from Python 3.11 on


class LifecycleMethods(BlockingClient):
    """What is done with versions that exist; a part of `ModelRegistry`."""

    def describe_version(self, model_id: str, version: Key = LATEST, *, timeout: float | None = None) -> Version:
        """Return a version with its tags, metrics and aliases.

        Args:
            model_id: The model.
            version: Its number, -1 for the latest, -2 for the one before; or an alias.
            timeout: How many seconds it may take.

        Raises:
            NotFoundError: The model, the version or the alias does not exist.
        """
        return self._run(lambda core: core.lifecycle.describe_version(model_id, version, timeout))

    def find_versions(
        self,
        model_id: str | None = None,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        order_by: str = "",
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[Version]:
        """Return the versions that a filter accepts.

        Args:
            model_id: The model; None for all models.
            filter: Such as ``metrics.return > 480 AND NOT tags:broken``; empty for all versions.
            order_by: Such as ``metrics.return desc``; by number if empty.
            limit: The most versions to return; None for all.
            timeout: How many seconds it may take.

        Raises:
            InvalidError: The filter or the order is malformed; the message points at the position.
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.lifecycle.find_versions(model_id, filter, order_by, limit, timeout))

    def update_version(
        self,
        model_id: str,
        version: Key,
        *,
        tags: Mapping[str, str | None] | None = None,
        metrics: Mapping[str, float | SupportsItem | None] | None = None,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> Version:
        """Set tags and metrics of a version, those that are given; durable on return if it is archived.

        Args:
            model_id: The model.
            version: Its number, -1 for the latest; or an alias.
            tags: Texts by name; None removes a tag.
            metrics: Finite numbers by name; None removes a metric.
            expected: The revision that the version must have now; None for any.
            timeout: How many seconds it may take.

        Returns:
            The version as it is now.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: A metric is not finite, or there is too much.
            NotFoundError: The model, the version or the alias does not exist.
        """
        return self._run(
            lambda core: core.lifecycle.update_version(
                model_id, version, timeout, tags=tags or {}, metrics=metrics or {}, expected=expected
            )
        )

    def promote(
        self, model_id: str, version: Key, *, alias: str | None = None, timeout: float | None = None
    ) -> Version:
        """Make a transient version archived, durably on return; does nothing with an archived one.

        Its bytes do not move to the client. Number, hash and time stay, and it is visible at every moment.

        Args:
            model_id: The model.
            version: Its number, -1 for the latest; or an alias.
            alias: An alias to point to it.
            timeout: How many seconds it may take; an hour by default.

        Returns:
            The version as it is now.

        Raises:
            NotFoundError: The model or the version does not exist, or it was evicted.
            TooLargeError: The archive has no space left.
        """
        return self._run(lambda core: core.lifecycle.promote(model_id, version, alias, timeout))

    def delete_version(self, model_id: str, version: Key, *, force: bool = False, timeout: float | None = None) -> None:
        """Delete a version, durably. Its number is never given again; retrievals in progress continue.

        Args:
            model_id: The model.
            version: Its number, -1 for the latest; or an alias.
            force: Whether to remove the aliases that point to it too.
            timeout: How many seconds it may take.

        Raises:
            NotFoundError: The model, the version or the alias does not exist.
            PreconditionError: An alias points to it, and `force` is false.
            ModelRegistryError: With `may_be_done` when it is not known whether it was done; then it is not repeated.
        """
        self._run(lambda core: core.lifecycle.delete_version(model_id, version, timeout, force=force))

    def aliases(self, model_id: str, *, timeout: float | None = None) -> dict[str, Alias]:
        """Return the aliases of a model by name.

        Raises:
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.lifecycle.aliases(model_id, timeout))

    def set_alias(
        self,
        model_id: str,
        alias: str,
        version: Key,
        *,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> Alias:
        """Point an alias to a version, atomically and durably; a transient version is promoted first.

        Args:
            model_id: The model.
            alias: The alias, which obeys the rules of model ids; ``latest`` and numbers are none.
            version: The version's number, -1 for the latest; or another alias.
            expected: The revision that the alias must have now, 0 if it must not exist; None for any.
            timeout: How many seconds it may take; an hour by default.

        Returns:
            The alias as it is now. To undo the change, set it back with this revision expected.

        Raises:
            ConflictError: The alias has another revision than was expected.
            NotFoundError: The model or the version does not exist.
            ModelRegistryError: With `may_be_done` when it is not known whether it was done; then it is not repeated.
        """
        return self._run(lambda core: core.lifecycle.set_alias(model_id, alias, version, expected, timeout))

    def remove_alias(
        self, model_id: str, alias: str, *, expected: int | None = None, timeout: float | None = None
    ) -> None:
        """Remove an alias of a model, durably.

        Args:
            model_id: The model.
            alias: The alias.
            expected: The revision that the alias must have now; None for any.
            timeout: How many seconds it may take.

        Raises:
            ConflictError: The alias has another revision than was expected.
            NotFoundError: The model or the alias does not exist.
            ModelRegistryError: With `may_be_done` when it is not known whether it was done; then it is not repeated.
        """
        self._run(lambda core: core.lifecycle.remove_alias(model_id, alias, expected, timeout))
