"""What the process that serves HTTP reports to the server: what it has counted since its previous report.

A report is a line of JSON on its standard output, as the lines of its log. It has what was added, and not totals, so
that the totals of the server do not begin again when the process does.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from cogment_model_registry.system.durations import no_durations

KEY = "report"
"""The field of a line that is a report."""


@dataclass(eq=False, slots=True)
class Counts:
    """What requests for one operation took together.

    Attributes:
        by_status: The number of answers, by their status.
        in_bucket: The number of answers by duration, for each bucket alone; the last one has no upper bound.
        seconds: The sum of the durations.
        received_bytes: Bytes of bodies of requests.
        sent_bytes: Bytes of bodies of answers.
    """

    by_status: dict[str, int] = field(default_factory=dict)
    in_bucket: list[int] = field(default_factory=no_durations)
    seconds: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0

    def add(self, other: "Counts") -> None:
        """Add others to these."""
        for status, count in other.by_status.items():
            self.by_status[status] = self.by_status.get(status, 0) + count
        self.in_bucket = [sum(pair) for pair in zip(self.in_bucket, other.in_bucket, strict=True)]
        self.seconds += other.seconds
        self.received_bytes += other.received_bytes
        self.sent_bytes += other.sent_bytes


@dataclass(frozen=True, slots=True)
class State:
    """What the process does now.

    Attributes:
        requests: Requests in progress, streams included.
        streams: Streams of events that are open.
        connections: Connections of clients.
        sessions: Sessions of browsers.
    """

    requests: int = 0
    streams: int = 0
    connections: int = 0
    sessions: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the process has counted since its previous report.

    Attributes:
        operations: The counts of requests, by operation.
        logins: The number of logins, by result.
        state: What the process does now.
    """

    operations: Mapping[str, Counts]
    logins: Mapping[str, int]
    state: State

    def encoded(self) -> str:
        """Return the line."""
        return json.dumps({KEY: asdict(self)})

    @classmethod
    def decoded(cls, fields: Mapping[str, Mapping[str, object]]) -> "Report":
        """Return the report in a line.

        Args:
            fields: The value of `KEY` in it.

        Raises:
            TypeError: It is no report.
        """
        operations = {name: Counts(**counts) for name, counts in fields["operations"].items()}  # type: ignore[arg-type] # checked by nobody: the two processes are of one release
        return cls(operations, dict(fields["logins"]), State(**fields["state"]))  # type: ignore[arg-type] # likewise
