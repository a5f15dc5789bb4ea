"""What a change of the registry was: recorded where it is decided, for whoever keeps a journal of changes.

A catalog knows what was before a change and what is after it, at the moment at which nobody else changes the model. It
records both there, so that the records of a model are in the order of its changes and no other change fits between.
Who makes the change is known elsewhere: the journal of the call is a context variable, which also the tasks inherit
that finish a call whose client is gone.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeAlias

from cogment_model_registry.records.lifecycle import Alias, Annotations, ModelSummary, Version
from cogment_model_registry.records.retention import ModelAnnotations, RetentionRule
from cogment_model_registry.records.timestamps import format_timestamp
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

State: TypeAlias = Mapping[str, Any]
"""What was, or is: values of JSON."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        kind: What happened, such as ``alias set``.
        model_id: The model; empty if it is about none.
        version_number: The version; 0 if it is about none.
        alias: The alias; empty if it is about none.
        before: What was; None for nothing.
        after: What is; None for nothing.
        is_durable: Whether the change outlives a power failure, so that its record has to.
    """

    kind: str
    model_id: str = ""
    version_number: int = 0
    alias: str = ""
    before: State | None = None
    after: State | None = None
    is_durable: bool = True


class Journal(Protocol):
    """Keeps the changes of one call."""

    def record(self, change: Change) -> None:
        """Take a change, in the order of changes; never waits and never fails."""

    def require_writable(self) -> None:
        """Refuse a change that could not be kept.

        Raises:
            UnavailableError: Earlier ones could not be written, and still cannot.
        """

    async def written(self) -> None:
        """Wait until all changes so far are kept.

        Raises:
            UnavailableError: One could not be written.
        """


_journal: ContextVar[Journal | None] = ContextVar("journal", default=None)

current_journal = _journal.get
"""Return the journal of the current call; None where none is kept, so that nothing need be found out for it."""


def open_journal(journal: Journal | None) -> None:
    """Let changes that are made from here on, in the current task and those that it starts, be recorded."""
    _journal.set(journal)


@contextmanager
def recording(journal: Journal | None) -> Iterator[None]:
    """Return a context manager in which changes are recorded."""
    token = _journal.set(journal)
    try:
        yield
    finally:
        _journal.reset(token)


def require_writable() -> None:
    """Refuse a change that could not be kept, where a journal is.

    Raises:
        UnavailableError: Earlier ones could not be written, and still cannot.
    """
    journal = _journal.get()
    if journal is not None:
        journal.require_writable()


async def written() -> None:
    """Wait until the changes so far are kept, where a journal is.

    Raises:
        UnavailableError: One could not be written.
    """
    journal = _journal.get()
    if journal is not None:
        await journal.written()


# What catalogs record, each in one place for all of them.


def record_created(info: VersionInfo, annotations: Annotations | None = None) -> None:
    """Record a version that became visible."""
    journal = _journal.get()
    if journal is not None:
        after = {**_info_state(info), **(_fields(annotations) if annotations else {})}
        journal.record(Change("version created", info.model_id, info.number, after=after, is_durable=info.archived))


def record_promoted(info: VersionInfo) -> None:
    """Record a version that was archived."""
    journal = _journal.get()
    if journal is not None:
        before = {"archived": False}
        journal.record(Change("version promoted", info.model_id, info.number, before=before, after=_info_state(info)))


def record_deleted(version: Version) -> None:
    """Record a version that was deleted, as it was."""
    journal = _journal.get()
    if journal is not None:
        before = {**_info_state(version), **_fields(version.annotations), "aliases": [*version.aliases]}
        journal.record(
            Change("version deleted", version.model_id, version.number, before=before, is_durable=version.archived)
        )


def record_annotated(info: VersionInfo, before: Annotations, after: Annotations) -> None:
    """Record that tags and metrics of a version were changed."""
    journal = _journal.get()
    if journal is not None:
        was, now = _fields(before), _fields(after)
        journal.record(
            Change("version changed", info.model_id, info.number, before=was, after=now, is_durable=info.archived)
        )


def record_model_written(info: ModelInfo, before: ModelInfo | None) -> None:
    """Record that a model was created, or its `user_data` replaced."""
    journal = _journal.get()
    if journal is not None:
        was = None if before is None else {"user_data": dict(before.user_data)}
        kind = "model created" if before is None else "model replaced"
        journal.record(Change(kind, info.model_id, before=was, after={"user_data": dict(info.user_data)}))


def record_model_changed(model_id: str, before: ModelAnnotations, after: ModelAnnotations) -> None:
    """Record that tags, rules or the share of a model were changed."""
    journal = _journal.get()
    if journal is not None:
        journal.record(Change("model changed", model_id, before=_fields(before), after=_fields(after)))


def record_model_deleted(summary: ModelSummary) -> None:
    """Record a model that was deleted with its versions, as it was."""
    journal = _journal.get()
    if journal is not None:
        before = {
            "user_data": dict(summary.user_data),
            **_fields(summary.annotations),
            "versions": summary.versions,
            "latest_version_number": summary.latest_number,
            "archived_bytes": summary.archived_bytes,
            "aliases": {alias.name: _alias_state(alias) for alias in summary.aliases},
        }
        journal.record(Change("model deleted", summary.model_id, before=before))


def record_aliases(model_id: str, before: Mapping[str, Alias], after: Mapping[str, Alias]) -> None:
    """Record which aliases of a model were set and removed, in the order of their names."""
    journal = _journal.get()
    if journal is None:
        return
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was != now:
            kind = "alias removed" if now is None else "alias set"
            number = now.version_number if now else was.version_number if was else 0
            journal.record(Change(kind, model_id, number, name, _alias_state(was), _alias_state(now)))


def _alias_state(alias: Alias | None) -> State | None:
    return None if alias is None else {"version_number": alias.version_number, "revision": alias.revision}


def _info_state(info: VersionInfo) -> dict[str, Any]:
    state = {name: value for name in _INFO_FIELDS if (value := _plain(getattr(info, name))) is not None}
    return {"created": format_timestamp(info.created_ns), **state}


_INFO_FIELDS = [each.name for each in fields(VersionInfo) if each.name not in {"model_id", "number", "created_ns"}]


def _fields(record: Annotations | ModelAnnotations) -> dict[str, Any]:
    """Return the fields of a record, those that it gets later too."""
    return {each.name: _plain(getattr(record, each.name)) for each in fields(record)}


def _plain(value: Any) -> Any:
    """Return a field of a record as a value of JSON."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, RetentionRule):
        return str(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
