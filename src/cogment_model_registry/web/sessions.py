"""Sessions of browsers: each keeps the token of a login in memory; the browser has the id of the session."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SESSIONS_MAX = 10_000
"""How many sessions are kept."""

OWN_SESSIONS_MAX = 100
"""How many sessions are kept of one identity, such as the holders of one token."""

IDLE_SECONDS = 12 * 3600.0
"""How long a session lasts without a request."""

LONGEST_SECONDS = 7 * 86_400.0
"""How long any session lasts."""

_ID_BYTES = 32


@dataclass(slots=True)
class _Session:
    token: str
    identity: str
    begun: float
    used: float
    streams: set[asyncio.Event] = field(default_factory=set)

    def is_over(self, now: float) -> bool:
        return now - self.used > IDLE_SECONDS or now - self.begun >= LONGEST_SECONDS


class Sessions:
    """The sessions of a process; a restart ends them all.

    If an identity has too many, its least recently used one ends; if there are too many of all, that of the identity
    that has the most. So nobody ends the sessions of others by logging in again and again.

    Args:
        now: Returns the seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the least recently used one first
        self._own: dict[str, OrderedDict[str, None]] = {}  # by identity, in the same order

    def __len__(self) -> int:
        self._end_unused()
        return len(self._sessions)

    def begin(self, token: str, identity: str) -> str:
        """Begin a session, and return its id.

        Args:
            token: The token of the login.
            identity: Whose token it is; an identity may have several tokens.
        """
        self._end_unused()
        own = self._own.get(identity, ())
        if len(own) >= OWN_SESSIONS_MAX:
            self.end(next(iter(own)))
        elif len(self._sessions) >= SESSIONS_MAX:
            most = max(len(each) for each in self._own.values())
            oldest = (next(iter(each)) for each in self._own.values() if len(each) == most)
            self.end(min(oldest, key=lambda session_id: self._sessions[session_id].used))
        session_id = secrets.token_urlsafe(_ID_BYTES)
        self._sessions[session_id] = _Session(token, identity, self._now(), self._now())
        self._own.setdefault(identity, OrderedDict())[session_id] = None
        return session_id

    def token_of(self, session_id: str) -> str | None:
        """Return the token of a session; None if there is none, or it has ended."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        now = self._now()
        if session.is_over(now):
            self.end(session_id)
            return None
        session.used = now
        self._sessions.move_to_end(session_id)
        self._own[session.identity].move_to_end(session_id)
        return session.token

    def is_live(self, session_id: str) -> bool:
        """Return whether a session exists and has not ended, which does not count as a use of it."""
        session = self._sessions.get(session_id)
        return session is not None and not session.is_over(self._now())

    @contextmanager
    def streaming(self, session_id: str, ended: asyncio.Event) -> Iterator[None]:
        """Return a context manager for a stream of a session: an event is set if the session is ended within it.

        Args:
            session_id: The session; empty for none.
            ended: The event. It is not set when the session expires: look at `is_live` from time to time.
        """
        session = self._sessions.get(session_id)
        if session is None:
            if session_id:
                ended.set()
            yield
            return
        session.streams.add(ended)
        try:
            yield
        finally:
            session.streams.discard(ended)

    def end(self, session_id: str) -> None:
        """End a session, if it exists, and its streams."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        own = self._own[session.identity]
        del own[session_id]
        if not own:
            del self._own[session.identity]
        for ended in session.streams:
            ended.set()

    def _end_unused(self) -> None:
        """End the sessions that nobody has used for too long."""
        now = self._now()
        while self._sessions:
            session_id, session = next(iter(self._sessions.items()))
            if now - session.used <= IDLE_SECONDS:
                return
            self.end(session_id)
