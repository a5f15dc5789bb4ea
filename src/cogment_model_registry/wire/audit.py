"""Between the records of changes and the messages of AuditLog."""

import json
from collections.abc import Mapping
from typing import Any

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.history import HistoryEntry
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import audit_pb2

SERVICE_NAME = audit_pb2.DESCRIPTOR.services_by_name["AuditLog"].full_name

ListChangesRequest = audit_pb2.ListChangesRequest
ListChangesReply = audit_pb2.ListChangesReply
ChangeMessage = audit_pb2.Change


def change_message(entry: HistoryEntry) -> audit_pb2.Change:
    """Return the message that describes a change."""
    return ChangeMessage(
        timestamp=entry.time_ns,
        change=entry.change,
        model_id=entry.model_id,
        version_number=entry.version_number,
        alias=entry.alias,
        before_json=_to_json(entry.before),
        after_json=_to_json(entry.after),
        call=entry.call,
        caller=entry.caller,
        caller_kind=entry.caller_kind,
        peer=entry.peer,
        reason=entry.reason,
    )


def change_from_message(message: audit_pb2.Change) -> HistoryEntry:
    """Return the change that a message describes.

    Raises:
        ModelRegistryError: It is malformed.
    """
    return HistoryEntry(
        time_ns=message.timestamp,
        change=message.change,
        model_id=message.model_id,
        version_number=message.version_number,
        alias=message.alias,
        before=_from_json(message.before_json),
        after=_from_json(message.after_json),
        call=message.call,
        caller=message.caller,
        caller_kind=message.caller_kind,
        peer=message.peer,
        reason=message.reason,
    )


def _to_json(state: Mapping[str, Any] | None) -> str:
    return "" if state is None else json.dumps(state, separators=(",", ":"))


def _from_json(text: str) -> Mapping[str, Any] | None:
    if not text:
        return None
    try:
        state = json.loads(text)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise ModelRegistryError("the reply is malformed: what was before or after a change is no JSON object")
    return state
