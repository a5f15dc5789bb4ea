"""The calls of the blocking client for what people decide about models."""

from collections.abc import Iterable, Mapping
from typing import SupportsIndex

from cogment_model_registry.client.blocking_client import BlockingClient
from cogment_model_registry.client.signatures import TrustedKeys
from cogment_model_registry.records.history import HISTORY_LIMIT, HistoryEntry
from cogment_model_registry.records.lifecycle import ModelSummary, RetentionReport
from cogment_model_registry.records.retention import RetentionRule, TransientShare


class ModelMethods(BlockingClient):
    """What is found out and decided about models; a part of `ModelRegistry`."""

    def describe_model(self, model_id: str, *, timeout: float | None = None) -> ModelSummary:
        """Return a model with its tags, aliases, rules of retention, share and counts.

        Args:
            model_id: The model.
            timeout: How many seconds it may take.

        Raises:
            NotFoundError: It does not exist.
        """
        return self._run(lambda core: core.models.describe_model(model_id, timeout))

    def find_models(
        self,
        filter: str = "",  # noqa: A002 # what the server calls it
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> list[ModelSummary]:
        """Return the models that a filter accepts, ordered by id.

        Args:
            filter: Such as ``tags.team = robots AND versions > 0``; empty for all models.
            limit: The most models to return; None for all.
            timeout: How many seconds it may take.

        Raises:
            InvalidError: The filter is malformed; the message points at the position.
        """
        return self._run(lambda core: core.models.find_models(filter, limit, timeout))

    def update_model(
        self,
        model_id: str,
        *,
        tags: Mapping[str, str | None],
        expected: int | None = None,
        timeout: float | None = None,
    ) -> ModelSummary:
        """Change tags of a model, durably.

        Args:
            model_id: The model.
            tags: Tags to set; None removes one.
            expected: The revision that the model must have now; None for any.
            timeout: How many seconds it may take.

        Returns:
            The model, with its new revision.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: The tags are too large.
            NotFoundError: It does not exist.
        """
        return self._run(lambda core: core.models.update_model(model_id, tags, expected, timeout))

    def set_retention(
        self,
        model_id: str,
        rules: Iterable[RetentionRule],
        *,
        expected: int | None = None,
        timeout: float | None = None,
    ) -> ModelSummary:
        """Replace the rules that keep and delete a model's versions, durably. The server applies them automatically.

        Args:
            model_id: The model.
            rules: The rules; none at all to keep every version.
            expected: The revision that the model must have now; None for any.
            timeout: How many seconds it may take.

        Returns:
            The model, with its new revision.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: A rule contradicts itself, or its filter is malformed; the message names it.
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.models.set_retention(model_id, rules, expected, timeout))

    def set_share(
        self, model_id: str, share: TransientShare, *, expected: int | None = None, timeout: float | None = None
    ) -> ModelSummary:
        """Bound what a model takes of the transient store, or reserve some of it; at once, and durably.

        Args:
            model_id: The model.
            share: The share; ``TransientShare()`` for none of its own.
            expected: The revision that the model must have now; None for any.
            timeout: How many seconds it may take.

        Returns:
            The model, with its new revision.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: The share contradicts itself.
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.models.set_share(model_id, share, expected, timeout))

    def set_signers(
        self, model_id: str, keys: TrustedKeys, *, expected: int | None = None, timeout: float | None = None
    ) -> ModelSummary:
        """Replace the keys of which one must have signed each new version of a model, durably.

        From then on the server refuses to create other versions, and to promote other transient ones; what is archived
        stays.

        Args:
            model_id: The model.
            keys: The public keys, as `retrieve` takes them to verify; none at all to demand no signatures.
            expected: The revision that the model must have now; None for any.
            timeout: How many seconds it may take.

        Returns:
            The model, with its new revision.

        Raises:
            ConflictError: It has another revision than was expected.
            InvalidError: A key is not an Ed25519 key in PEM, or there are too many.
            NotFoundError: The model does not exist.
            PreconditionError: The server cannot check signatures, since it lacks the package cryptography.
            OSError: The file of a key cannot be read.
        """
        return self._run(lambda core: core.models.set_signers(model_id, keys, expected, timeout))

    def apply_retention(
        self,
        model_id: str | None = None,
        *,
        dry_run: bool = False,
        rules: Iterable[RetentionRule] | None = None,
        timeout: float | None = None,
    ) -> RetentionReport:
        """Delete the versions that the rules of a model do not keep, or find out which those are.

        Args:
            model_id: The model; None for all models that have rules.
            dry_run: Whether to delete nothing.
            rules: Rules to try instead of those of the model, in a dry run.
            timeout: How many seconds it may take; an hour if None.

        Returns:
            What happens to each version, and why.

        Raises:
            InvalidError: A rule contradicts itself, or rules were given without `dry_run`.
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.models.apply_retention(model_id, rules, timeout, dry_run=dry_run))

    def history(
        self,
        model_id: str,
        *,
        alias: str | None = None,
        since_ns: SupportsIndex | None = None,
        limit: int | None = HISTORY_LIMIT,
        timeout: float | None = None,
    ) -> list[HistoryEntry]:
        """Return who changed what of a model, newest first, as the audit log of the server has it.

        Needs the scope ``admin`` for the model, which need not exist any more.

        Args:
            model_id: The model.
            alias: Only changes of this alias; None for all.
            since_ns: Only changes from this time on, in nanoseconds since the Unix epoch; None for all.
            limit: The most changes to return; None for all.
            timeout: How many seconds it may take.

        Raises:
            NotFoundError: The model does not exist, and the audit log has no such changes of it.
            PermissionDeniedError: The scope is missing.
            PreconditionError: The server keeps no audit log.
        """
        return self._run(lambda core: core.models.history(model_id, alias, since_ns, limit, timeout))
