"""The client over TLS: trust, certificates, error messages, and that everything else works as without TLS."""

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, aio, errors
from cogment_model_registry.client import connection
from cogment_model_registry.client.encryption import (
    CA_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    encryption_of,
)
from cogment_model_registry.client.endpoints import ENDPOINT_VARIABLE, Direct, Discovered, locate
from cogment_model_registry.discovery.server import running as running_directory
from cogment_model_registry.records.services import Details, ServiceType
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import DirectorySettings, Settings
from cogment_model_registry.testing.server import serving
from tests.certificates import Authority, Issued
from tests.ports import free_port
from tests.processes import ServerProcess, clean_environment, server_process
from tests.registry_client.conftest import connection_of, opened_at
from tests.waiting import PATIENCE_SECONDS, eventually, until, wait_until


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    return authority.issue()


@pytest.fixture(scope="module")
def actor(authority: Authority) -> Issued:
    return authority.issue("actor", usage="clientAuth")


def settings_with(shown: Issued | None, **others: Any) -> Settings:
    given: dict[str, Any] = {"grace_seconds": 0, "local_socket": "", "retention_seconds": 0, **others}
    return Settings(**given, **(shown.options if shown else {}))  # type: ignore[arg-type]


# Arguments.


def test_an_endpoint_over_tls_is_one_of_grpcs() -> None:
    assert locate("grpcs://host:9002", environment={}) == Direct("host:9002", is_secure=True)
    assert str(locate(environment={ENDPOINT_VARIABLE: "grpcs://[::1]:9002"})) == "grpcs://[::1]:9002"
    found = locate(environment={"COGMENT_DIRECTORY_ENDPOINT": "grpcs://d:1"})
    assert found == Discovered("d:1", "", Details(ServiceType.MODEL_REGISTRY), is_directory_secure=True)
    assert str(found) == "the Directory at grpcs://d:1"


SECURE = Direct("host:9002", is_secure=True)


def test_arguments_override_variables_which_apply_only_to_tls(authority: Authority, actor: Issued) -> None:
    ca, certificate, key = str(authority.certificate), str(actor.certificate), str(actor.key)
    environment = {CA_VARIABLE: ca, CERTIFICATE_VARIABLE: certificate, KEY_VARIABLE: key}
    by_variables = encryption_of(SECURE, environment=environment)
    by_arguments = encryption_of(SECURE, authority.certificate, actor.certificate, actor.key, environment={})
    assert by_variables.last == by_arguments.last
    assert by_arguments.last.authorities == authority.certificate.read_bytes()
    assert by_arguments.is_wanted
    assert not encryption_of(Direct("host:9002"), environment={CA_VARIABLE: "no file"}).is_wanted
    assert not encryption_of(SECURE, environment={}).is_wanted
    assert encryption_of(SECURE, tls_ca="", environment=environment).files.authorities is None


@pytest.mark.parametrize("name", ["tls_ca", "tls_certificate", "tls_key"])
@pytest.mark.parametrize("endpoint", ["grpc://host:9002", None])
def test_an_argument_for_tls_without_tls_is_refused(name: str, endpoint: str | None) -> None:
    expected = rf'endpoint: "grpc://\S+" is not allowed; it must be grpcs://\S+:9002 where {name} is given'
    options: dict[str, Any] = {name: "file"}
    with pytest.raises(errors.SettingError, match=expected):
        ModelRegistry(endpoint, **options)


def test_a_certificate_without_a_key_is_refused_and_vice_versa(actor: Issued) -> None:
    with pytest.raises(errors.SettingError, match=r'tls_key: "" is not allowed; it must be the file of the key of'):
        ModelRegistry("grpcs://host:9002", tls_certificate=actor.certificate)
    with pytest.raises(errors.SettingError, match=r'tls_certificate: "" is not allowed; it must be the file of the'):
        ModelRegistry("grpcs://host:9002", tls_key=actor.key)


@pytest.mark.parametrize("name", ["tls_ca", "tls_certificate", "tls_key"])
@pytest.mark.parametrize("wrong", [1, b"\0", "a\0b", object()])
def test_an_argument_that_is_not_a_path_is_refused(name: str, wrong: Any) -> None:
    options: dict[str, Any] = {name: wrong}
    with pytest.raises(errors.InvalidError, match=f"^{name} is "):
        ModelRegistry("grpcs://host:9002", **options)


def test_files_that_cannot_be_used_are_named(
    authority: Authority, actor: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = "grpcs://host:9002"
    with pytest.raises(errors.InvalidError, match=rf"^tls_ca {tmp_path}/no cannot be read: No such file"):
        ModelRegistry(endpoint, tls_ca=tmp_path / "no")
    with pytest.raises(errors.InvalidError, match=r"^tls_ca \S+ has a private key and no certificate; name a file"):
        ModelRegistry(endpoint, tls_ca=actor.key)
    other = authority.issue("other")
    with pytest.raises(errors.InvalidError, match=r"^tls_key \S+ is not the key of tls_certificate \S+; name the key"):
        aio.ModelRegistry(endpoint, tls_certificate=actor.certificate, tls_key=other.key)
    monkeypatch.setenv(CA_VARIABLE, str(tmp_path / "no"))
    with pytest.raises(errors.InvalidError, match=rf"^{CA_VARIABLE} {tmp_path}/no cannot be read"):
        ModelRegistry(endpoint)


def test_a_client_shows_its_endpoint_and_no_key(authority: Authority, actor: Issued) -> None:
    registry = ModelRegistry("grpcs://host:9002", tls_ca=authority.certificate, **actor.options)  # type: ignore[arg-type]
    with registry:
        assert repr(registry) == "<ModelRegistry: grpcs://host:9002>"
        encryption = registry._core.calls.connection.encryption
        assert actor.key.read_text().splitlines()[1] not in repr(encryption)
        again = pickle.loads(pickle.dumps(registry))
    with again:
        assert again._core.calls.connection.encryption.last == encryption.last


# Calls.


async def test_calls_transfers_and_watches_work_over_tls(
    flavour: str, authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    large = os.urandom(5 * 2**20)
    async with (
        serving(tmp_path / "archive", settings_with(shown)) as server,
        opened_at(flavour, f"grpcs://127.0.0.1:{server.port}", tls_ca=authority.certificate) as registry,
    ):
        first = await registry.publish("walker", b"first")
        await registry.store("walker", large)
        assert await registry.retrieve(first) == b"first"
        assert await registry.retrieve("walker") == large
        await registry.download("walker", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == large
        async with registry.track("walker") as latest:
            await until(lambda: latest.version is not None and latest.version.number == 2)


@pytest.fixture
async def mutual(authority: Authority, shown: Issued, tmp_path: Path) -> AsyncIterator[Server]:
    """A server that requires certificates of its clients."""
    settings = settings_with(shown, tls_client_ca=str(authority.certificate))
    async with serving(tmp_path / "archive", settings) as server:
        yield server


async def test_tls_can_be_configured_by_variables_alone(
    flavour: str, authority: Authority, mutual: Server, actor: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, f"grpcs://localhost:{mutual.port}")
    monkeypatch.setenv(CA_VARIABLE, str(authority.certificate))
    monkeypatch.setenv(CERTIFICATE_VARIABLE, str(actor.certificate))
    monkeypatch.setenv(KEY_VARIABLE, str(actor.key))
    registry: Any
    if flavour == "asyncio":
        async with aio.ModelRegistry() as registry:
            assert await registry.list_models() == []
    else:
        with ModelRegistry() as registry:
            assert await asyncio.to_thread(registry.list_models) == []


# Errors. Each is raised at once, without retries, which would not help.


@asynccontextmanager
async def failing(flavour: str, endpoint: str, message: str, **options: Any) -> AsyncIterator[None]:
    async with opened_at(flavour, endpoint, retry_seconds=600, **options) as registry:
        with pytest.raises(errors.UnavailableError, match=message) as caught:
            await registry.list_models()
        assert not isinstance(caught.value, errors.StoppingError)
        assert "\n" not in caught.value.message
    yield


async def test_a_certificate_of_an_unknown_authority_says_what_to_check(
    flavour: str, authority: Authority, stranger: Authority, shown: Issued, tmp_path: Path
) -> None:
    async with serving(tmp_path / "archive", settings_with(shown)) as server:
        endpoint = f"grpcs://127.0.0.1:{server.port}"
        message = (
            rf"^listing the models: cannot connect to {endpoint}: its certificate is not trusted \(unable to get local "
            r"issuer certificate\); check that tls_ca names the file of the authority that issued it$"
        )
        async with failing(flavour, endpoint, message, tls_ca=stranger.certificate):
            pass
        async with failing(flavour, endpoint, message):  # this client trusts the public authorities
            pass


async def test_a_certificate_for_another_name_says_so(flavour: str, authority: Authority, tmp_path: Path) -> None:
    other = authority.issue("elsewhere", ("DNS:registry.example",))
    async with serving(tmp_path / "archive", settings_with(other)) as server:
        for host in ("127.0.0.1", "localhost"):
            message = f"its certificate is not for {host}; use a name that it has, or add this one to its subjectAlt"
            endpoint = f"grpcs://{host}:{server.port}"
            async with failing(flavour, endpoint, message, tls_ca=authority.certificate):
                pass


async def test_an_expired_certificate_says_so(flavour: str, authority: Authority, tmp_path: Path) -> None:
    expired = authority.issue("expired", days=-1)
    async with serving(tmp_path / "archive", settings_with(expired)) as server:
        endpoint, message = f"grpcs://127.0.0.1:{server.port}", "its certificate has expired; renew it there$"
        async with failing(flavour, endpoint, message, tls_ca=authority.certificate):
            pass


async def test_a_plain_client_of_a_server_with_tls_gets_an_error_that_says_so(
    flavour: str, shown: Issued, tmp_path: Path
) -> None:
    async with serving(tmp_path / "archive", settings_with(shown)) as server:
        endpoint = f"grpc://127.0.0.1:{server.port}"
        message = (
            rf"^listing the models: cannot connect to {endpoint}: it requires TLS; use grpcs:// in place of grpc://"
        )
        async with failing(flavour, endpoint, message):
            pass


async def test_a_client_with_tls_of_a_plain_server_gets_an_error_that_says_so(
    flavour: str, authority: Authority, tmp_path: Path
) -> None:
    async with serving(tmp_path / "archive", settings_with(None)) as server:
        endpoint = f"grpcs://127.0.0.1:{server.port}"
        message = f"cannot connect to {endpoint}: it does not use TLS; use grpc:// in place of grpcs://"
        async with failing(flavour, endpoint, message, tls_ca=authority.certificate):
            pass


async def test_a_client_without_the_required_certificate_gets_an_error_that_says_so(
    flavour: str, authority: Authority, stranger: Authority, mutual: Server
) -> None:
    endpoint = f"grpcs://127.0.0.1:{mutual.port}"
    message = "closes connections over TLS; if it requires a client certificate, give tls_certificate and tls_key$"
    async with failing(flavour, endpoint, message, tls_ca=authority.certificate):
        pass
    message = "it closes connections over TLS; check that it trusts the authority of tls_certificate$"
    wrong = stranger.issue("actor")
    async with failing(flavour, endpoint, message, tls_ca=authority.certificate, **wrong.options):
        pass


async def test_nothing_at_an_endpoint_over_tls_is_a_refused_connection(flavour: str, authority: Authority) -> None:
    endpoint = f"grpcs://127.0.0.1:{free_port()}"
    async with opened_at(flavour, endpoint, tls_ca=authority.certificate, retry_seconds=0) as registry:
        with pytest.raises(errors.UnavailableError, match=f"cannot connect to {endpoint}: Connection refused"):
            await registry.list_models()


# Renewal, forks, and the local socket.


async def test_renewed_files_of_the_client_are_read_by_the_call_that_needs_them(
    flavour: str, authority: Authority, stranger: Authority, shown: Issued, tmp_path: Path
) -> None:
    """The server gets a certificate of another authority, and the client's CA file is replaced too."""
    trusted, used = tmp_path / "ca.pem", Issued(tmp_path / "tls.crt", tmp_path / "tls.key")
    shutil.copy(authority.certificate, trusted)
    shutil.copy(shown.certificate, used.certificate)
    shutil.copy(shown.key, used.key)
    port = free_port()
    async with opened_at(flavour, f"grpcs://127.0.0.1:{port}", tls_ca=trusted) as registry:
        with server_process(tmp_path / "archive", *used.flags, f"--port={port}") as server:
            await registry.create_model("walker")
            server.stop()
        shutil.copy(stranger.certificate, trusted)
        used.replace_by(stranger.issue())
        with server_process(tmp_path / "archive", *used.flags, f"--port={port}") as server:
            assert [model.model_id for model in await registry.list_models()] == ["walker"]
            server.stop()


async def test_a_client_continues_when_its_files_vanish(
    flavour: str, authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    trusted, port = tmp_path / "ca.pem", free_port()
    shutil.copy(authority.certificate, trusted)
    async with opened_at(flavour, f"grpcs://127.0.0.1:{port}", tls_ca=trusted) as registry:
        trusted.unlink()
        with server_process(tmp_path / "archive", *shown.flags, f"--port={port}") as server:
            assert await registry.list_models() == []
            server.stop()


async def test_a_silent_channel_over_tls_is_replaced(
    flavour: str, authority: Authority, shown: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SILENCE_SECONDS", 0.0)
    silent = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        silent.set()

    port = free_port()
    mute = await asyncio.start_server(say_nothing, "127.0.0.1", port)
    async with opened_at(flavour, f"grpcs://127.0.0.1:{port}", tls_ca=authority.certificate) as registry:
        with pytest.raises((errors.TimedOutError, errors.UnavailableError)):
            await registry.list_models(timeout=0.5)
        await silent.wait()
        mute.close()
        for writer in writers:
            writer.close()
        with server_process(tmp_path / "archive", *shown.flags, f"--port={port}") as server:
            assert await registry.list_models() == []
            server.stop()


FORKING = """
import os, sys
from cogment_model_registry import ModelRegistry, errors
endpoint, ca = sys.argv[1:]
registry = ModelRegistry(endpoint, tls_ca=ca)
registry.create_model("walker")
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    registry.list_models()
except errors.ClosedError:
    with ModelRegistry(endpoint, tls_ca=ca) as own:
        assert [model.model_id for model in own.list_models()] == ["walker"]
        os._exit(0)
os._exit(1)
"""


def test_a_forked_process_uses_a_client_of_its_own(authority: Authority, shown: Issued, tmp_path: Path) -> None:
    with server_process(tmp_path / "archive", *shown.flags) as server:
        words = [f"grpcs://127.0.0.1:{server.port}", str(authority.certificate)]
        result = subprocess.run(
            [sys.executable, "-c", FORKING, *words],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        server.stop()


async def test_versions_go_through_the_local_socket_of_a_server_with_tls(
    flavour: str, authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    settings = settings_with(shown, local_socket=str(tmp_path / "socket"))
    data = os.urandom(2 * 2**20)
    async with (
        serving(tmp_path / "archive", settings) as server,
        opened_at(flavour, f"grpcs://127.0.0.1:{server.port}", tls_ca=authority.certificate) as registry,
    ):
        await registry.publish("walker", data)
        assert bytes(await registry.retrieve("walker", copy=False)) == data
        local = connection_of(registry).local
        assert local is not None
        assert local.path == str(tmp_path / "socket")


# Discovery.


@asynccontextmanager
async def directory(shown: Issued | None = None, **settings: Any) -> AsyncIterator[str]:
    """Run a Directory, and return its endpoint."""
    given: dict[str, Any] = {"port": 0, "host": "127.0.0.1", "persistence_file": "", "grace_seconds": 0, **settings}
    given |= shown.options if shown else {}
    async with running_directory(DirectorySettings(**given)) as server:
        yield f"{'grpcs' if shown else 'grpc'}://127.0.0.1:{server.port}"


async def lists_nothing(registry: Any) -> bool:
    """Return whether a registry is found and has no models; the Directory returns it only after a check."""
    try:
        return not await registry.list_models()
    except errors.NotFoundError:
        return False


@pytest.mark.parametrize("is_directory_secure", [False, True], ids=["plain directory", "secure directory"])
async def test_a_registry_with_tls_is_found_by_a_directory(
    flavour: str, authority: Authority, shown: Issued, tmp_path: Path, is_directory_secure: bool
) -> None:
    ca = str(authority.certificate)
    async with directory(shown if is_directory_secure else None, check_tls_ca=ca) as endpoint:
        settings = replace(
            settings_with(shown), directory_endpoint=endpoint, directory_tls_ca=ca if is_directory_secure else ""
        )
        async with (
            serving(tmp_path / "archive", settings),
            opened_at(flavour, "cogment://discover", directory_endpoint=endpoint, tls_ca=ca) as registry,
        ):
            await eventually(partial(lists_nothing, registry))


async def test_a_registry_without_tls_is_not_used_if_tls_is_required(
    flavour: str, authority: Authority, tmp_path: Path
) -> None:
    async with directory() as endpoint:
        settings = replace(settings_with(None), directory_endpoint=endpoint)
        async with serving(tmp_path / "archive", settings):
            async with opened_at(flavour, "cogment://discover", directory_endpoint=endpoint) as plain:
                await eventually(partial(lists_nothing, plain))
            options = {"directory_endpoint": endpoint, "tls_ca": authority.certificate}
            async with opened_at(flavour, "cogment://discover", **options) as registry:
                with pytest.raises(errors.NotFoundError, match="knows no ready model registry with TLS that matches"):
                    await registry.list_models()


async def test_a_plain_directory_endpoint_of_a_directory_with_tls_says_so(flavour: str, shown: Issued) -> None:
    async with directory(shown) as endpoint:
        plain = endpoint.replace("grpcs", "grpc")
        async with opened_at(flavour, "cogment://discover", directory_endpoint=plain, retry_seconds=0) as registry:
            with pytest.raises(errors.UnavailableError, match="it requires TLS; use grpcs:// in place of grpc://"):
                await registry.list_models()


# Renewal under load.


class Load:
    """Successive calls on a thread.

    Attributes:
        count: The number of calls.
        failures: Their failures.
    """

    def __init__(self, connect: Callable[[], ModelRegistry], call: Callable[[ModelRegistry], Any], calls: int) -> None:
        self.count = 0
        self.failures: list[BaseException] = []
        self._connect = connect
        self._call = call
        self._calls = calls
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            with self._connect() as registry:
                for _ in range(self._calls):
                    try:
                        self._call(registry)
                    except Exception as error:
                        self.failures.append(error)
                    self.count += 1
                    if self._is_over.is_set():
                        return

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_SECONDS)


def test_a_certificate_is_renewed_under_load_without_a_failed_call(authority: Authority, tmp_path: Path) -> None:
    issued = [authority.issue(f"load-{number}") for number in range(4)]
    files = Issued(tmp_path / "tls.crt", tmp_path / "tls.key")
    shutil.copy(issued[0].certificate, files.certificate)
    shutil.copy(issued[0].key, files.key)

    def connect() -> ModelRegistry:
        return ModelRegistry(f"grpcs://127.0.0.1:{server.port}", tls_ca=authority.certificate, retry_seconds=0)

    with server_process(tmp_path / "archive", *files.flags) as server:
        with connect() as first:
            first.publish("walker", b"weights")
        # One client stays connected; the others make a handshake for each call.
        loads = [
            Load(connect, lambda registry: registry.publish("walker", b"weights"), 10**9),
            *(Load(connect, lambda registry: registry.retrieve("walker"), 1) for _ in range(2)),
        ]
        try:
            for number, renewed in enumerate(issued[1:], 1):
                files.replace_by(renewed)
                wait_until(partial(has_renewed, server, number))
                wait_until(partial(have_called, loads, [load.count + 20 for load in loads]))
        finally:
            for load in loads:
                load.end()
        assert [failure for load in loads for failure in load.failures] == []
        assert server.stop() == 0
        assert not [line for line in server.lines if "warning" in line or "error" in line]


def has_renewed(server: ServerProcess, times: int) -> bool:
    return sum("certificate renewed" in line for line in server.lines) >= times


def have_called(loads: list[Load], counts: list[int]) -> bool:
    return all(load.failures or load.count >= count for load, count in zip(loads, counts, strict=True))
