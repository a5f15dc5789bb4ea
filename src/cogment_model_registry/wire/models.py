"""Between the records of models and of retention and the messages of ModelLifecycle."""

from collections.abc import Iterable, Sequence

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Decision, ModelSummary, RetentionReport
from cogment_model_registry.records.retention import (
    NO_SHARE,
    TIERS,
    ModelAnnotations,
    ModelChange,
    RetentionRule,
    TransientShare,
    ordered_signers,
)
from cogment_model_registry.records.signatures import PublicKey, public_key
from cogment_model_registry.wire import convert
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import lifecycle_pb2
from cogment_model_registry.wire.lifecycle import (
    alias_messages,
    aliases_from_messages,
    version_from_message,
    version_message,
)

ModelMessage = lifecycle_pb2.Model
ListModelsRequest = lifecycle_pb2.ListModelsRequest
ListModelsReply = lifecycle_pb2.ListModelsReply
UpdateModelRequest = lifecycle_pb2.UpdateModelRequest
ApplyRetentionRequest = lifecycle_pb2.ApplyRetentionRequest
ApplyRetentionReply = lifecycle_pb2.ApplyRetentionReply
DecisionMessage = lifecycle_pb2.ApplyRetentionReply.Decision


def model_message(summary: ModelSummary) -> lifecycle_pb2.Model:
    """Return the message that describes a model."""
    message = lifecycle_pb2.Model(
        model_info=convert.model_message(summary.info),
        tags=summary.tags,
        aliases=alias_messages(summary.aliases),
        retention=[_rule_message(rule) for rule in summary.retention],
        revision=summary.revision,
        latest_version_number=summary.latest_number,
        versions=summary.versions,
        archived_bytes=summary.archived_bytes,
        signers=[key.der for key in summary.signers],
    )
    if summary.share != NO_SHARE:
        message.transient_share.CopyFrom(_share_message(summary.share))
    return message


def model_from_message(message: lifecycle_pb2.Model) -> ModelSummary:
    """Return the model that a message describes."""
    rules = _rules_from_messages(message.retention, message.model_info.model_id)
    share = _share_from_message(message.transient_share)
    return ModelSummary.of(
        info=convert.model_from_message(message.model_info),
        aliases=tuple(aliases_from_messages(message.aliases)),
        latest_number=message.latest_version_number,
        versions=message.versions,
        archived_bytes=message.archived_bytes,
        annotations=ModelAnnotations(
            dict(message.tags), rules, share, message.revision, _signers_from(message.signers)
        ),
    )


def _rule_message(rule: RetentionRule) -> lifecycle_pb2.RetentionRule:
    return lifecycle_pb2.RetentionRule(
        tier=f"TIER_{rule.tier.upper()}",
        filter=rule.filter,
        keep_last=rule.keep_last,
        keep_best=rule.keep_best,
        metric=rule.metric,
        lower_is_better=rule.lower_is_better,
        keep_seconds=rule.keep_seconds,
        keep_every=rule.keep_every,
    )


def _rules_from_messages(messages: Iterable[lifecycle_pb2.RetentionRule], model_id: str) -> tuple[RetentionRule, ...]:
    rules = []
    for position, message in enumerate(messages, 1):
        if not 0 <= message.tier < len(TIERS):  # of a newer release, perhaps
            text = f"retention rule {position}: tier {message.tier} is unknown; the tiers are {', '.join(TIERS)}"
            raise InvalidError(text, model_id=model_id)
        rules.append(
            RetentionRule(
                tier=TIERS[message.tier],
                filter=message.filter,
                keep_last=message.keep_last,
                keep_best=message.keep_best,
                metric=message.metric,
                lower_is_better=message.lower_is_better,
                keep_seconds=message.keep_seconds,
                keep_every=message.keep_every,
            )
        )
    return tuple(rules)


def _share_message(share: TransientShare) -> lifecycle_pb2.TransientShare:
    return lifecycle_pb2.TransientShare(
        max_items=share.max_items,
        max_bytes=share.max_bytes,
        reserved_items=share.reserved_items,
        reserved_bytes=share.reserved_bytes,
    )


def _share_from_message(message: lifecycle_pb2.TransientShare) -> TransientShare:
    return TransientShare(message.max_items, message.max_bytes, message.reserved_items, message.reserved_bytes)


def _signers_from(keys: Iterable[bytes]) -> tuple[PublicKey, ...]:
    return ordered_signers(map(public_key, keys))


def model_change(request: lifecycle_pb2.UpdateModelRequest) -> ModelChange:
    """Return the change that a request describes.

    Raises:
        InvalidError: A rule is about a tier that does not exist, or a key of a signer is malformed.
    """
    rules = _rules_from_messages(request.retention.rules, request.model_id)
    return ModelChange(
        set_tags=dict(request.set_tags),
        remove_tags=tuple(request.remove_tags),
        retention=rules if request.HasField("retention") else None,
        share=_share_from_message(request.transient_share) if request.HasField("transient_share") else None,
        expected_revision=request.expected_revision,
        signers=_signers_from(request.signers.public_keys) if request.HasField("signers") else None,
    )


def update_model_request(model_id: str, change: ModelChange) -> lifecycle_pb2.UpdateModelRequest:
    """Return the request for a change of a model."""
    request = lifecycle_pb2.UpdateModelRequest(
        model_id=model_id,
        set_tags=change.set_tags,
        remove_tags=change.remove_tags,
        expected_revision=change.expected_revision,
    )
    if change.retention is not None:
        request.retention.CopyFrom(_retention_message(change.retention))
    if change.share is not None:
        request.transient_share.CopyFrom(_share_message(change.share))
    if change.signers is not None:
        request.signers.SetInParent()
        request.signers.public_keys.extend(key.der for key in change.signers)
    return request


def _retention_message(rules: Sequence[RetentionRule]) -> lifecycle_pb2.UpdateModelRequest.Retention:
    return lifecycle_pb2.UpdateModelRequest.Retention(rules=[_rule_message(rule) for rule in rules])


def trial_of(request: lifecycle_pb2.ApplyRetentionRequest) -> tuple[RetentionRule, ...] | None:
    """Return the rules that a request wants to try; None for those of the model.

    Raises:
        InvalidError: It wants to apply them, or a rule is about a tier that does not exist.
    """
    if not request.HasField("retention"):
        return None
    if not request.validate_only:
        text = "retention is only for a dry run, with validate_only; set the rules of a model with UpdateModel"
        raise InvalidError(text, model_id=request.model_id or None)
    return _rules_from_messages(request.retention.rules, request.model_id)


def check_apply_retention(request: lifecycle_pb2.ApplyRetentionRequest) -> None:
    """Refuse what is for one model if a request is about all.

    Raises:
        InvalidError: It has versions or a revision, and no model.
    """
    if not request.model_id and (request.version_numbers or request.expected_revision):
        raise InvalidError("version_numbers and expected_revision are those of a model, and need its model_id")


def apply_retention_request(
    model_id: str,
    rules: Sequence[RetentionRule] | None,
    *,
    is_dry_run: bool,
    numbers: Sequence[int] = (),
    expected_revision: int = 0,
) -> lifecycle_pb2.ApplyRetentionRequest:
    """Return the request to apply rules of retention.

    Args:
        model_id: The model; empty for all.
        rules: Rules to try; None for those of the model.
        is_dry_run: Whether nothing is deleted.
        numbers: The only versions that may be deleted; none for all.
        expected_revision: The revision that the model must have; 0 for any.
    """
    request = lifecycle_pb2.ApplyRetentionRequest(
        model_id=model_id, validate_only=is_dry_run, version_numbers=numbers, expected_revision=expected_revision
    )
    if rules is not None:
        request.retention.CopyFrom(_retention_message(rules))
    return request


def decision_message(decision: Decision) -> lifecycle_pb2.ApplyRetentionReply.Decision:
    """Return the message that describes a decision."""
    return DecisionMessage(version=version_message(decision.version), deleted=decision.deleted, reason=decision.reason)


def report_from_message(message: lifecycle_pb2.ApplyRetentionReply) -> RetentionReport:
    """Return what an application of rules did."""
    decisions = tuple(
        Decision(version_from_message(each.version), each.deleted, each.reason) for each in message.decisions
    )
    return RetentionReport(decisions, message.deleted_versions, message.kept_versions, message.freed_bytes)
