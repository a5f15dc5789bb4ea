"""Versions that somebody needs for a while, so that neither a deletion nor a rule of retention removes them.

It decides between those who need a version and those who remove it: whoever comes first wins. A version that is being
removed cannot be held any more, and one that is held is removed only by force, which ends its holds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from cogment_model_registry.registry.contracts import ModelRef


@dataclass(eq=False)
class Hold:
    """A claim on a version.

    Attributes:
        ref: Its model.
        number: Its number.
        reason: Why somebody needs it, as a decision of retention says it.
        refuses_deletion: Whether the version is not deleted, except by force.
    """

    ref: ModelRef
    number: int
    reason: str
    refuses_deletion: bool = False


class Holds:
    """Who needs which versions."""

    def __init__(self) -> None:
        self._holds: defaultdict[ModelRef, list[Hold]] = defaultdict(list)
        self._removals: Counter[tuple[ModelRef, int]] = Counter()
        self._on_removed: Callable[[ModelRef, int], None] = _ignore

    def on_removed(self, listener: Callable[[ModelRef, int], None]) -> None:
        """Set who is notified of versions that were removed, whether they were held or not."""
        self._on_removed = listener

    def add(self, hold: Hold) -> None:
        """Record that a version is needed, until `remove`."""
        self._holds[hold.ref].append(hold)

    def remove(self, hold: Hold) -> None:
        """Record that a version is not needed any more."""
        self._holds[hold.ref].remove(hold)
        if not self._holds[hold.ref]:
            del self._holds[hold.ref]

    @contextmanager
    def holding(self, ref: ModelRef, number: int, reason: str) -> Iterator[None]:
        """Return the context manager in which a version is needed.

        Args:
            ref: Its model.
            number: Its number.
            reason: Why, as `of` says.
        """
        hold = Hold(ref, number, reason)
        self.add(hold)
        try:
            yield
        finally:
            self.remove(hold)

    def of(self, ref: ModelRef) -> Mapping[int, str]:
        """Return the numbers of the versions of a model that are needed now, and why."""
        return {hold.number: hold.reason for hold in self._holds.get(ref, ())}

    def objection(self, ref: ModelRef, number: int) -> str:
        """Return why a version must not be deleted; empty if it may be."""
        holds = self._holds.get(ref, ())
        return next((hold.reason for hold in holds if hold.number == number and hold.refuses_deletion), "")

    @contextmanager
    def removing(self, ref: ModelRef, number: int) -> Iterator[None]:
        """Return the context manager in which a version is being removed. Left without an error, it is gone."""
        key = ref, number
        self._removals[key] += 1
        try:
            yield
            self._on_removed(ref, number)
        finally:
            self._removals[key] -= 1
            if not self._removals[key]:
                del self._removals[key]

    def is_being_removed(self, ref: ModelRef, number: int) -> bool:
        """Return whether a version is being removed: then it is too late to need it."""
        return (ref, number) in self._removals


def _ignore(_ref: ModelRef, _number: int) -> None:
    """Do nothing about a version that was removed."""
