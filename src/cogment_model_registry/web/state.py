"""The state that all routes share: the registry, the sessions, the templates and the options of the process."""

from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.logins import Logins
from cogment_model_registry.web.registries import Caller, Registry
from cogment_model_registry.web.sessions import Sessions
from cogment_model_registry.web.tally import Tally
from cogment_model_registry.web.templates import Templates


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
        uploads: How many uploads are under way.
        streams: How many streams of events are open.
        large_bodies: How many large forms and documents are being received.
    """

    options: WebOptions
    registry: Registry
    sessions: Sessions = field(default_factory=Sessions)
    logins: Logins = field(default_factory=Logins)
    tally: Tally = field(default_factory=Tally)
    templates: Templates = field(default_factory=Templates)
    uploads: int = 0
    streams: int = 0
    large_bodies: int = 0


def state_of(request: HTTPConnection) -> State:
    """Return the shared state."""
    state: State = request.app.state.shared
    return state


def registry_of(request: HTTPConnection) -> Registry:
    """Return the registry, for calls of the caller."""
    return state_of(request).registry


def caller_of(request: HTTPConnection) -> Caller:
    """Return the caller."""
    caller: Caller = request.scope["caller"]
    return caller
