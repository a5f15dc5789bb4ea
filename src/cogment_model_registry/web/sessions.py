"""Sessions of browsers: each keeps the token of a login in memory; the browser has the id of the session."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_SESSIONS_MAX = 10_000
"""How many sessions are kept; the least recently used one ends first."""

IDLE_SECONDS = 12 * 3600.0
"""How long a session lasts without a request."""

LONGEST_SECONDS = 7 * 86_400.0
"""How long any session lasts."""

_ID_BYTES = 32


@dataclass(slots=True)
class _Session:
    token: str
    begun: float
    used: float


class Sessions:
    """The sessions of a process; a restart ends them all.

    Args:
        now: Returns the seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: OrderedDict[str, _Session] = OrderedDict()  # the least recently used one first

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, token: str) -> str:
        """Begin a session, and return its id."""
        while len(self._sessions) >= _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        session_id = secrets.token_urlsafe(_ID_BYTES)
        self._sessions[session_id] = _Session(token, self._now(), self._now())
        return session_id

    def token_of(self, session_id: str) -> str | None:
        """Return the token of a session; None if there is none, or it has ended."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        now = self._now()
        if now - session.used > IDLE_SECONDS or now - session.begun >= LONGEST_SECONDS:
            del self._sessions[session_id]
            return None
        session.used = now
        self._sessions.move_to_end(session_id)
        return session.token

    def end(self, session_id: str) -> None:
        """End a session, if it exists."""
        self._sessions.pop(session_id, None)
