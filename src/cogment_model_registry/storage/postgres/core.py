"""What the parts of the shared catalog have in common."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.signatures import PublicKey
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.postgres.cache import Cache
from cogment_model_registry.storage.postgres.changes import Change, Changes
from cogment_model_registry.storage.postgres.connections import Connections, Observe
from cogment_model_registry.storage.postgres.lines import Lines
from cogment_model_registry.storage.postgres.notes import Letter, Note, messages
from cogment_model_registry.storage.postgres.schema import SCHEMA
from cogment_model_registry.storage.postgres.translation import NoLeaseError

_log = structlog.stdlib.get_logger(__name__)

NOTIFY = f"SELECT pg_notify('{SCHEMA}', message) FROM unnest($1::text[]) AS message"
"""The statement that sends messages when the transaction is committed."""


@dataclass(slots=True)
class Held:
    """A transient version whose bytes this server has.

    Attributes:
        life: The life of its model.
        info: The version.
        annotations: What people said of it.
    """

    life: int
    info: VersionInfo
    annotations: Annotations


class Sending:
    """The notes of one change, which are sent when it is committed. Made by `Core.sending`.

    This server records them at the latest when PostgreSQL sends them back to it, also when it has not learned in any
    other way that the change was committed.

    Attributes:
        messages: What is to be sent.
    """

    def __init__(self, core: "Core", change: int, notes: Sequence[Note]) -> None:
        self._core = core
        self._change = change
        self._notes = notes
        self.messages = messages(core.origin, change, notes)

    async def commit(self, change: Change, *, durably: bool = True) -> None:
        """Commit the change, after `messages` were sent, and record it."""
        await change.commit(durably=durably)
        self.take()

    def take(self) -> None:
        """Record the change, which was committed."""
        if self._core.is_unheard(self._change):
            for note in self._notes:
                self._core.take_own(note)


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
        origin: Which catalog this one is.
        server: The number of this server's lease; 0 for none.
        generation: The generation of PostgreSQL's transient rows; 0 before it is known.
        held: The transient versions whose bytes this server has, by model and number.
        forgotten: Those that it had, while PostgreSQL does not know that yet.
        unclear: Those of `held` that may not exist, since the connection was lost while they were committed.
        given: The highest number that this server gave to a version, by life, also to those that failed.
        entered: The pending rows of changes that are entered on this server.
        signers: Those of models of which this server publishes a version now, so that nobody changes them, by life.
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
        self.held: dict[tuple[str, int], Held] = {}
        self.forgotten: list[Held] = []
        self.unclear: list[Held] = []
        self.given: dict[int, int] = {}
        self.entered: set[int] = set()
        self.signers: dict[int, Sequence[PublicKey]] = {}
        self.on_dropped: Callable[[Sequence[VersionInfo]], None] = _ignore_dropped
        self.on_model_changed: Callable[[str], None] = _ignore_text
        self.on_shown: Callable[[str, int], None] = _ignore_number
        self.on_received: Callable[[str], None] = _ignore_text
        self._changes_sent = 0
        self._taken: set[int] = set()  # own changes that are recorded, and not heard of yet
        self._heard: set[int] = set()  # those that were heard of first

    def sending(self, *notes: Note) -> Sending:
        """Return the notes of a change."""
        self._changes_sent += 1
        return Sending(self, self._changes_sent, notes)

    def is_unheard(self, change: int) -> bool:
        """Return whether a change of this server, which is committed, is still to be recorded."""
        if change in self._heard:
            self._heard.discard(change)
            return False
        self._taken.add(change)
        return True

    def hear(self, letter: Letter) -> None:
        """Record a change that PostgreSQL says was committed, unless it is one of this server that is recorded."""
        if letter.origin != self.origin:
            self.take(letter.note)
        elif letter.change in self._taken:
            if letter.is_last:
                self._taken.discard(letter.change)
        else:
            self._heard.add(letter.change)
            self.take_own(letter.note)

    def forget_sent(self) -> None:
        """Expect no more to hear of what was sent so far: the connection on which it comes back is lost."""
        self._taken.clear()
        self._heard.clear()

    def take_own(self, note: Note) -> None:
        """Record a change that this server has committed."""
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
            keys = [key for key, held in self.held.items() if held.life == note.life]
            self.given.pop(note.life, None)
        elif note.kind in ("lost", "promoted"):
            keys = [(note.model_id, number) for number in note.numbers]
        else:
            if note.kind == "annotated":
                self._annotate_held(note)
            return []
        return [self.held.pop(key).info for key in keys if key in self.held and self.held[key].life == note.life]

    def _annotate_held(self, note: Note) -> None:
        for number in note.numbers:
            held = self.held.get((note.model_id, number))
            if held is not None and held.life == note.life and note.annotations is not None:
                held.annotations = note.annotations

    def require_lease(self, leased: bool) -> None:
        """Refuse a change under a lease that is gone.

        Raises:
            UnavailableError: It is.
        """
        if not leased:
            _log.warning("change refused: the lease of this server is gone", server=self.server)
            raise NoLeaseError
