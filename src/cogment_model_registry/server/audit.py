"""The audit log: who changed what, when, and what was there before; one line of JSON for each change.

A line is written before the call is answered, and changes are refused while lines cannot be written. Where the log is
off, nothing here exists: no call has a journal, and nothing is found out for one.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from cachetools import TTLCache

from cogment_model_registry.errors import PermissionDeniedError, UnavailableError
from cogment_model_registry.records.access import Grant
from cogment_model_registry.records.timestamps import format_timestamp
from cogment_model_registry.registry.access import Caller
from cogment_model_registry.registry.journals import Change, Journal, open_journal
from cogment_model_registry.server.needs import NEEDS, is_change
from cogment_model_registry.serving.calls import Call, Guard
from cogment_model_registry.serving.daily_lines import DailyLines

STEM = "audit"
"""How the names of the files begin."""

_REFUSALS_MAX = 60
_REFUSALS_SECONDS = 60.0
"""So many refusals of a caller are recorded in so many seconds, so that nobody without a right can fill the disk."""

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class AuditLog:
    """The audit log of a server. To be closed.

    Args:
        directory: Where its files are.
        now_ns: The clock, in nanoseconds since the Unix epoch.

    Raises:
        StartError: The directory cannot be used.
    """

    def __init__(self, directory: str, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.directory = directory
        self._lines = DailyLines(directory, STEM, "audit_log")
        self._now_ns = now_ns
        self._refusals: TTLCache[str, int] = TTLCache(1024, _REFUSALS_SECONDS)

    @property
    def failure(self) -> str:
        """Why lines cannot be written; empty while they can."""
        return self._lines.failure

    @property
    def written(self) -> int:
        """How many lines were written."""
        return self._lines.written

    @property
    def failed(self) -> int:
        """How many lines could not be written at the first try."""
        return self._lines.failed

    async def close(self) -> None:
        """Write what is left."""
        await self._lines.close()

    def require_writable(self) -> None:
        """Refuse a change while lines cannot be written.

        Raises:
            UnavailableError: They cannot.
        """
        if self._lines.failure:
            message = f"the audit log cannot be written ({self._lines.failure}); changes are refused until it can"
            raise UnavailableError(message)

    def journal_of(self, call: Call) -> Journal:
        """Return the journal of a call."""
        return _Journal(self, lambda: _who(call))

    def journal_of_server(self, name: str) -> Journal:
        """Return the journal of something that the server does by itself."""
        return _Journal(self, lambda: {"call": "", "caller": name, "caller_kind": "server", "peer": ""})

    def append(self, change: Change, who: dict[str, Any]) -> "asyncio.Future[str]":
        """Add the line of a change."""
        fields: dict[str, Any] = {"change": change.kind, "model_id": change.model_id}
        if change.version_number:
            fields["version_number"] = change.version_number
        if change.alias:
            fields["alias"] = change.alias
        fields |= {"before": change.before, "after": change.after}
        return self._append({**fields, **who}, is_durable=change.is_durable)

    def refuse(self, call: Call, request: object, error: PermissionDeniedError) -> None:
        """Add a line for a change that a caller may not make, unless it has tried too often."""
        if not call.caller.is_named or self._lines.failure:
            return
        count = self._refusals.get(call.caller.name, 0)
        if count < _REFUSALS_MAX:
            self._refusals[call.caller.name] = count + 1
            model_id = next((need.model_id for need in NEEDS[call.method](request) if need.model_id), "")
            fields = {"change": "refused", "model_id": model_id, "before": None, "after": None}
            self._append({**fields, **_who(call), "reason": error.message}, is_durable=False)

    def note_grant(self, grant: Grant, is_new: bool) -> None:
        """Add a line for a token, or another grant, that was made or revoked: by a command on this host."""
        state = {
            "name": grant.name,
            "kind": grant.kind,
            "scopes": [str(scope) for scope in grant.scopes],
            "created": format_timestamp(grant.created_ns),
            "expires": None if grant.expires_ns is None else format_timestamp(grant.expires_ns),
        }
        kind, before, after = ("token created", None, state) if is_new else ("token revoked", state, None)
        who = {"call": "", "caller": "cogment token", "caller_kind": "command", "peer": ""}
        self.append(Change(kind, before=before, after=after), who)

    def _append(self, fields: dict[str, Any], *, is_durable: bool) -> "asyncio.Future[str]":
        line = _encode({"time": format_timestamp(self._now_ns()), **fields})
        return self._lines.append(line.encode(), is_durable=is_durable)


def _who(call: Call) -> dict[str, Any]:
    caller: Caller = call.caller
    return {
        "call": call.method,
        "caller": caller.name if caller.is_named else "",
        "caller_kind": caller.kind,
        "peer": call.context.peer(),
    }


class _Journal:
    """A journal whose changes get lines; see `registry.journals.Journal`."""

    __slots__ = ("_last", "_log", "_who")

    def __init__(self, log: AuditLog, who: Callable[[], dict[str, Any]]) -> None:
        self._log = log
        self._who = who
        self._last: asyncio.Future[str] | None = None

    def require_writable(self) -> None:
        self._log.require_writable()

    def record(self, change: Change) -> None:
        self._last = self._log.append(change, self._who())

    async def written(self) -> None:
        # Lines are written in their order, so the last one stands for all.
        if self._last is None:
            return
        last, self._last = self._last, None
        if reason := await last:
            message = f"the change was made, but the audit log cannot be written ({reason}): its line follows"
            raise UnavailableError(message)


class AuditGuard:
    """A guard that also refuses changes which could not be recorded, and gives the others a journal.

    Args:
        guard: Decides who may do what.
        log: The audit log.
    """

    def __init__(self, guard: Guard, log: AuditLog) -> None:
        self._guard = guard
        self._log = log
        self.check_method = guard.check_method
        self.identify = guard.identify
        self.look_up = guard.look_up
        self.is_known = guard.is_known
        self.check_still = guard.check_still

    def decide(self, call: Call, request: object) -> None:
        """Refuse what the caller may not do, and any change that could not be recorded.

        Raises:
            PermissionDeniedError: They may not.
            UnavailableError: The audit log cannot be written.
        """
        try:
            self._guard.decide(call, request)
        except PermissionDeniedError as error:
            if is_change(call.method, request):
                self._log.refuse(call, request, error)
            raise
        if is_change(call.method, request):
            self._log.require_writable()
            call.journal = self._log.journal_of(call)
            open_journal(call.journal)
