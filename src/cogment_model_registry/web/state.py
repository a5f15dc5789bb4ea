"""The state that all routes share: the registry, the sessions, the templates and the options of the process."""

from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.logins import Logins
from cogment_model_registry.web.places import Places
from cogment_model_registry.web.registries import Caller, Registry
from cogment_model_registry.web.sessions import Sessions
from cogment_model_registry.web.tally import Tally
from cogment_model_registry.web.templates import Templates

UPLOADS_MAX = 64
"""How many uploads may be under way: each has a thread and some chunks in memory."""

STREAMS_MAX = 1000
"""How many streams of events may be open."""

LIVE_PAGES_MAX = 500
"""How many pages are kept current at the same time."""


@dataclass(slots=True)
class State:
    """The state that all routes share.

    Attributes:
        options: The options from the server.
        registry: Makes calls for the caller of a request.
        sessions: The sessions of browsers.
        logins: The attempts to log in that hosts have left.
        tally: Counts requests.
        templates: The pages.
        uploads: The uploads that are under way.
        streams: The streams of events that are open.
        live_pages: The pages that are kept current.
        large_bodies: How many large forms and documents are being received.
    """

    options: WebOptions
    registry: Registry
    sessions: Sessions = field(default_factory=Sessions)
    logins: Logins = field(default_factory=Logins)
    tally: Tally = field(default_factory=Tally)
    templates: Templates = field(default_factory=Templates)
    uploads: Places = field(default_factory=lambda: Places(UPLOADS_MAX, "uploads", 1))
    streams: Places = field(default_factory=lambda: Places(STREAMS_MAX, "streams of events", 5))
    live_pages: Places = field(default_factory=lambda: Places(LIVE_PAGES_MAX, "pages", 30))
    large_bodies: int = 0


def state_of(request: HTTPConnection) -> State:
    """Return the shared state."""
    state: State = request.app.state.shared
    return state


def registry_of(request: HTTPConnection) -> Registry:
    """Return the registry, for calls of the caller."""
    return state_of(request).registry


def address_of(request: HTTPConnection) -> str:
    """Return the IP address of the client."""
    address: str = request.scope["client"][0]
    return address


def caller_of(request: HTTPConnection) -> Caller:
    """Return the caller."""
    caller: Caller = request.scope["caller"]
    return caller
