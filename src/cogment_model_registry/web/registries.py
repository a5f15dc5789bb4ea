"""The client of the registry that makes the calls of all callers over HTTP.

Each request sets the caller in a context variable, in its own task; the credentials of the client read it when a call
begins.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from cogment_model_registry.client.asynchronous import ModelRegistry
from cogment_model_registry.client.backends import Channel
from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.connection import Connection
from cogment_model_registry.client.core import Core
from cogment_model_registry.client.credentials import Credentials
from cogment_model_registry.client.deadlines import CALL_SECONDS, Deadline, Timeouts
from cogment_model_registry.client.encryption import Encryption
from cogment_model_registry.client.endpoints import Direct
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle_calls import LifecycleCalls
from cogment_model_registry.wire import forwarding
from cogment_model_registry.wire.tls import Tls, TlsFiles


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request.

    Attributes:
        peer: The address, in the format of gRPC.
        token: The token; empty for none.
        is_by_cookie: Whether the token is that of a session, which a browser also sends for requests of other pages.
        session_id: The session; empty for none.
    """

    peer: str
    token: str = field(default="", repr=False)
    is_by_cookie: bool = False
    session_id: str = field(default="", repr=False)


current: ContextVar[Caller] = ContextVar("caller")
"""The caller, in the task of a request."""


_SECONDS = 5.0
"""How long a request of monitoring waits for the answer of the server."""


class _CallerCredentials(Credentials):
    """The token of the caller, and the address."""

    is_any = True

    def forwarded_peer(self) -> str:
        return current.get().peer

    def metadata(self) -> tuple[tuple[str, str], ...]:
        caller = current.get()
        peer = (forwarding.PEER_KEY, caller.peer)
        return (("authorization", f"Bearer {caller.token}"), peer) if caller.token else (peer,)

    def authorization(self) -> str:
        token = current.get().token
        return f"Bearer {token}" if token else ""


class _Server(Direct):
    """The server, whose socket is nothing for those to know who ask over HTTP: errors do not name it."""

    __slots__ = ()

    def __str__(self) -> str:
        return "the server"


class Registry(ModelRegistry):
    """A client that makes calls for the caller of a request; without retries, since the caller can retry.

    Args:
        socket_path: The UNIX socket of the server.
    """

    def __init__(self, socket_path: str) -> None:
        self._place = _Server(f"unix:{socket_path}")
        super().__init__()

    def _open_core(self) -> Core:
        encryption = Encryption(TlsFiles(), Tls())
        calls = Calls(self._backend, Connection(self._place, encryption, _CallerCredentials()), retry_seconds=0.0)
        return Core(calls, Timeouts(None), cache=None, progress=False)

    @property
    def calls(self) -> Calls:
        """The object that makes its calls, for calls that no other client needs."""
        return self._core.calls

    @property
    def pages(self) -> LifecycleCalls:
        """The calls that return one page of a listing, with a deadline that starts now."""
        return LifecycleCalls(self._core.calls, Deadline(CALL_SECONDS))

    async def read_metrics(self) -> bytes:
        """Return the metrics of the server, in Prometheus' text format.

        Raises:
            PermissionDeniedError: The caller may not read all models.
        """
        return await self._asked(method_path(forwarding.READ_METRICS, forwarding.SERVICE_NAME), "reading the metrics")

    async def describe_caller(self) -> forwarding.Description:
        """Return the caller and the rights of the caller."""
        path = method_path(forwarding.DESCRIBE_CALLER, forwarding.SERVICE_NAME)
        return forwarding.Description.decoded(await self._asked(path, "looking up the caller"))

    async def knows_token(self) -> bool:
        """Return whether the server knows the token of the caller already, without a look for a new one."""
        path = method_path(forwarding.KNOWS_TOKEN, forwarding.SERVICE_NAME)
        return bool(await self._asked(path, "looking up the token"))

    async def caller_name(self) -> str:
        """Return the name of the caller; empty if the server does not know the token."""
        path = method_path(forwarding.NAME_CALLER, forwarding.SERVICE_NAME)
        return (await self._asked(path, "looking up the name of the caller")).decode()

    async def is_serving(self) -> bool:
        """Return whether the server serves, by `grpc.health.v1`.

        Raises:
            UnavailableError: It does not answer.
        """
        return forwarding.is_serving(await self._asked(forwarding.HEALTH_PATH, "checking the health"))

    async def _asked(self, path: str, what: str) -> bytes:
        """Return the reply of a method to an empty message."""
        deadline = Deadline(_SECONDS)

        async def call(channel: Channel) -> bytes:
            return await self.calls.backend.unary(channel, path, b"", deadline.left_seconds())

        return await self.calls.retrying(call, Subject(what), deadline)
