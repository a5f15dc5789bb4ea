"""What clients have recorded so far, read from their files while they write."""

from pathlib import Path

from tests.torture.several_servers.history import Operation, Outcome, parse_operation

ANSWERED = (Outcome.OK, Outcome.ABSENT, Outcome.CONFLICT)


class LiveHistory:
    """The files of all clients.

    Attributes:
        operations: What was read so far.
        answered_ns: When each client was answered last.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.answered_ns: dict[str, int] = {}
        self._positions: dict[Path, int] = {}

    def add(self, path: Path) -> None:
        """Read a file from now on."""
        self._positions[path] = 0

    def read(self) -> None:
        """Read what is new."""
        for path, position in self._positions.items():
            with path.open("rb") as file:
                file.seek(position)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._positions[path] = position + len(whole) + len(newline)
            for line in whole.decode().splitlines():
                self._note(parse_operation(line))

    def _note(self, operation: Operation) -> None:
        self.operations.append(operation)
        if operation.outcome in ANSWERED:
            known = self.answered_ns.get(operation.client, 0)
            self.answered_ns[operation.client] = max(known, operation.ended_ns)

    def waiting(self, since_ns: int, count: int) -> list[str]:
        """Return the clients that were not answered since a moment; or how many have done nothing at all yet.

        Args:
            since_ns: The moment.
            count: How many clients there are.
        """
        self.read()
        missing = [f"{count - len(self.answered_ns)} of {count}"] if len(self.answered_ns) < count else []
        return missing + [client for client, at_ns in self.answered_ns.items() if at_ns < since_ns]
