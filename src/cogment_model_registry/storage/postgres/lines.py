"""What happened to models since this server began to listen: the memory of those who watch.

Each server numbers the changes by itself, in the order in which it learns of them. A model has a line here from its
first change on, or from the first question for its news; so nothing is read at the start. Before its first change, a
model without a line is as it was when this server began.
"""

from cachetools import LRUCache

from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.feed import Feed, History
from cogment_model_registry.storage.postgres.notes import Note

BEGIN = 1
"""The sequence number of all that was before this server began to listen."""

_LINES = 50_000
"""Of so many models it is known what happened to them; of the one that nobody asked for longest it is forgotten."""


class Line:
    """What happened to one life of a model.

    Attributes:
        life: The life.
        history: What happened to it.
    """

    __slots__ = ("history", "life")

    def __init__(self, life: int, history: History) -> None:
        self.life = life
        self.history = history


class Lines:
    """The lines of models.

    Attributes:
        feed: The order of changes, and who waits for them.
    """

    def __init__(self) -> None:
        self.feed = Feed(lambda _: ())
        self.feed.sequence = BEGIN
        self._lines: LRUCache[str, Line] = LRUCache(_LINES)
        self._forgotten = False

    def find(self, model_id: str) -> Line | None:
        """Return the line of a model, if it has one."""
        return self._lines.get(model_id)

    def known(self) -> dict[str, Line]:
        """Return all lines by model."""
        return dict(self._lines)

    def begin(self, ref: ModelRef, last_number: int) -> Line:
        """Return the line of a model that was read, unless it got one in the meantime."""
        line = self._lines.get(ref.model_id)
        if line is None:
            line = self._add(ref.model_id, ref.life, last_number)
        return line

    def _add(self, model_id: str, life: int, last_number: int, since: int = 0) -> Line:
        self._forgotten = self._forgotten or len(self._lines) >= _LINES
        if since or not self._forgotten:
            history = History(since or BEGIN, last_number)
        else:  # what was before is not known any more, nor what disappeared
            history = History(self.feed.sequence, last_number)
            history.lose_unknown(self.feed.sequence)
        line = self._lines[model_id] = Line(life, history)
        return line

    def take(self, note: Note) -> None:
        """Record a change, and wake those who watch the model."""
        line = self._lines.get(note.model_id)
        if note.kind == "removed":
            self._remove(note, line)
        elif line is None or line.life != note.life:
            self._take_first(note, line)
        elif note.kind == "shown":
            for number in note.numbers:
                self._show(note.model_id, line, number)
        elif note.kind == "lost":
            for number in note.numbers:
                line.history.lose(self.feed.note(note.model_id), number, note.reason)
        elif note.kind in ("changed", "created"):
            line.history.changed = self.feed.note(note.model_id)

    def _take_first(self, note: Note, line: Line | None) -> None:
        """Record the first change of a life."""
        sequence = self.feed.note(note.model_id)
        if line is not None:  # the end of an earlier life, which was not heard of
            self.feed.note_removed(note.model_id, line.history.since)
            self._add(note.model_id, note.life, 0, self.feed.note(note.model_id))
        elif note.kind == "created":
            self._add(note.model_id, note.life, 0, sequence)
        if note.kind == "shown":
            known = self._lines.get(note.model_id) or self._add(note.model_id, note.life, min(note.numbers) - 1)
            for number in note.numbers:
                self._show(note.model_id, known, number)

    def _show(self, model_id: str, line: Line, number: int) -> None:
        if line.history.shows(number):
            return
        line.history.begin_after(number - 1)
        line.history.show(self.feed.note(model_id), number)

    def _remove(self, note: Note, line: Line | None) -> None:
        if line is None or line.life == note.life:  # and not the end of an earlier life
            self._lines.pop(note.model_id, None)
            self.feed.note_removed(note.model_id, line.history.since if line else BEGIN)

    def lose_unknown(self, model_id: str) -> None:
        """Record that versions of a model may have disappeared, it is not known which."""
        line = self._lines.get(model_id)
        if line is not None:
            line.history.lose_unknown(self.feed.note(model_id))
