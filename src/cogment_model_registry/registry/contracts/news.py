"""What a catalog reports to watchers: which models have news, and what is new in a model.

Every change has a sequence number, which grows from 1 while the catalog is open. A watcher keeps positions and has no
queue: it asks for newer changes when it is ready, so a slow one takes no memory and delays nobody.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shown:
    """A version that became visible.

    Attributes:
        sequence: When it became visible; for one that is old, a later moment, but never one after a newer version.
        number: Its number.
    """

    sequence: int
    number: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Versions that are not visible any more.

    Attributes:
        sequence: When the last of them disappeared.
        first_number: The lowest of their numbers.
        last_number: The highest.
        reason: Why, such as ``deleted``; empty when it is not known which versions between the numbers it were.
    """

    sequence: int
    first_number: int
    last_number: int
    reason: str


@dataclass(frozen=True, slots=True)
class News:
    """What a model has for someone who watches it.

    Attributes:
        life: Its life; 0 when it does not exist. Remains after a restart, and differs from all lives of other models.
        since: When this life began, or the last one ended; 0 if that is long ago.
        changed: When its `user_data`, tags, rules, share or aliases were changed last.
        last_number: No version will become visible with this number or a lower one.
        next_sequence: When the first version after the position became visible, even if it is gone by now.
        shown: Versions that are visible, in the order of their numbers.
        lost: Versions that disappeared, in the order in which they did.
        removed: When the first life ended that did so after the position; 0 if none did, or that is long ago.
    """

    life: int
    since: int
    changed: int = 0
    last_number: int = 0
    next_sequence: int = 0
    shown: Sequence[Shown] = ()
    lost: Sequence[Lost] = ()
    removed: int = 0


class Watcher(ABC):
    """Someone who watches models. Made by `Catalog.watching`.

    Attributes:
        epoch: Differs each time the catalog is opened; sequence numbers of another epoch mean nothing.
        sequence: The last change before it began.
    """

    epoch: int
    sequence: int

    @abstractmethod
    async def changed(self, *, wait: bool) -> Sequence[str]:
        """Return the models with changes since the last call, each once; at first, those that exist.

        Args:
            wait: Whether to wait until there is one.

        Raises:
            UnavailableError: The catalog stops.
        """
