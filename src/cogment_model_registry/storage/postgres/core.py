"""What the parts of the shared catalog have in common."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from cogment_model_registry.errors import UnavailableError
from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.cache import Cache
from cogment_model_registry.storage.postgres.changes import Changes
from cogment_model_registry.storage.postgres.connections import Connections, Observe
from cogment_model_registry.storage.postgres.lines import Lines
from cogment_model_registry.storage.postgres.notes import Note, messages
from cogment_model_registry.storage.postgres.schema import SCHEMA

_log = structlog.stdlib.get_logger(__name__)

NOTIFY = f"SELECT pg_notify('{SCHEMA}', message) FROM unnest($1::text[]) AS message"
"""The statement that sends messages when the transaction is committed."""


@dataclass(slots=True)
class Held:
    """A transient version whose bytes this server has.

    Attributes:
        info: The version.
        annotations: What people said of it.
    """

    info: VersionInfo
    annotations: Annotations = field(default_factory=Annotations)


def _ignore_dropped(_infos: Sequence[VersionInfo]) -> None:
    """Do nothing about versions whose bytes are not needed any more."""


def _ignore_number(_model_id: str, _number: int) -> None:
    """Do nothing about a version that another server has made visible."""


def _ignore_text(_text: str) -> None:
    """Do nothing about what another server says."""


class Core:
    """The state of one server's catalog.

    Args:
        connections: The connections to PostgreSQL.
        observe: Receives the durations of statements.

    Attributes:
        connections: The connections.
        changes: Makes changes.
        lines: What happened to models.
        cache: What was read lately.
        server: The number of this server's lease; 0 for none.
        generation: The generation of PostgreSQL's transient rows; 0 before it is known.
        held: The transient versions whose bytes this server has, by life and number.
        given: The highest number that this server gave to a version, by life, also to those that failed.
        entered: The pending rows of changes that are entered on this server.
        on_dropped: Receives transient versions of `held` that another server promoted or removed.
        on_model_changed: Receives models that another server created, changed or removed.
        on_shown: Receives models and numbers of versions that another server has made visible.
        on_received: Receives texts that other servers send.
    """

    def __init__(self, connections: Connections, observe: Observe) -> None:
        self.connections = connections
        self.origin = secrets.randbits(48)
        self.server = 0
        self.generation = 0
        self.changes = Changes(connections, lambda: self.server, observe)
        self.lines = Lines()
        self.cache = Cache()
        self.held: dict[tuple[int, int], Held] = {}
        self.given: dict[int, int] = {}
        self.entered: set[int] = set()
        self.on_dropped: Callable[[Sequence[VersionInfo]], None] = _ignore_dropped
        self.on_model_changed: Callable[[str], None] = _ignore_text
        self.on_shown: Callable[[str, int], None] = _ignore_number
        self.on_received: Callable[[str], None] = _ignore_text

    def messages(self, notes: Iterable[Note]) -> list[str]:
        """Return notes as this catalog sends them."""
        return messages(self.origin, notes)

    def take_own(self, notes: Iterable[Note]) -> None:
        """Record changes that this server has committed."""
        for note in notes:
            self.lines.take(note)
            self.cache.take(note)
            self._held_after(note)

    def take(self, note: Note) -> None:
        """Record a change that another server has committed."""
        self.lines.take(note)
        self.cache.take(note)
        dropped = self._held_after(note)
        if dropped:
            self.on_dropped(dropped)
        if note.kind in ("created", "changed", "removed"):
            self.on_model_changed(note.model_id)
        elif note.kind == "shown" and note.numbers:
            self.on_shown(note.model_id, max(note.numbers))

    def _held_after(self, note: Note) -> list[VersionInfo]:
        """Update what this server holds; return what is not transient any more."""
        if note.kind == "removed":
            numbers = [number for life, number in self.held if life == note.life]
            self.given.pop(note.life, None)
        elif note.kind in ("lost", "promoted"):
            numbers = [*note.numbers]
        else:
            if note.kind == "annotated":
                self._annotate_held(note)
            return []
        return [held.info for number in numbers if (held := self.held.pop((note.life, number), None))]

    def _annotate_held(self, note: Note) -> None:
        for number in note.numbers:
            held = self.held.get((note.life, number))
            if held is not None and note.annotations is not None:
                held.annotations = note.annotations

    def require_lease(self, leased: bool) -> None:
        """Refuse a change under a lease that is gone.

        Raises:
            UnavailableError: It is.
        """
        if not leased:
            _log.warning("change refused: the lease of this server is gone", server=self.server)
            raise UnavailableError("the lease of this server in the catalog is gone; it takes a new one")
