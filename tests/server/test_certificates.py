"""TLS of both servers: which files they take, what they show, whom they let in, and how renewed files are taken."""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cogment_model_registry.errors import SettingError, StartError
from cogment_model_registry.serving import certificates as served
from cogment_model_registry.serving.certificates import Certificates, certificate_names, kept_certificates
from cogment_model_registry.settings import DirectorySettings, Settings, TlsSettings
from cogment_model_registry.system import certificates as pem
from cogment_model_registry.testing.server import serving
from tests.certificates import Authority, Issued, connected_over_tls, openssl
from tests.client import Client
from tests.processes import ServerProcess, clean_environment, server_process
from tests.waiting import PATIENCE_SECONDS, eventually, until, wait_until


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    """The certificate of servers."""
    return authority.issue()


@pytest.fixture(scope="module")
def actor(authority: Authority) -> Issued:
    """The certificate of a client."""
    return authority.issue("actor", ("URI:spiffe://example.org/actor", "DNS:actor-7"), usage="clientAuth")


def settings_with(shown: Issued, **others: Any) -> Settings:
    given: dict[str, Any] = {**shown.options, **others}
    return Settings(grace_seconds=0, local_socket="", retention_seconds=0, **given)


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


# Files that cannot be used.


def swapped(given: Issued, _directory: Path) -> Issued:
    return Issued(given.key, given.certificate)


def without_certificate(given: Issued, directory: Path) -> Issued:
    return Issued(directory / "no.pem", given.key)


def without_key(given: Issued, directory: Path) -> Issued:
    return Issued(given.certificate, directory / "no.key")


def with_text(given: Issued, directory: Path) -> Issued:
    (directory / "text").write_text("not a certificate\n")
    return Issued(directory / "text", given.key)


def with_another_key(given: Issued, directory: Path) -> Issued:
    return Issued(given.certificate, Authority(directory).issue("other").key)


def with_an_rsa_key(given: Issued, directory: Path) -> Issued:
    openssl("genpkey", "-algorithm", "RSA", "-out", directory / "rsa.key")
    return Issued(given.certificate, directory / "rsa.key")


def with_half_a_certificate(given: Issued, directory: Path) -> Issued:
    text = given.certificate.read_text()
    (directory / "half.pem").write_text(text[: len(text) // 2])
    return Issued(directory / "half.pem", given.key)


def with_half_a_key(given: Issued, directory: Path) -> Issued:
    text = given.key.read_text()
    (directory / "half.key").write_text(text[: len(text) // 2])
    return Issued(given.certificate, directory / "half.key")


def with_a_damaged_certificate(given: Issued, directory: Path) -> Issued:
    lines = given.certificate.read_text().splitlines(keepends=True)
    (directory / "damaged.pem").write_text("".join([lines[0], *lines[2:]]))
    return Issued(directory / "damaged.pem", given.key)


def with_a_damaged_key(given: Issued, directory: Path) -> Issued:
    lines = given.key.read_text().splitlines(keepends=True)
    (directory / "damaged.key").write_text("".join([lines[0], *lines[2:]]))
    return Issued(given.certificate, directory / "damaged.key")


def with_a_passphrase(given: Issued, directory: Path) -> Issued:
    openssl("pkey", "-in", given.key, "-aes256", "-passout", "pass:secret", "-out", directory / "locked.key")
    return Issued(given.certificate, directory / "locked.key")


def with_an_old_passphrase(given: Issued, directory: Path) -> Issued:
    openssl("ec", "-in", given.key, "-aes256", "-passout", "pass:secret", "-out", directory / "locked.key")
    return Issued(given.certificate, directory / "locked.key")


def of_edwards(_given: Issued, directory: Path) -> Issued:
    new = ("-newkey", "ed25519", "-nodes", "-subj", "/CN=localhost")
    openssl("req", "-x509", *new, "-keyout", directory / "ed.key", "-out", directory / "ed.pem")
    return Issued(directory / "ed.pem", directory / "ed.key")


def with_a_weak_key(_given: Issued, directory: Path) -> Issued:
    new = ("-newkey", "rsa:1024", "-nodes", "-subj", "/CN=localhost")
    openssl("req", "-x509", *new, "-keyout", directory / "weak.key", "-out", directory / "weak.pem")
    return Issued(directory / "weak.pem", directory / "weak.key")


def for_clients(_given: Issued, directory: Path) -> Issued:
    return Authority(directory).issue("client", usage="clientAuth")


def as_a_directory(given: Issued, directory: Path) -> Issued:
    return Issued(directory, given.key)


def too_large(given: Issued, directory: Path) -> Issued:
    (directory / "large.pem").write_bytes(b"\n" * (5 * 2**20))
    return Issued(directory / "large.pem", given.key)


REFUSED: dict[str, tuple[Callable[[Issued, Path], Issued], str]] = {
    "swapped": (swapped, r"tls_certificate \S+\.key has a private key and no certificate; name a file with"),
    "no certificate": (without_certificate, r"tls_certificate \S+no\.pem cannot be read: No such file .*; name a file"),
    "no key": (without_key, r"tls_key \S+no\.key cannot be read: No such file or directory; name a file"),
    "text": (with_text, r"tls_certificate \S+text has no certificate in PEM; name a file"),
    "directory": (as_a_directory, r"tls_certificate \S+ cannot be read: Is a directory; name a file"),
    "large": (too_large, r"tls_certificate \S+large\.pem has more than 4194304 bytes; name a file in PEM"),
    "another key": (with_another_key, r"tls_key \S+ is not the key of tls_certificate \S+; name the key"),
    "rsa key": (with_an_rsa_key, r"tls_key \S+rsa\.key is not the key of tls_certificate \S+; name the key"),
    "half a certificate": (with_half_a_certificate, r"half\.pem ends in the middle of a certificate; write it again"),
    "half a key": (with_half_a_key, r"tls_key \S+half\.key ends in the middle of a key; write it again"),
    "damaged certificate": (with_a_damaged_certificate, r"damaged\.pem has a damaged certificate, the one with"),
    "damaged key": (with_a_damaged_key, r"tls_key \S+damaged\.key has a damaged key; write it again"),
    "passphrase": (
        with_a_passphrase,
        r"tls_key \S+ is protected by a passphrase, .*; write a key without one",
    ),
    "old passphrase": (with_an_old_passphrase, r"tls_key \S+ is protected by a passphrase"),
    "edwards": (of_edwards, r"tls_key \S+ is an Ed25519 or Ed448 key, which gRPC cannot use; create an ECDSA"),
    "weak": (with_a_weak_key, r"tls_certificate \S+ is too weak \(ee key too small\); create an ECDSA key"),
    "for clients": (for_clients, r"tls_certificate \S+ is refused by clients: unsuitable certificate purpose; request"),
}


def secrets_of(path: Path) -> list[str]:
    """Return the lines of a file that must never be shown, if it is a key."""
    try:
        text = path.read_text()
    except (OSError, UnicodeError):
        return []
    return [line for line in text.splitlines() if len(line) > 20 and "-----" not in line] if "PRIVATE" in text else []


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
async def test_files_that_cannot_be_used_stop_the_start_with_one_line(
    shown: Issued, tmp_path: Path, change: Callable[[Issued, Path], Issued], message: str
) -> None:
    given = change(shown, tmp_path)
    with pytest.raises(StartError, match=message) as caught:
        Certificates(settings_with(given))
    assert "\n" not in caught.value.message
    for secret in [*secrets_of(given.key), *secrets_of(given.certificate)]:
        assert secret not in caught.value.message


async def test_authorities_of_clients_without_a_certificate_stop_the_start(shown: Issued, tmp_path: Path) -> None:
    for path, message in (
        (shown.key, "has a private key and no certificate"),
        (tmp_path / "no.pem", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(StartError, match=f"tls_client_ca {path} {message}"):
            Certificates(settings_with(shown, tls_client_ca=str(path)))


@pytest.mark.parametrize("kind", [Settings, DirectorySettings])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_certificate": "a.pem"}, r'tls_key: "" is not allowed; it must be the PEM file of the key of .* a\.pem'),
        ({"tls_key": "a.key"}, r'tls_certificate: "" is not allowed; it must be the PEM file of the certificate'),
        ({"tls_client_ca": "ca.pem"}, r'tls_client_ca: "ca\.pem" is not allowed; it must be unset without'),
        (
            {"tls_certificate": "a.pem", "tls_key": "a.key", "tls_require_client_certificate": True},
            r'tls_require_client_certificate: "true" is not allowed; it must be off unless tls_client_ca names',
        ),
    ],
)
async def test_settings_that_need_each_other_are_given_together(
    kind: Callable[..., TlsSettings], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        async with kept_certificates(kind(**given)):
            pass


@pytest.mark.parametrize("service", ["model_registry", "directory"])
def test_half_a_pair_is_a_wrong_setting(shown: Issued, tmp_path: Path, service: str) -> None:
    command = [sys.executable, "-m", "cogment_model_registry", "services", service, "--port=0"]
    result = subprocess.run(
        [*command, f"--tls_certificate={shown.certificate}"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith('error: tls_key: "" is not allowed; it must be the PEM file of the key')


@pytest.mark.parametrize("service", ["model_registry", "directory"])
def test_a_start_that_fails_prints_one_line_and_asks_for_no_passphrase(
    shown: Issued, tmp_path: Path, service: str
) -> None:
    given = with_a_passphrase(shown, tmp_path)
    command = [sys.executable, "-m", "cogment_model_registry", "services", service, "--port=0", *given.flags]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: tls_key {given.key} is protected by a passphrase")
    assert result.stderr.count("\n") == 1


async def test_an_expired_certificate_is_a_warning(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expired = authority.issue("expired", days=-1)
    async with (
        serving(tmp_path / "archive", settings_with(expired)) as server,
        connected_over_tls(server.port, authority) as client,
    ):
        with unavailable():
            await client.status()
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "certificate has expired" in warning.getMessage()


DAY = 86_400


@pytest.mark.parametrize(("days", "notice_days"), [(30, 5), (365, 14)])
def test_the_end_of_a_certificate_is_a_warning_a_day_before_it_comes(
    authority: Authority, caplog: pytest.LogCaptureFixture, days: int, notice_days: int
) -> None:
    now = time.time()
    certificates = Certificates(settings_with(authority.issue(f"for-{days}", days=days)), now=lambda: now)
    expires_at = certificates.expires_at
    assert expires_at == pytest.approx(now + days * DAY, abs=60)
    told = []
    for before_days in (notice_days + 0.1, notice_days - 0.1, notice_days - 0.2, notice_days - 1.2, 0.01, -0.01, -2):
        now = expires_at - before_days * DAY
        certificates.tell_expiry()
        told.append([record.getMessage() for record in caplog.records])
        caplog.clear()
    assert [len(messages) for messages in told] == [0, 1, 0, 1, 1, 1, 0]
    assert "certificate expires soon" in told[1][0]
    assert "certificate has expired" in told[5][0]


async def test_the_certificate_and_the_key_may_be_in_one_file_with_other_text(
    authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_text(f"made by hand: ä\n{shown.key.read_text()}{shown.certificate.read_text()}", encoding="latin-1")
    settings = settings_with(Issued(both, both))
    async with serving(tmp_path / "archive", settings) as server, connected_over_tls(server.port, authority) as client:
        assert (await client.status("archive"))["archive"] == "ok"


async def test_nothing_shows_a_key(shown: Issued) -> None:
    settings = settings_with(shown)
    certificates = Certificates(settings)
    texts = [repr(settings), repr(certificates), repr(certificates._loaded), str(vars(certificates))]
    secrets = secrets_of(shown.key)
    assert secrets
    assert not [text for text in texts for secret in secrets if secret in text]


# Connections.


async def test_a_server_with_a_certificate_takes_tls_and_nothing_else(
    authority: Authority, stranger: Authority, shown: Issued, tmp_path: Path
) -> None:
    async with serving(tmp_path / "archive", settings_with(shown)) as server:
        async with connected_over_tls(server.port, authority) as client:
            await client.create_model("walker")
            await client.store("walker", b"weights")
            assert await client.data("walker") == b"weights"
        async with connected_over_tls(server.port, stranger) as client:
            with unavailable():
                await client.status()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            with unavailable():
                await Client(channel).status()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("part", ["grpc", "http"])
async def test_versions_of_tls_before_1_2_are_refused(
    authority: Authority, shown: Issued, tmp_path: Path, part: str
) -> None:
    def version_with(newest: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        with socket_to(port) as plain, context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            return encrypted.version()

    async with serving(tmp_path / "archive", settings_with(shown, metrics_port=0)) as server:
        port = server.port if part == "grpc" else int(server.metrics_port or 0)
        for newest, version in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
            assert await asyncio.to_thread(version_with, newest) == version
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(version_with, ssl.TLSVersion.TLSv1_1)


def socket_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)


async def test_clients_must_show_a_certificate_of_the_authority(
    authority: Authority, stranger: Authority, shown: Issued, actor: Issued, tmp_path: Path
) -> None:
    settings = settings_with(shown, tls_client_ca=str(authority.certificate))
    async with serving(tmp_path / "archive", settings) as server:
        async with connected_over_tls(server.port, authority, actor) as client:
            assert (await client.status("archive"))["archive"] == "ok"
        for wrong in (None, stranger.issue("actor")):
            async with connected_over_tls(server.port, authority, wrong) as client:
                with unavailable():
                    await client.status()


async def test_clients_need_no_certificate_where_that_is_switched_off(
    authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    ca = str(authority.certificate)
    settings = settings_with(shown, tls_client_ca=ca, tls_require_client_certificate=False)
    async with serving(tmp_path / "archive", settings) as server, connected_over_tls(server.port, authority) as client:
        assert (await client.status("archive"))["archive"] == "ok"


@asynccontextmanager
async def telling_names(certificates: Certificates | None) -> AsyncIterator[int]:
    """Run a server that answers with the names in the client's certificate, and return its port."""

    async def tell(_request: object, context: Any) -> bytes:
        return json.dumps(certificate_names(context)).encode()

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Names": grpc.unary_unary_rpc_method_handler(tell)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", handlers)])
    if certificates is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def names_reported(channel: Any) -> list[str]:
    names: list[str] = json.loads(await channel.unary_unary("/test/Names")(b"", timeout=PATIENCE_SECONDS))
    return names


async def test_a_call_tells_the_names_of_the_client_certificate(
    authority: Authority, shown: Issued, actor: Issued
) -> None:
    certificates = Certificates(settings_with(shown, tls_client_ca=str(authority.certificate)))
    async with telling_names(certificates) as port, connected_over_tls(port, authority, actor) as client:
        assert await names_reported(client.channel) == ["actor", "spiffe://example.org/actor", "actor-7"]


async def test_a_call_without_a_verified_certificate_has_no_names(
    authority: Authority, shown: Issued, actor: Issued
) -> None:
    certificates = Certificates(settings_with(shown))
    async with telling_names(certificates) as port, connected_over_tls(port, authority, actor) as client:
        assert await names_reported(client.channel) == []
    async with telling_names(None) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await names_reported(channel) == []


def answer(port: int | None, path: str, authority: Authority, client: Issued | None = None) -> tuple[int, str]:
    """Return the status and the text of what a GET over TLS answers."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    try:
        address = f"https://localhost:{port}{path}"
        reply = urllib.request.urlopen(address, timeout=PATIENCE_SECONDS, context=context)
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return reply.status, reply.read().decode()


async def test_metrics_and_health_are_served_over_tls_too(
    authority: Authority, stranger: Authority, shown: Issued, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path / "archive", settings_with(shown, metrics_port=0)) as server:
        port = server.metrics_port
        assert await asyncio.to_thread(answer, port, "/healthz", authority) == (200, "ok\n")
        status, text = await asyncio.to_thread(answer, port, "/metrics", authority)
        assert (status, "cogment_model_registry_calls_total" in text) == (200, True)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(answer, port, "/metrics", stranger)
        with pytest.raises((urllib.error.URLError, ConnectionError)):  # without TLS
            await asyncio.to_thread(urllib.request.urlopen, f"http://localhost:{port}/healthz")
    assert capfd.readouterr() == ("", "")


async def test_a_silent_connection_does_not_keep_others_from_health(
    authority: Authority, shown: Issued, tmp_path: Path
) -> None:
    async with serving(tmp_path / "archive", settings_with(shown, metrics_port=0)) as server:
        with socket_to(server.metrics_port or 0):
            assert await asyncio.to_thread(answer, server.metrics_port, "/healthz", authority) == (200, "ok\n")


async def test_metrics_need_a_client_certificate_where_calls_do_and_health_needs_none(
    authority: Authority, shown: Issued, actor: Issued, tmp_path: Path
) -> None:
    settings = settings_with(shown, metrics_port=0, tls_client_ca=str(authority.certificate))
    async with serving(tmp_path / "archive", settings) as server:
        port = server.metrics_port
        assert await asyncio.to_thread(answer, port, "/readyz", authority) == (200, "ok\n")
        status, text = await asyncio.to_thread(answer, port, "/metrics", authority)
        assert (status, text.startswith("forbidden: metrics need a client certificate")) == (403, True)
        assert (await asyncio.to_thread(answer, port, "/metrics", authority, actor))[0] == 200


# What the log says at the start.


@pytest.mark.parametrize("service", ["model_registry", "directory"])
def test_a_server_for_other_machines_without_tls_warns_once(tmp_path: Path, service: str) -> None:
    flags = ["--log_format=json", *([] if service == "model_registry" else [f"--persistence_file={tmp_path}/file"])]
    with server_process(tmp_path / "archive", *flags, "--host=*", service=service) as process:
        assert levels_of(process) == ["warning", "info"]
        assert "set tls_certificate and tls_key, or host=127.0.0.1" in process.lines[0]
        process.stop()
    with server_process(tmp_path / "archive", *flags, service=service) as process:
        assert levels_of(process) == ["info"]
        process.stop()


@pytest.mark.parametrize("service", ["model_registry", "directory"])
def test_a_server_with_tls_says_so_when_it_serves(
    authority: Authority, shown: Issued, tmp_path: Path, service: str
) -> None:
    flags = ["--log_format=json", *([] if service == "model_registry" else [f"--persistence_file={tmp_path}/file"])]
    with server_process(tmp_path / "archive", *flags, *shown.flags, "--host=*", service=service) as process:
        assert levels_of(process) == ["info"]
        assert json.loads(process.lines[0])["tls"] == "on"
        process.stop()
    clients = f"--tls_client_ca={authority.certificate}"
    with server_process(tmp_path / "archive", *flags, *shown.flags, clients, service=service) as process:
        assert json.loads(process.lines[0])["tls"] == "client certificates required"
        process.stop()


def levels_of(process: ServerProcess) -> list[str]:
    """Return the levels of the log up to the line that says that the server serves."""
    process.wait_for_line('"event": "serving"')
    return [json.loads(line)["level"] for line in process.lines]


# Renewal.


class Renewed:
    """Files that a server uses, and others to renew them with."""

    def __init__(self, authority: Authority, directory: Path) -> None:
        directory.mkdir()
        first = authority.issue("first")
        self.next = authority.issue("next")
        self.files = Issued(directory / "tls.crt", directory / "tls.key")
        shutil.copy(first.certificate, self.files.certificate)
        shutil.copy(first.key, self.files.key)


@pytest.fixture
def renewed(authority: Authority, tmp_path: Path) -> Renewed:
    return Renewed(authority, tmp_path / "tls")


def name_shown(port: int, authority: Authority) -> str:
    """Return the common name in the certificate that a server shows."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.set_alpn_protocols(["h2"])
    with socket_to(port) as plain, context.wrap_socket(plain, server_hostname="localhost") as encrypted:
        subject = dict(pair for part in (encrypted.getpeercert() or {})["subject"] for pair in part)  # type: ignore[misc]
        return str(subject["commonName"])


async def shows(port: int | None, authority: Authority, name: str) -> bool:
    return await asyncio.to_thread(name_shown, port or 0, authority) == name


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_renewed_files_are_taken_by_both_ports_without_a_restart(
    authority: Authority, renewed: Renewed, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path / "archive", settings_with(renewed.files, metrics_port=0)) as server,
        connected_over_tls(server.port, authority) as before,
    ):
        assert await shows(server.port, authority, "first")
        await before.status()
        renewed.files.replace_by(renewed.next)
        await eventually(lambda: shows(server.port, authority, "next"))
        await eventually(lambda: shows(server.metrics_port, authority, "next"))
        assert (await before.status("archive"))["archive"] == "ok"  # on the connection from before
        async with connected_over_tls(server.port, authority) as after:
            assert (await after.status("archive"))["archive"] == "ok"


async def test_a_renewed_certificate_is_reported_again_only_before_its_own_end(
    authority: Authority, renewed: Renewed, caplog: pytest.LogCaptureFixture
) -> None:
    first = Certificates(settings_with(renewed.files)).expires_at
    now = first - DAY
    certificates = Certificates(settings_with(renewed.files), now=lambda: now)
    assert len(warnings_in(caplog)) == 1
    looking = asyncio.create_task(certificates.keep_current())
    try:
        renewed.files.replace_by(authority.issue("longer", days=90))
        certificates.look_now()
        await until(lambda: certificates.expires_at > first)
        now = first + DAY
        certificates.tell_expiry()
        assert len(warnings_in(caplog)) == 1
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_files_behind_a_link_are_taken_when_the_link_is_swapped(
    authority: Authority, renewed: Renewed, tmp_path: Path
) -> None:
    """As Kubernetes replaces a secret: the files are links through a link to a directory."""
    mount = tmp_path / "mount"
    for name, issued in (("..1", renewed.files), ("..2", renewed.next)):
        (mount / name).mkdir(parents=True)
        shutil.copy(issued.certificate, mount / name / "tls.crt")
        shutil.copy(issued.key, mount / name / "tls.key")
    (mount / "..data").symlink_to("..1")
    files = Issued(mount / "tls.crt", mount / "tls.key")
    files.certificate.symlink_to("..data/tls.crt")
    files.key.symlink_to("..data/tls.key")
    async with serving(tmp_path / "archive", settings_with(files)) as server:
        assert await shows(server.port, authority, "first")
        (mount / "..new").symlink_to("..2")
        (mount / "..new").replace(mount / "..data")
        await eventually(lambda: shows(server.port, authority, "next"))


async def test_bad_files_keep_the_previous_certificate_and_are_reported_once(
    authority: Authority,
    renewed: Renewed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(served, "LOOK_SECONDS", 0.01)
    looks = 0
    state_of = served._state_of

    def counted_state_of(path: str) -> tuple[int, ...]:
        nonlocal looks
        looks += 1
        return state_of(path)

    def has_looked(times: int) -> bool:
        return looks >= times

    monkeypatch.setattr(served, "_state_of", counted_state_of)
    async with serving(tmp_path / "archive", settings_with(renewed.files)) as server:
        for content in (b"", renewed.next.certificate.read_bytes()[:100], renewed.next.certificate.read_bytes()):
            caplog.clear()
            renewed.files.certificate.write_bytes(content)
            await until(lambda: warnings_in(caplog))
            enough = looks + 20
            await until(functools.partial(has_looked, enough))
            [warning] = warnings_in(caplog)
            assert "renewed certificate refused; the previous one stays in use" in warning
            assert await shows(server.port, authority, "first")
        renewed.files.replace_by(renewed.next)
        await eventually(lambda: shows(server.port, authority, "next"))


async def test_files_that_vanish_keep_the_previous_certificate(
    authority: Authority, renewed: Renewed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "archive", settings_with(renewed.files)) as server:
        renewed.files.key.unlink()
        await until(lambda: warnings_in(caplog))
        [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
        reason = f"tls_key {renewed.files.key} cannot be read: No such file or directory; name a file that exists"
        assert str(vars(warning)["reason"]).startswith(reason)
        assert await shows(server.port, authority, "first")


async def test_files_that_were_written_again_with_the_same_contents_are_not_news(
    authority: Authority, renewed: Renewed, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(settings_with(renewed.files))
    renewed.files.certificate.write_bytes(renewed.files.certificate.read_bytes())
    assert certificates._look(is_asked=False) is None
    assert certificates._look(is_asked=True) is None


async def test_a_pair_in_the_middle_of_being_renewed_is_not_reported(renewed: Renewed) -> None:
    certificates = Certificates(settings_with(renewed.files))
    shutil.copy(renewed.next.certificate, renewed.files.certificate)
    assert certificates._look(is_asked=False) is None  # the certificate is new, and the key old
    shutil.copy(renewed.next.key, renewed.files.key)
    assert certificates._look(is_asked=False) is not None


async def test_a_file_that_changes_while_it_is_read_is_refused(
    renewed: Renewed, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = pem._load

    def load_slowly(*given: Any) -> None:
        load(*given)
        renewed.files.replace_by(renewed.next)

    monkeypatch.setattr(pem, "_load", load_slowly)
    with pytest.raises(StartError, match="changed while it was read; try again when both are complete"):
        Certificates(settings_with(renewed.files))


async def test_renewed_authorities_of_clients_count_for_new_connections(
    authority: Authority, stranger: Authority, shown: Issued, actor: Issued, tmp_path: Path
) -> None:
    clients = tmp_path / "clients.pem"
    shutil.copy(authority.certificate, clients)
    other = stranger.issue("actor")

    async def is_let_in(client: Issued) -> bool:
        async with connected_over_tls(server.port, authority, client) as connection:
            try:
                await connection.status()
            except grpc.aio.AioRpcError:
                return False
            return True

    async with serving(tmp_path / "archive", settings_with(shown, tls_client_ca=str(clients))) as server:
        assert [await is_let_in(each) for each in (actor, other)] == [True, False]
        shutil.copy(stranger.certificate, clients)
        await eventually(lambda: is_let_in(other))
        assert not await is_let_in(actor)


@pytest.mark.parametrize("service", ["model_registry", "directory"])
def test_sighup_takes_renewed_files_and_reports_bad_ones_each_time(
    authority: Authority, renewed: Renewed, tmp_path: Path, service: str
) -> None:
    flags = [*renewed.files.flags, *([] if service == "model_registry" else [f"--persistence_file={tmp_path}/file"])]
    with server_process(tmp_path / "archive", *flags, service=service) as process:
        renewed.files.replace_by(renewed.next)
        process.signal(signal.SIGHUP)
        process.wait_for_line("certificate renewed")
        assert name_shown(process.port, authority) == "next"
        renewed.files.key.unlink()

        def reports() -> int:
            return sum("renewed certificate refused" in line for line in process.lines)

        process.wait_for_line("renewed certificate refused")
        before = reports()
        process.signal(signal.SIGHUP)
        wait_until(lambda: reports() > before)
        assert process.stop() == 0


def test_a_key_that_only_its_owner_reads_is_enough(renewed: Renewed) -> None:
    renewed.files.key.chmod(stat.S_IRUSR)
    assert os.stat(renewed.files.key).st_mode & 0o777 == 0o400
    context = pem.new_context(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = renewed.files.certificate, renewed.files.key
    pair = pem.read_pair(pem.PemFile("certificate", str(certificate)), pem.PemFile("key", str(key)), context)
    begins, expires = pem.validity_seconds(context, pair)
    assert begins <= time.time() < expires
