"""TLS of a Directory, of the services that it checks, and of a registry that registers with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry.discovery import checks
from cogment_model_registry.discovery.checks import check
from cogment_model_registry.discovery.client import DirectoryClient, connected
from cogment_model_registry.discovery.server import running
from cogment_model_registry.errors import ModelRegistryError, StartError, UnavailableError
from cogment_model_registry.records.services import Details, Endpoint, Protocol, Service, ServiceType
from cogment_model_registry.server.registration import Registration, registration_endpoint
from cogment_model_registry.settings import DirectorySettings, Settings
from cogment_model_registry.system.certificates import PemFile
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire.tls import TlsFiles
from tests.certificates import Authority, Issued
from tests.ports import free_port
from tests.waiting import eventually

REGISTRY = Details(ServiceType.MODEL_REGISTRY)


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    return authority.issue()


def trusting(authority: Authority, client: Issued | None = None) -> TlsFiles:
    pair = (
        (PemFile("tls_certificate", str(client.certificate)), PemFile("tls_key", str(client.key))) if client else None
    )
    return TlsFiles(PemFile("tls_ca", str(authority.certificate)), pair)


def registry_settings(shown: Issued | None, **others: Any) -> Settings:
    given: dict[str, Any] = {"grace_seconds": 0, "local_socket": "", "retention_seconds": 0, **others}
    return Settings(**given, **(shown.options if shown else {}))  # type: ignore[arg-type]


@asynccontextmanager
async def directory(shown: Issued | None = None, **settings: Any) -> AsyncIterator[str]:
    """Run a Directory, and return its endpoint."""
    given: dict[str, Any] = {"port": 0, "host": "127.0.0.1", "persistence_file": "", "grace_seconds": 0, **settings}
    given |= shown.options if shown else {}
    async with running(DirectorySettings(**given)) as server:
        yield f"{'grpcs' if shown else 'grpc'}://127.0.0.1:{server.port}"


async def has_registry(client: DirectoryClient, protocol: Protocol) -> bool:
    return [service.endpoint.protocol for service in await client.inquire(REGISTRY)] == [protocol]


async def test_a_directory_with_tls_accepts_registrations_over_tls(authority: Authority, shown: Issued) -> None:
    async with directory(shown) as endpoint:
        async with connected(endpoint, files=trusting(authority)) as client:
            service = Endpoint(Protocol.COGMENT, "named", 0)
            service_id, _ = await client.register(service, REGISTRY)
            assert [each.service_id for each in await client.inquire(REGISTRY)] == [service_id]
        async with connected(endpoint) as client:
            with pytest.raises(UnavailableError, match="its certificate is not trusted"):
                await client.inquire(REGISTRY)
        async with connected(endpoint.replace("grpcs", "grpc")) as client:
            with pytest.raises(UnavailableError, match="it requires TLS; use grpcs:// in place of grpc://"):
                await client.inquire(REGISTRY)


async def test_a_directory_can_require_certificates_of_its_clients(authority: Authority, shown: Issued) -> None:
    async with directory(shown, tls_client_ca=str(authority.certificate)) as endpoint:
        async with connected(endpoint, files=trusting(authority, shown)) as client:
            assert await client.inquire(REGISTRY) == []
        async with connected(endpoint, files=trusting(authority)) as client:
            with pytest.raises(UnavailableError, match="if it requires a client certificate, give tls_certificate"):
                await client.inquire(REGISTRY)


@pytest.mark.parametrize("is_required", [False, True], ids=["", "client certificates required"])
async def test_a_registry_with_tls_registers_with_tls_and_stays_registered(
    authority: Authority, shown: Issued, tmp_path: Path, is_required: bool
) -> None:
    """The Directory requests the load over TLS, and both sides present their certificate if the other requires one."""
    ca = str(authority.certificate)
    clients = {"tls_client_ca": ca} if is_required else {}
    async with directory(shown, check_tls_ca=ca, check_seconds=0.1, **clients) as endpoint:
        settings = registry_settings(shown, directory_endpoint=endpoint, directory_tls_ca=ca, **clients)
        async with (
            serving(tmp_path / "archive", settings) as server,
            connected(endpoint, files=trusting(authority, shown)) as client,
        ):
            await eventually(partial(has_registry, client, Protocol.GRPC_SSL))
            assert server.port == (await client.inquire(REGISTRY))[0].endpoint.port


def test_the_registered_protocol_shows_whether_tls_is_required(shown: Issued) -> None:
    assert registration_endpoint(registry_settings(shown, host="127.0.0.1"), 1)[0].protocol is Protocol.GRPC_SSL
    named = registry_settings(shown, directory_registration_host="registry.example")
    assert registration_endpoint(named, 1)[0] == Endpoint(Protocol.GRPC_SSL, "registry.example", 1)
    assert registration_endpoint(registry_settings(None, host="127.0.0.1"), 1)[0].protocol is Protocol.GRPC


def test_authorities_of_a_directory_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    settings = Settings(directory_endpoint="grpcs://d:1", directory_tls_ca=str(tmp_path / "no"), host="127.0.0.1")
    with pytest.raises(StartError, match=rf"^directory_tls_ca {tmp_path}/no cannot be read: No such file"):
        Registration(settings, 1)


async def test_files_that_vanish_are_an_error_of_the_next_connection(authority: Authority, tmp_path: Path) -> None:
    files = TlsFiles(PemFile("tls_ca", str(tmp_path / "no")))
    async with connected("grpcs://127.0.0.1:1", files=files) as client:
        with pytest.raises(ModelRegistryError, match=r"asking the Directory: tls_ca .* cannot be read"):
            await client.inquire(REGISTRY)


# Checks of services.


def service(port: int) -> Service:
    return Service(1, Endpoint(Protocol.GRPC_SSL, "127.0.0.1", port), REGISTRY)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Run a TCP server that answers each connection with some bytes, and return its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_service_with_tls_passes_if_it_speaks_tls(authority: Authority, shown: Issued, tmp_path: Path) -> None:
    for others in ({}, {"tls_client_ca": str(authority.certificate)}):
        async with serving(tmp_path / "archive", registry_settings(shown, **others)) as server:
            assert await check(service(server.port)) == 0
    async with serving(tmp_path / "archive", registry_settings(None)) as server:
        assert await check(service(server.port)) is None
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        async with answering(answer) as port:
            assert await check(service(port)) is None
    assert await check(service(free_port())) is None


async def test_the_load_of_a_service_with_tls_is_requested_if_its_authority_is_known(
    authority: Authority, shown: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "STATUS_TIMEOUTS_SECONDS", (0.5,))
    asked: list[str] = []
    ask_load = checks._ask_load

    async def noted(channel: Any, name: str, timeout_seconds: float) -> int:
        load = await ask_load(channel, name, timeout_seconds)
        asked.append(name)
        return load

    monkeypatch.setattr(checks, "_ask_load", noted)
    stranger = Authority(tmp_path, "stranger")
    settings = registry_settings(shown, tls_client_ca=str(authority.certificate))
    async with serving(tmp_path / "archive", settings) as server:
        assert await check(service(server.port), trusting(stranger, shown)) is None
        assert await check(service(server.port), trusting(authority)) is None  # it must present a certificate
        assert not asked
        while await check(service(server.port), trusting(authority, shown)) is None:
            pass  # half a second may be too short
        assert asked


async def test_checks_use_only_the_handshake_if_their_files_vanish(shown: Issued, tmp_path: Path) -> None:
    files = TlsFiles(PemFile("check_tls_ca", str(tmp_path / "no")))
    async with serving(tmp_path / "archive", registry_settings(shown)) as server:
        assert await check(service(server.port), files) == 0
