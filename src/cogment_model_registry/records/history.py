"""What the audit log of a server says of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogment_model_registry.records.notebooks import Shown

HISTORY_LIMIT = 100
"""How many changes are asked for where nobody says how many."""


@dataclass(frozen=True, slots=True)
class HistoryEntry(Shown):
    """A change of a model, or of one of its versions and aliases.

    Attributes:
        time_ns: When it was made, in nanoseconds since the Unix epoch.
        change: What happened, such as ``alias set`` or ``version created``; ``refused`` for one that was not allowed.
        model_id: The model.
        version_number: The version; 0 if it is about none.
        alias: The alias; empty if it is about none.
        before: What was there before; None for nothing.
        after: What was there afterwards; None for nothing.
        call: The call that made it; empty if the server made it on its own.
        caller: The name of who made it; empty for somebody who did not show who they are.
        caller_kind: How they showed who they are: ``token``, ``certificate``, ``subject`` or ``anonymous``; ``server``
            for what the server did on its own.
        peer: Their address, as gRPC has it.
        reason: Why it was refused; empty for changes that were made.
    """

    time_ns: int
    change: str
    model_id: str
    version_number: int
    alias: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    call: str
    caller: str
    caller_kind: str
    peer: str
    reason: str
