"""What clients did and observed, with the times at which it began and ended.

All times are nanoseconds of the monotonic clock of the machine, which all its processes share. An operation took
effect, if it did, at one moment between its beginning and its end; one whose outcome is unknown may take effect at any
time after its beginning, or never.
"""

import dataclasses
import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What was done."""

    CREATE = enum.auto()
    """A version was published or stored."""
    PROMOTE = enum.auto()
    """A version was made archived."""
    DELETE = enum.auto()
    """A version was deleted."""
    LATEST = enum.auto()
    """The latest version was looked up; its number is 0 if there was none."""
    FIND = enum.auto()
    """A version was looked up by its number."""
    RETRIEVE = enum.auto()
    """The bytes of a version were retrieved."""
    NEWS = enum.auto()
    """A watcher received a version."""
    GAP = enum.auto()
    """A watcher received a gap."""
    MOVE = enum.auto()
    """An alias was pointed to a version, if it had the expected revision."""
    READ_ALIAS = enum.auto()
    """An alias was read; its revision is 0 if it did not exist."""


class Outcome(enum.StrEnum):
    """How an operation ended."""

    OK = enum.auto()
    """It was answered."""
    ABSENT = enum.auto()
    """The answer was that the version does not exist."""
    CONFLICT = enum.auto()
    """The answer was that the alias has another revision than was expected."""
    FAILED = enum.auto()
    """It failed, and certainly had no effect."""
    UNKNOWN = enum.auto()
    """It failed, and may have had its effect, or may have it later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a client.

    Attributes:
        client: Who did it: one thread of one process, which does one operation after the other.
        kind: What was done.
        model_id: The model.
        began_ns: When it began.
        ended_ns: When it ended.
        outcome: How it ended.
        number: The version: the one that was asked for or created, or the one that the reply names; 0 if unknown.
        last_number: The last number of a gap.
        tag: The unique name of the bytes, in the `user_data` of the version; empty if unknown.
        data_hash: The hash of the bytes of the version, as a reply or the bytes themselves have it; empty if unknown.
        archived: Whether the version is archived, or was to be.
        expected: The revision that an alias was expected to have.
        revision: The revision that it has, as a reply says.
        server: The only server that the client may ask; empty if it may ask all.
        error: The error, for people.
    """

    client: str
    kind: Kind
    model_id: str
    began_ns: int
    ended_ns: int
    outcome: Outcome
    number: int = 0
    last_number: int = 0
    tag: str = ""
    data_hash: str = ""
    archived: bool = False
    expected: int = 0
    revision: int = 0
    server: str = ""
    error: str = ""

    def __str__(self) -> str:
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        given = [f"{name}={value}" for name, value in self.as_dict().items() if value != defaults[name]]
        return f"<{' '.join(given)}>"

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}

    @property
    def may_have_effect(self) -> bool:
        """Whether it changed something, or may have."""
        return self.outcome in (Outcome.OK, Outcome.UNKNOWN)


class Effect(enum.Flag):
    """What a fault may do to what others see."""

    LOSES = enum.auto()
    """Transient versions may be lost that were visible then, or created in the meantime."""
    HIDES = enum.auto()
    """They may be invisible until the servers that have them announce them again."""
    MAKES_STALE = enum.auto()
    """Servers may be unable to ask PostgreSQL, and answer from what they know."""


NOTHING = Effect(0)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault, from its beginning to the moment when everything works again except for what has to notice it.

    Attributes:
        name: What it was.
        began_ns: When it began.
        ended_ns: When it was over.
        effect: What it may do.
    """

    name: str
    began_ns: int
    ended_ns: int
    effect: Effect


@dataclass(frozen=True, slots=True)
class History:
    """Everything that was observed.

    Attributes:
        operations: In the order of their beginnings.
        troubles: The faults, one after the other.
        others: What went wrong besides.
    """

    operations: tuple[Operation, ...]
    troubles: tuple[Trouble, ...] = ()
    others: tuple[Trouble, ...] = ()

    @classmethod
    def of(
        cls, operations: Iterable[Operation], troubles: Iterable[Trouble] = (), others: Iterable[Trouble] = ()
    ) -> "History":
        """Return a history of operations in any order."""
        return cls(tuple(sorted(operations, key=lambda each: each.began_ns)), tuple(troubles), tuple(others))

    @property
    def excuses(self) -> tuple[Trouble, ...]:
        """Everything that went wrong."""
        return (*self.troubles, *self.others)

    def having(self, *kinds: Kind) -> list[Operation]:
        """Return the operations of some kinds."""
        return [each for each in self.operations if each.kind in kinds]

    def by_model(self) -> "dict[str, History]":
        """Return the history of each model."""
        models: dict[str, list[Operation]] = {}
        for operation in self.operations:
            models.setdefault(operation.model_id, []).append(operation)
        return {
            model_id: History(tuple(operations), self.troubles, self.others) for model_id, operations in models.items()
        }


def to_line(operation: Operation) -> str:
    """Return an operation as a line of JSON."""
    return json.dumps(operation.as_dict()) + "\n"


def parse_operation(line: str) -> Operation:
    """Return the operation that a line has."""
    fields = json.loads(line)
    return Operation(**{**fields, "kind": Kind(fields["kind"]), "outcome": Outcome(fields["outcome"])})
