"""Registration of this server with a Cogment Directory, kept alive.

The server serves before it registers, since the Directory calls back at once. From then on a task maintains the
registration: it waits for a Directory that does not answer, and registers again with one that forgot this server or was
replaced by another. Every change of state is one line of the log, and nothing here delays the service.
"""

import asyncio
import contextlib
import enum
import ipaddress
import random
import socket
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import monotonic

import structlog

from cogment_model_registry._version import __version__
from cogment_model_registry.discovery.client import DirectoryClient, connected
from cogment_model_registry.errors import InvalidError, ModelRegistryError, StartError
from cogment_model_registry.records.addresses import endpoint_text
from cogment_model_registry.records.services import (
    SOURCE_PROPERTY,
    VERSION_PROPERTY,
    Details,
    Endpoint,
    Protocol,
    ServiceType,
)
from cogment_model_registry.serving.certificates import pair_files
from cogment_model_registry.settings import Settings, means_all_interfaces
from cogment_model_registry.system.certificates import CertificateError, PemFile
from cogment_model_registry.wire.tls import TlsFiles

_log = structlog.stdlib.get_logger(__name__)

_CALL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a registration is checked and repeated.

    With the defaults, a Directory that lost this server has it again within 30 seconds.

    Attributes:
        look_seconds: The pause before the next check that the Directory still knows this server.
        second_look_seconds: The pause before the second look of such a check: a Directory returns only services whose
            last check passed, so one empty answer does not mean that it forgot.
        first_check_seconds: How long the Directory may return nothing after a registration: its first check may take
            14 seconds (three tries).
        first_pause_seconds: The pause after a failed call, before jitter; it doubles with each further one.
        longest_pause_seconds: The longest of these pauses.
    """

    look_seconds: float = 5.0
    second_look_seconds: float = 3.0
    first_check_seconds: float = 15.0
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 10.0


class State(enum.Enum):
    """The state of the registration."""

    OFF = "off"
    WAITING = "waiting"
    REGISTERED = "registered"
    REFUSED = "refused"


def registration_endpoint(settings: Settings, port: int) -> tuple[Endpoint, str]:
    """Return the endpoint to register, and the source of its host (`Self-Command_Line` or `Self-Implicit`).

    Raises:
        StartError: No host is given, and none can be found out.
    """
    protocol = Protocol.GRPC_SSL if settings.tls_certificate else Protocol.GRPC
    if settings.directory_registration_host:
        return Endpoint(protocol, settings.directory_registration_host, port), "Self-Command_Line"
    return Endpoint(protocol, _own_host(settings, "directory_registration_host"), port), "Self-Implicit"


def peer_endpoint(settings: Settings, port: int) -> str:
    """Return the endpoint at which other servers of the same catalog reach this one.

    Raises:
        StartError: No host is given, and none can be found out.
    """
    host = settings.peer_host or settings.directory_registration_host or _own_host(settings, "peer_host")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return endpoint_text(address, is_secure=bool(settings.tls_certificate))


def _own_host(settings: Settings, setting: str) -> str:
    """Return the host that the server serves on, or an address of it; `setting` is the one that would say so."""
    host = _own_address() if means_all_interfaces(settings.host) else settings.host
    if host is None:
        raise StartError(f"this machine has only loopback IPv4 addresses: set {setting}")
    return host


def _own_address() -> str | None:
    """Return the first IPv4 address of this machine that is not a loopback one."""
    # Imported late: it takes a tenth of the time of a start, and most servers register nowhere.
    import psutil  # noqa: PLC0415

    status = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if name in status and not status[name].isup:
            continue
        for address in addresses:
            if address.family == socket.AF_INET and not ipaddress.ip_address(address.address).is_loopback:
                return str(address.address)
    return None


def _tls_files(settings: Settings) -> TlsFiles:
    """Return what to trust and show where the Directory is over TLS.

    Raises:
        StartError: A file cannot be used.
    """
    authorities = settings.directory_tls_ca
    files = TlsFiles(PemFile("directory_tls_ca", authorities) if authorities else None, pair_files(settings))
    try:
        files.read()
    except CertificateError as error:
        raise StartError(str(error)) from None
    return files


class Registration:
    """Keeps this server registered.

    Args:
        settings: Which Directory, with what token and properties.
        port: The port that the server serves on.
        pace: How often to check and repeat the registration.

    Raises:
        StartError: No host can be registered, or a file for TLS cannot be used.
    """

    def __init__(self, settings: Settings, port: int, pace: Pace = Pace()) -> None:
        self._settings = settings
        self._pace = pace
        self._endpoint, source = registration_endpoint(settings, port)
        properties = {
            **settings.directory_registration_properties,
            SOURCE_PROPERTY: source,
            VERSION_PROPERTY: __version__,
        }
        self._details = Details(ServiceType.MODEL_REGISTRY, properties)
        self._files = _tls_files(settings)
        self._held: tuple[int, str] | None = None
        self._tries = 0
        self._registered_at = 0.0
        self._in_vain = 0  # registrations in a row that the Directory never returned
        self._logged: State | None = None
        self.state = State.WAITING

    async def run(self) -> None:
        """Register, and maintain the registration until cancelled."""
        async with self._connected() as client:
            while True:
                try:
                    await self._maintain(client)
                    self._tries = 0
                    await asyncio.sleep(self._pace.look_seconds)
                except InvalidError as error:
                    self._enter(State.REFUSED, error)
                    await asyncio.sleep(self._pause_seconds())
                except ModelRegistryError as error:
                    self._enter(State.WAITING, error)
                    await asyncio.sleep(self._pause_seconds())

    async def end(self, timeout_seconds: float) -> None:
        """Deregister, if registered."""
        if self._held is None:
            return
        (service_id, secret), self._held = self._held, None
        async with self._connected() as client:
            try:
                await client.deregister(service_id, secret, timeout_seconds=timeout_seconds)
            except ModelRegistryError as error:
                _log.warning("deregistration from the Directory failed", service_id=service_id, reason=error.message)
            else:
                _log.info("deregistered from the Directory", service_id=service_id)

    def _connected(self) -> AbstractAsyncContextManager[DirectoryClient]:
        endpoint, token = self._settings.directory_endpoint, self._settings.directory_authentication_token
        return connected(endpoint, token, self._files)

    async def _maintain(self, client: DirectoryClient) -> None:
        """Make sure that the Directory knows this server."""
        if self._held is not None and await self._is_known(client, self._held[0]):
            self._in_vain = 0
            self._enter(State.REGISTERED)
            return
        if self._held is not None:
            if monotonic() - self._registered_at < self._pace.first_check_seconds * 2 ** min(self._in_vain, 4):
                return
            self._in_vain += 1
            service_id, secret = self._held
            _log.warning(
                "registering again: the Directory does not return this server; check that it can reach the endpoint",
                service_id=service_id,
                endpoint=str(self._endpoint),
            )
            self._logged = None
            # It refuses to remove what it forgot; what it still has would be registered twice.
            with contextlib.suppress(InvalidError):
                await client.deregister(service_id, secret, timeout_seconds=_CALL_TIMEOUT_SECONDS)
            self._held = None
        self._held = await client.register(self._endpoint, self._details, timeout_seconds=_CALL_TIMEOUT_SECONDS)
        self._registered_at = monotonic()
        self._enter(State.REGISTERED)

    async def _is_known(self, client: DirectoryClient, service_id: int) -> bool:
        """Return whether the Directory returns this server; ask twice before concluding that it does not."""
        if await self._is_handed_out(client, service_id):
            return True
        await asyncio.sleep(self._pace.second_look_seconds)
        return await self._is_handed_out(client, service_id)

    async def _is_handed_out(self, client: DirectoryClient, service_id: int) -> bool:
        services = await client.inquire(service_id, timeout_seconds=_CALL_TIMEOUT_SECONDS)
        # Another Directory in the same place may have given the same id to someone else.
        return any(service.endpoint == self._endpoint for service in services)

    def _enter(self, state: State, error: ModelRegistryError | None = None) -> None:
        """Set the state, and log a change."""
        self.state = state
        if state is self._logged:
            return
        self._logged = state
        where = self._settings.directory_endpoint
        if state is State.REGISTERED:
            service_id = self._held[0] if self._held else 0
            _log.info(
                "registered with the Directory", directory=where, service_id=service_id, endpoint=str(self._endpoint)
            )
        elif error is not None and state is State.REFUSED:
            _log.error("registration refused; trying again", directory=where, reason=error.message)
        elif error is not None:
            _log.warning("Directory unreachable; trying again", directory=where, reason=error.message)

    def _pause_seconds(self) -> float:
        """Return how long to wait before the next try: longer each time, and with jitter."""
        pause = min(self._pace.first_pause_seconds * 2.0 ** min(self._tries, 10), self._pace.longest_pause_seconds)
        self._tries += 1
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 # no secret
