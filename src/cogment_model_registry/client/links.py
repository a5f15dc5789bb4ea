"""A channel to a registry, with what is known of the server at its other end."""

import time
from dataclasses import dataclass

from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.endpoints import Direct
from cogment_model_registry.wire.tls import Tls

SILENCE_SECONDS = 5.0
"""A channel on which calls got no answer for so long is replaced: what it is connected to may have frozen, and its name
may have another address by now. A program may give its calls less time than a server sometimes takes."""

SHORT_SILENCE_SECONDS = 2.5
"""The same where another registry can go on."""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """Where the UNIX socket of the registry is, as the registry says.

    Attributes:
        path: Its path; empty where it has none, or none that this process can reach.
        socket_id: What requests must carry.
        asked: When the registry was asked, by the monotonic clock.
    """

    path: str
    socket_id: str
    asked: float

    @classmethod
    def nowhere(cls) -> "LocalPlace":
        """Return that there is none, as far as is known now."""
        return cls("", "", time.monotonic())


class Link:
    """A channel to the present or a former address of the registry.

    Args:
        place: The registry.
        channel: The channel.
        tls: What it trusts and shows; None without TLS.
        is_pinged: Whether it pings the server during calls; see `wire.pings`.

    Attributes:
        place: As above.
        channel: As above.
        tls: As above.
        is_pinged: As above.
        users: How many calls are under way on it.
        is_silent: Whether nothing has been answered for long.
        is_doubted: Whether the registry is looked for again before the next call: what answers may be no registry.
        is_away: Whether the registry did not answer, so that others come before it.
    """

    def __init__(self, place: Direct, channel: Channel, tls: Tls | None, *, is_pinged: bool = False) -> None:
        self.place = place
        self.tls = tls
        self.channel = channel
        self.is_pinged = is_pinged
        self.users = 0
        self.is_silent = self.is_doubted = self.is_away = False
        self._unanswered_since: float | None = None

    @property
    def is_fit(self) -> bool:
        """Whether calls may go over it."""
        return not (self.is_silent or self.is_doubted or self.is_away)

    def renew(self) -> None:
        """Record that calls may go over it again, since the registry answers."""
        self.is_doubted = self.is_away = False
        self._unanswered_since = None

    def note_answer(self) -> None:
        """Record that a call was answered."""
        self._unanswered_since = None

    def note_failure(self, began: float, silence_seconds: float) -> None:
        """Record that a call reached no server, or was not answered in time.

        Args:
            began: When it began.
            silence_seconds: How long nothing may be answered.
        """
        self._unanswered_since = self._unanswered_since or began
        self.is_silent = time.monotonic() - self._unanswered_since >= silence_seconds
