"""JSON Web Tokens of an issuer, over real channels, with its keys from a real HTTP server and from a file."""

import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from cogment_model_registry.errors import StartError, UnauthenticatedError, UnavailableError
from cogment_model_registry.records.access import Grant, identity_of, parse_scopes
from cogment_model_registry.server import composition, identities, issuer_keys
from cogment_model_registry.server import issuer as issuers
from cogment_model_registry.server.composition import Server
from cogment_model_registry.server.identities import Identities
from cogment_model_registry.server.issuer import Issuer, Pace, issuer_of
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.tools.tokens import add_grant, remove_grant
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import lifecycle, watching
from cogment_model_registry.wire import messages as m
from tests.client import connected
from tests.issued_tokens import (
    ALL_KEYS,
    AUDIENCE,
    ISSUER,
    KIDS,
    OTHER_RSA,
    P256,
    PRIVATE,
    RSA,
    SUBJECT,
    bad_tokens,
    claims_of,
    crafted,
    encoded,
    is_same,
    jwk,
    jwks,
    mutated,
    signed,
)
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS, eventually, until

DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
WATCH = f"/{lifecycle.SERVICE_NAME}/Watch"
RETRIEVE = f"/{m.SERVICE_NAMES[0]}/RetrieveModels"
CREATE = f"/{m.SERVICE_NAMES[0]}/CreateOrUpdateModel"
QUICK = Pace(read_seconds=0.05, failed_seconds=0.05, again_seconds=0.05)
DAY_NS = 86_400 * 10**9


class Website:
    """An HTTP server of the issuer.

    Attributes:
        pages: What it has, by path: bytes, or a function that writes the whole reply.
        requests: The paths that were asked for.
    """

    def __init__(self, port: int = 0) -> None:
        self.pages: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {"/keys": ALL_KEYS}
        self.requests: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append(self.path)
                page = site.pages.get(self.path)
                if callable(page):
                    page(self)
                    return
                self.send_response(404 if page is None else 200)
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the name is the library's
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="issuer of a test")
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def website(port: int = 0) -> Iterator[Website]:
    """An HTTP server."""
    site = Website(port)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def site() -> Iterator[Website]:
    with website() as one:
        yield one


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let keys be read often."""
    monkeypatch.setattr(issuers, "ADDRESS_PACE", QUICK)
    monkeypatch.setattr(issuers, "FILE_PACE", QUICK)


def settings_of(keys: str, **changes: Any) -> Settings:
    """Return the settings of a server that takes tokens."""
    return replace(
        Settings(
            grace_seconds=0,
            local_socket="",
            retention_seconds=0,
            anonymous="nothing",
            oidc_issuer=ISSUER,
            oidc_audience=AUDIENCE,
            oidc_keys=keys,
        ),
        **changes,
    )


class Caller:
    """Makes calls with tokens."""

    def __init__(self, channel: grpc.aio.Channel, server: Server) -> None:
        self.channel: Any = channel
        self.server = server
        self.details = ""

    async def reads(self, token: str, path: str = RETRIEVE, request: bytes = b"") -> grpc.StatusCode:
        """Return the status of a call, by default one that needs a scope to read."""
        metadata = [("authorization", f"Bearer {token}")]
        try:
            await self.channel.unary_unary(path)(request, metadata=metadata, timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            self.details = error.details() or ""
            return error.code()
        self.details = ""
        return grpc.StatusCode.OK

    async def creates(self, token: str, model_id: str) -> grpc.StatusCode:
        """Return the status of a call that needs a scope to publish or store."""
        request = m.CreateOrUpdateModelRequest(model_info=m.ModelInfo(model_id=model_id)).SerializeToString()
        return await self.reads(token, CREATE, request)


@asynccontextmanager
async def calling(tmp_path: Path, settings: Settings) -> AsyncIterator[Caller]:
    """A server, and what calls it."""
    async with serving(tmp_path / "archive", settings) as server, connected(server.port) as client:
        yield Caller(client.channel, server)


def subject_grant(name: str, *scopes: str, subject: str = SUBJECT, expires_ns: int | None = None) -> Grant:
    return Grant(name, "subject", subject, parse_scopes(scopes), time.time_ns(), expires_ns)


def key_file(tmp_path: Path, data: bytes = ALL_KEYS) -> str:
    path = tmp_path / "keys.json"
    path.write_bytes(data)
    return str(path)


OK = grpc.StatusCode.OK


@pytest.mark.parametrize("source", ["address", "file"])
async def test_tokens_of_each_algorithm_are_accepted(tmp_path: Path, site: Website, source: str) -> None:
    keys = f"{site.address}/keys" if source == "address" else key_file(tmp_path)
    kids = {id(private): kid for kid, private in KIDS.items()}
    async with calling(tmp_path, settings_of(keys)) as caller:
        for algorithm, private in PRIVATE.items():
            token = signed(private, kids[id(private)], algorithm, scope="read")
            assert await caller.reads(token) is OK, (algorithm, caller.details)
            assert await caller.creates(token, "m") is DENIED
            assert f"{SUBJECT} lacks the scope" in caller.details
    assert site.requests == (["/keys"] if source == "address" else [])


async def test_the_issuer_says_where_its_keys_are(tmp_path: Path, site: Website) -> None:
    metadata = {"issuer": f"{site.address}/realm/", "jwks_uri": f"{site.address}/keys"}
    site.pages["/realm/.well-known/openid-configuration"] = json.dumps(metadata).encode()
    settings = settings_of("", oidc_issuer=f"{site.address}/realm/")
    async with calling(tmp_path, settings) as caller:
        assert await caller.reads(signed(scope="read", iss=f"{site.address}/realm/")) is OK
        assert await caller.reads(signed(scope="read", iss=f"{site.address}/realm")) is UNKNOWN
    assert site.requests == ["/realm/.well-known/openid-configuration", "/keys"]


async def test_bad_tokens_are_refused(tmp_path: Path, site: Website) -> None:
    settings = settings_of(f"{site.address}/keys")
    async with calling(tmp_path, settings) as caller:
        assert await caller.reads(signed(scope="admin")) is OK
        for what, token in bad_tokens().items():
            status = await caller.reads(token)
            # Of the longest ones, gRPC refuses the call, since its metadata is too large.
            is_refused_by_grpc = len(token) > issuers.TOKEN_MAX_BYTES and status is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert status is UNKNOWN or is_refused_by_grpc, (what, status)
            assert len(token) < 20 or token[-20:] not in caller.details
        assert await caller.reads(signed(scope="admin")) is OK


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (lambda: signed(exp=1), "it has expired"),
        (lambda: signed(exp=None), "it has no exp"),
        (lambda: signed(nbf=2**33), "it is not valid yet (nbf)"),
        (lambda: signed(iss="x"), "its issuer (iss) is not that of this server"),
        (lambda: signed(aud="x"), "its audience (aud) is not that of this server"),
        (lambda: signed(OTHER_RSA), "its signature is wrong"),
        (lambda: signed(kid="x"), "its key (kid) is not among those of the issuer"),
        (lambda: signed(P256, "RSA", "ES256"), "its algorithm (alg) is not that of its key"),
        (lambda: crafted({"alg": "none"}, {}, b"x"), "its algorithm (alg) is not accepted"),
        (lambda: "a.b.c", "it is malformed"),
    ],
)
async def test_a_refusal_says_why(tmp_path: Path, token: Callable[[], str], reason: str) -> None:
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        assert await caller.reads(token()) is UNKNOWN
        assert caller.details == f"the token is not valid: {reason}"


async def test_no_mutation_of_a_token_is_accepted(tmp_path: Path) -> None:
    """Over the channel, whose metadata takes printable ASCII alone."""
    chance = random.Random(17)
    tokens = [signed(scope="admin"), signed(P256, "P256", "ES256", scope="admin")]
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        for _ in range(500):
            good = chance.choice(tokens)
            token = mutated(good, chance, [chr(code) for code in range(0x21, 0x7F)])
            if not is_same(token, good):
                assert await caller.reads(token) is UNKNOWN, token
        assert [await caller.reads(token) for token in tokens] == [OK, OK]


class Clock:
    """A clock that tests set, in nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()

    def __call__(self) -> int:
        return self.now_ns


def use_clock(monkeypatch: pytest.MonkeyPatch, issuer_class: type[Issuer] = Issuer) -> Clock:
    """Return the clock by which a server that starts from now on judges tokens."""
    clock = Clock()
    monkeypatch.setattr(issuers, "Issuer", partial(issuer_class, now_ns=clock))
    monkeypatch.setattr(composition, "Identities", partial(Identities, now_ns=clock))
    return clock


@asynccontextmanager
async def issuer_with(
    read_keys: Callable[[], bytes] = lambda: ALL_KEYS, clock: Callable[[], int] = time.time_ns, pace: Pace = QUICK
) -> AsyncIterator[Issuer]:
    """An issuer that has read its keys once."""
    issuer = Issuer(ISSUER, AUDIENCE, "scope", read_keys=read_keys, pace=pace, now_ns=clock)
    await issuer.read()
    yield issuer
    await issuer.close()


async def test_no_mutation_of_a_token_is_verified_nor_breaks_verifying() -> None:
    chance = random.Random(18)
    tokens = [signed(scope="admin"), signed(P256, "P256", "ES256", scope="admin")]
    alphabet = [*map(chr, range(0x21, 0x7F)), "\0", "\n", "é", "\ud800", "👍", "=", "-", "_", "."]
    accepted = 0
    async with issuer_with() as issuer:
        for _ in range(20_000):
            good = chance.choice(tokens)
            token = mutated(good, chance, alphabet)
            try:
                verified = issuer.verify(token)
            except UnauthenticatedError:
                continue
            accepted += verified is not None and not is_same(token, good)
    assert accepted == 0


@pytest.mark.parametrize("seed", range(4))
async def test_no_header_and_no_claims_break_verifying(seed: int) -> None:
    """Also claims that are signed: the issuer may be careless."""
    chance = random.Random(seed)
    values: list[object] = [None, True, 0, -1, 1e308, 10**30, "", "x", "RS256", "RSA", [], [[]], {}, {"a": 1}, ISSUER]
    members = ["alg", "kid", "typ", "crit", "b64", "jwk", "cty"]
    names = ["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "scope"]
    async with issuer_with() as issuer:
        for _ in range(500):
            header = {"alg": "RS256", "kid": "RSA"} | {
                name: chance.choice(values) for name in chance.choices(members, k=chance.randint(0, 2))
            }
            with contextlib.suppress(UnauthenticatedError):
                assert issuer.verify(crafted(header, claims_of(), b"x")) is None  # its key is unknown
            claims = claims_of(scope="admin") | {
                name: chance.choice(values) for name in chance.choices(names, k=chance.randint(0, 3))
            }
            token = jwt.api_jws.encode(json.dumps(claims).encode(), RSA, "RS256", {"kid": "RSA"})
            try:
                verified = issuer.verify(token)
            except UnauthenticatedError:
                continue
            assert verified is not None
            assert verified.subject == claims["sub"]
            assert claims["iss"] == ISSUER
            assert claims["aud"] == [AUDIENCE]
            assert claims["exp"] * 10**9 > time.time_ns()  # type: ignore[operator] # it is a number


async def test_leeway_is_for_the_beginning_and_not_for_the_end() -> None:
    clock = Clock()
    now = clock.now_ns // 10**9
    clock.now_ns = now * 10**9
    async with issuer_with(clock=clock) as issuer:
        assert issuer.verify(signed(nbf=now + 5, iat=now + 5, exp=now + 1)) is not None
        for late in (signed(nbf=now + 6), signed(iat=now + 6), signed(exp=now)):
            with pytest.raises(UnauthenticatedError):
                issuer.verify(late)


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("read:policy-* publish:x", ["read:policy-*", "publish:x"]),
        (["read", "alias:a/b", "read"], ["read", "alias:a/b"]),
        ("openid profile read:a/b admins store", ["store"]),
        (["openid", 7, None, ["admin"], "delete:m"], ["delete:m"]),
        (["read store"], []),
        ({"admin": True}, []),
        (True, []),
        (None, []),
        ("", []),
        ([f"read:m{number}" for number in range(150)], [f"read:m{number}" for number in range(100)]),
    ],
)
async def test_scopes_come_from_the_claim(claim: object, scopes: list[str]) -> None:
    async with issuer_with() as issuer:
        verified = issuer.verify(signed(scope=claim))
        assert verified is not None
        assert [str(scope) for scope in verified.scopes] == scopes


async def test_the_claim_of_scopes_is_a_setting(tmp_path: Path) -> None:
    name = "https://registry.example/scopes"
    claims: dict[str, Any] = {name: ["read"]}
    async with calling(tmp_path, settings_of(key_file(tmp_path), oidc_scopes_claim=name)) as caller:
        assert await caller.reads(signed(**claims)) is OK
        assert await caller.reads(signed(scope="read")) is DENIED


async def test_a_token_without_scopes_is_known_and_may_do_nothing(tmp_path: Path) -> None:
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        assert await caller.reads(signed()) is DENIED
        assert await caller.creates(signed(), "m") is DENIED
        assert await caller.reads(signed(), f"/{m.SERVICE_NAMES[0]}/Version") is OK


async def test_scopes_of_the_subject_are_added_changed_and_revoked(tmp_path: Path) -> None:
    archive = str(tmp_path / "archive")
    token, other = signed(scope="read"), signed(scope="read", sub=SUBJECT + "2")

    async def creates(model_id: str, expected: grpc.StatusCode) -> bool:
        return await caller.creates(token, model_id) is expected

    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        assert await caller.creates(token, "policy-1") is DENIED
        add_grant(archive, subject_grant("ci", "publish:policy-*"))
        await eventually(lambda: creates("policy-1", OK))
        assert await caller.reads(token) is OK
        assert await caller.creates(token, "value-1") is DENIED
        assert "ci lacks the scope" in caller.details
        assert await caller.creates(other, "policy-1") is DENIED
        remove_grant(archive, "ci")
        add_grant(archive, subject_grant("ci", "publish:value-*"))
        await eventually(lambda: creates("policy-1", DENIED))
        assert await caller.creates(token, "value-1") is OK
        remove_grant(archive, "ci")
        await eventually(lambda: creates("value-1", DENIED))
        assert await caller.reads(token) is OK


async def test_a_grant_for_a_subject_ends_by_itself(tmp_path: Path) -> None:
    add_grant(str(tmp_path / "archive"), subject_grant("ci", "admin", expires_ns=time.time_ns() - 1))
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        assert await caller.reads(signed()) is DENIED


async def test_the_subject_is_no_token(tmp_path: Path) -> None:
    """Neither a subject as a token, nor the hash of one, has what was granted to the subject."""
    add_grant(str(tmp_path / "archive"), subject_grant("ci", "admin", subject="a.b.c"))
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        for token in ("a.b.c", identity_of("a.b.c"), "ci", SUBJECT):
            assert await caller.reads(token) is UNKNOWN


async def test_tokens_of_the_registry_work_as_before(tmp_path: Path) -> None:
    add_grant(str(tmp_path / "archive"), Grant("own", "token", identity_of("cmr_own"), parse_scopes(["read"]), 0))
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        assert await caller.reads("cmr_own") is OK
        assert await caller.reads("cmr_other") is UNKNOWN


async def test_without_an_issuer_its_tokens_are_unknown(tmp_path: Path) -> None:
    settings = Settings(grace_seconds=0, local_socket="", anonymous="nothing")
    async with calling(tmp_path, settings) as caller:
        assert await caller.reads(signed(scope="admin")) is UNKNOWN


@pytest.mark.parametrize("source", ["address", "file"])
@pytest.mark.usefixtures("quick")
async def test_keys_are_rotated(tmp_path: Path, site: Website, source: str) -> None:
    site.pages["/keys"] = jwks(jwk(RSA, "old"))
    path = key_file(tmp_path, jwks(jwk(RSA, "old")))
    old, new = signed(RSA, "old", scope="read"), signed(OTHER_RSA, "new", scope="read")

    def publish(*keys: dict[str, object]) -> None:
        site.pages["/keys"] = jwks(*keys)
        Path(path).write_bytes(jwks(*keys))

    async def is_status(token: str, status: grpc.StatusCode) -> bool:
        return await caller.reads(token) is status

    async with calling(tmp_path, settings_of(f"{site.address}/keys" if source == "address" else path)) as caller:
        assert await caller.reads(old) is OK
        assert await caller.reads(new) is UNKNOWN
        publish(jwk(RSA, "old"), jwk(OTHER_RSA, "new"))
        await eventually(lambda: is_status(new, OK))
        assert await caller.reads(old) is OK
        publish(jwk(OTHER_RSA, "new"))
        await eventually(lambda: is_status(old, UNKNOWN))
        assert await caller.reads(new) is OK
        publish(jwk(RSA, "new"))  # another key of the same name
        await eventually(lambda: is_status(new, UNKNOWN))
        publish()
        await eventually(lambda: is_status(signed(RSA, "new", scope="read"), UNKNOWN))


async def test_unknown_keys_cause_few_readings(tmp_path: Path, site: Website, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a token whose key appears in the meantime is accepted without waiting for the next regular reading."""
    never = 10.0 * PATIENCE_SECONDS
    monkeypatch.setattr(issuers, "ADDRESS_PACE", Pace(read_seconds=never, failed_seconds=never, again_seconds=never))
    async with calling(tmp_path, settings_of(f"{site.address}/keys")) as caller:
        for number in range(50):
            assert await caller.reads(signed(OTHER_RSA, f"k{number}", scope="read")) is UNKNOWN
    assert site.requests == ["/keys"]
    site.requests.clear()
    monkeypatch.setattr(issuers, "ADDRESS_PACE", Pace(read_seconds=never, failed_seconds=never, again_seconds=0))
    async with calling(tmp_path, settings_of(f"{site.address}/keys")) as caller:
        site.pages["/keys"] = jwks(jwk(OTHER_RSA, "new"))
        assert await caller.reads(signed(OTHER_RSA, "new", scope="read")) is OK
        assert await caller.reads(signed(OTHER_RSA, "new", scope="read")) is OK
    assert site.requests == ["/keys", "/keys"]


@pytest.mark.usefixtures("quick")
async def test_a_server_starts_without_the_keys_and_gets_them_later(tmp_path: Path) -> None:
    port = free_port()
    token = signed(scope="read")

    async def is_accepted() -> bool:
        return await caller.reads(token) is OK

    with structlog.testing.capture_logs() as log:
        async with calling(tmp_path, settings_of(f"http://127.0.0.1:{port}/keys")) as caller:
            assert await caller.reads(token) is UNKNOWN
            assert caller.details == "the server has no keys of the issuer of the token; its log says why"
            with website(port):
                await eventually(is_accepted)
            assert await caller.reads(token) is OK, "keys are kept when the issuer is not available"
    warnings = [line for line in log if "failed" in line["event"]]
    assert {line["log_level"] for line in warnings} == {"warning"}
    assert len(warnings) <= 2  # before and after
    assert not any(part in repr(log) for part in token.split("."))


FAULTS: Mapping[str, Any] = {
    "no such page": None,
    "not JSON": b"<html>",
    "a list": b"[]",
    "no keys": b"{}",
    "keys that are none": b'{"keys": 7}',
    "nested": b"[" * 100_000,
    "not UTF-8": b'{"keys": "\xff"}',
    "endless": lambda handler: _write(handler, [b"HTTP/1.0 200 OK\r\n\r\n", *[b" " * 65536] * 40]),
    "not HTTP": lambda handler: _write(handler, [b"hello\r\n\r\n"]),
    "cut": lambda handler: _write(handler, [b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{}"]),
    "a redirection": lambda handler: _write(
        handler, [b"HTTP/1.0 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"]
    ),
    "a redirection to a file": lambda handler: _write(
        handler, [b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hosts\r\nContent-Length: 0\r\n\r\n"]
    ),
    "an error": lambda handler: _write(handler, [b"HTTP/1.0 503 No\r\nContent-Length: 0\r\n\r\n"]),
}


def _write(handler: BaseHTTPRequestHandler, blocks: Sequence[bytes]) -> None:
    try:
        for block in blocks:
            handler.connection.sendall(block)
    except OSError:
        pass  # the client has had enough
    handler.close_connection = True


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_is_logged_once_and_the_former_keys_stay(site: Website, fault: str) -> None:
    site.pages["/elsewhere"] = jwks(jwk(OTHER_RSA, "RSA"))
    async with issuer_with(issuer_keys.reader(ISSUER, f"{site.address}/keys")) as issuer:
        with structlog.testing.capture_logs() as log:
            site.pages["/keys"] = FAULTS[fault]
            if FAULTS[fault] is None:
                del site.pages["/keys"]
            for _ in range(3):
                await issuer.read()
        assert [line["log_level"] for line in log] == ["warning"]
        assert issuer.verify(signed()) is not None
        site.pages["/keys"] = jwks(jwk(OTHER_RSA, "RSA"))
        await issuer.read()
        assert issuer.verify(signed(OTHER_RSA)) is not None


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        {},
        {"jwks_uri": "KEYS"},
        {"issuer": "https://other", "jwks_uri": "KEYS"},
        {"issuer": "HERE"},
        {"issuer": "HERE", "jwks_uri": 7},
        {"issuer": "HERE", "jwks_uri": "file:///etc/hosts"},
        {"issuer": "HERE", "jwks_uri": "KEYS/missing"},
    ],
)
def test_metadata_of_the_issuer_is_checked(site: Website, metadata: Any) -> None:
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    text = text.replace(b"HERE", site.address.encode()).replace(b"KEYS", f"{site.address}/keys".encode())
    site.pages["/.well-known/openid-configuration"] = text
    with pytest.raises(UnavailableError):
        issuer_keys.reader(site.address, "")()


def test_the_keys_of_an_encrypted_issuer_come_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = json.dumps({"issuer": "https://a", "jwks_uri": "http://a/keys"}).encode()
    monkeypatch.setattr(issuer_keys, "_fetch", lambda address, deadline: metadata)
    with pytest.raises(UnavailableError, match="not encrypted"):
        issuer_keys.reader("https://a", "")()


@pytest.mark.parametrize("content", [None, b"", b" " * (2 << 20), b"x"])
async def test_a_file_that_has_no_keys_is_a_warning(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with structlog.testing.capture_logs() as log:
        async with issuer_with(issuer_keys.reader(ISSUER, str(path))) as issuer:
            await issuer.read()
            assert issuer.verify(signed()) is None
    assert [line["log_level"] for line in log] == ["warning"]


UNUSABLE = [
    {"kty": "oct", "k": encoded(b"x" * 32), "kid": "k"},
    {"kty": "oct", "k": encoded(b"x" * 32), "kid": "k", "alg": "HS256"},
    jwk(RSA, "k", use="enc"),
    jwk(RSA, "k", key_ops=["sign"]),
    jwk(RSA, "k", key_ops="verify"),
    jwk(RSA, "k", alg="ES256"),
    jwk(RSA, "k", alg="HS256"),
    jwk(RSA, "k", alg="none"),
    jwk(RSA, "k", alg=["RS256"]),
    {**jwk(RSA, "k"), "kid": 7},
    jwk(RSA, "k", kty="EC"),
    jwk(RSA, "k", kty=["RSA"]),
    jwk(RSA, "k", n="!"),
    jwk(RSA, "k", e=3.5),
    jwk(P256, "k", crv="P-384"),
    jwk(P256, "k", x=encoded(b"\1" * 32)),
    jwk(ec.generate_private_key(ec.SECP256K1()), "k"),
    jwk(rsa.generate_private_key(65537, 1024), "k"),
]


@pytest.mark.parametrize("key", UNUSABLE)
def test_unusable_keys_are_left_out(key: dict[str, object]) -> None:
    [usable] = issuer_keys.parse_keys(json.dumps({"keys": [key, 7, None, jwk(RSA, "good")]}).encode())
    assert usable.kid == "good"


async def test_a_key_verifies_its_own_algorithm_alone() -> None:
    async with issuer_with(lambda: jwks(jwk(RSA, "RSA", alg="PS256", use="sig", key_ops=["verify"]))) as issuer:
        assert issuer.verify(signed(algorithm="PS256")) is not None
        with pytest.raises(UnauthenticatedError, match="not that of its key"):
            issuer.verify(signed(algorithm="RS256"))


async def test_private_parts_of_published_keys_are_dropped() -> None:
    private: Any = jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True)
    assert "d" in private
    [key] = issuer_keys.parse_keys(jwks({**private, "key_ops": ["sign", "verify"]}))
    assert isinstance(key.public, rsa.RSAPublicKey)
    assert '"d"' not in key.members


async def test_a_token_without_the_name_of_a_key_needs_the_only_key() -> None:
    for kid in (None, "k"):
        async with issuer_with(lambda kid=kid: jwks(jwk(RSA, kid))) as issuer:  # type: ignore[misc]
            assert issuer.verify(signed(kid=None)) is not None
            with pytest.raises(UnauthenticatedError):
                issuer.verify(signed(OTHER_RSA, kid=None))


async def test_ed448_is_accepted() -> None:
    private = ed448.Ed448PrivateKey.generate()
    async with issuer_with(lambda: jwks(jwk(private, "k"))) as issuer:
        assert issuer.verify(signed(private, "k", "EdDSA")) is not None


async def test_a_token_is_verified_once_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []

    class CountingIssuer(Issuer):
        def verify(self, token: str) -> issuers.Verified | None:
            verified.append(token)
            return super().verify(token)

    clock = use_clock(monkeypatch, CountingIssuer)
    token = signed(scope="read", exp=clock.now_ns // 10**9 + 600)
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        for _ in range(5):
            assert await caller.reads(token) is OK
        assert len(verified) == 1
        clock.now_ns += 599 * 10**9
        assert await caller.reads(token) is OK
        clock.now_ns += 10**9
        for _ in range(2):
            assert await caller.reads(token) is UNKNOWN
            assert caller.details == "the token is not valid: it has expired"


class Decoding:
    """Counts how often signatures are checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        decode = jwt.decode

        def counting(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            return decode(*arguments, **options)

        monkeypatch.setattr(jwt, "decode", counting)


async def test_a_refused_token_that_is_repeated_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(monkeypatch)
    tokens = [signed(OTHER_RSA), signed(aud="other"), signed(sub="x" * 300), signed(exp=1), signed(kid="unknown")]
    async with issuer_with() as issuer:
        for token in tokens * 20:
            with contextlib.suppress(UnauthenticatedError):
                assert issuer.verify(token) is None
    assert decoding.count == len(tokens) - 1  # no key was there to check the last one


async def test_a_refused_token_is_accepted_as_soon_as_its_key_is_there() -> None:
    """Under a new name, under the name of another key, and as the only key."""
    keys = [jwk(RSA, "RSA")]
    others = [signed(OTHER_RSA, "new"), signed(OTHER_RSA, "RSA"), signed(OTHER_RSA, None)]
    async with issuer_with(lambda: jwks(*keys)) as issuer:
        for token, kid in zip(others, ("new", "RSA", "only"), strict=True):
            for _ in range(3):
                with contextlib.suppress(UnauthenticatedError):
                    assert issuer.verify(token) is None
            keys[:] = [jwk(OTHER_RSA, kid)]
            await issuer.read()
            assert issuer.verify(token) is not None
            keys[:] = [jwk(RSA, "RSA")]
            await issuer.read()
            with contextlib.suppress(UnauthenticatedError):
                assert issuer.verify(token) is None


async def test_a_refused_token_is_accepted_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, clock = Decoding(monkeypatch), Clock()
    now = clock.now_ns // 10**9
    token = signed(nbf=now + 100, exp=now + 200)
    async with issuer_with(clock=clock) as issuer:
        for seconds, is_valid in ((0, False), (94, False), (96, True), (199, True), (201, False), (0, False)):
            clock.now_ns = (now + seconds) * 10**9
            for _ in range(2):
                if is_valid:
                    assert issuer.verify(token) is not None
                else:
                    with pytest.raises(UnauthenticatedError, match=r"expired|not valid yet"):
                        issuer.verify(token)
    assert decoding.count == 1


async def test_what_is_kept_of_refused_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = Decoding(monkeypatch)
    head, _, signature = signed().rpartition(".")
    async with issuer_with() as issuer:
        for number in range(3000):
            with pytest.raises(UnauthenticatedError):
                issuer.verify(f"{head}.{number:08d}{signature[8:]}")
        assert len(issuer._checked) <= 1024
        assert issuer._checked.ttl <= 60
    assert decoding.count == 3000


async def test_callers_are_known_by_what_they_send_and_their_number_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "_KNOWN_MAX", 3)
    known: list[int] = []

    class CountingIssuer(Issuer):
        def verify(self, token: str) -> issuers.Verified | None:
            known.append(1)
            return super().verify(token)

    use_clock(monkeypatch, CountingIssuer)
    tokens = [signed(scope="read", jti=str(number)) for number in range(5)]
    async with calling(tmp_path, settings_of(key_file(tmp_path))) as caller:
        for token in tokens * 2:
            for _ in range(3):
                assert await caller.reads(token) is OK
    assert len(known) == 2 * len(tokens)  # each was forgotten for the others, and asked for only then


@pytest.mark.parametrize("end", ["expired", "revoked", "key withdrawn", "grant expired"])
@pytest.mark.usefixtures("quick")
async def test_a_watch_ends_with_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    archive, keys = tmp_path / "archive", key_file(tmp_path)
    clock = use_clock(monkeypatch)
    grant = subject_grant("ci", "read", expires_ns=clock.now_ns + 60 * 10**9 if end == "grant expired" else None)
    add_grant(str(archive), grant)
    async with calling(tmp_path, settings_of(keys)) as caller:
        token, admin = signed(exp=clock.now_ns // 10**9 + 600), signed(P256, "P256", "ES256", sub="a", scope="admin")
        metadata = [("authorization", f"Bearer {token}")]
        told = caller.channel.unary_stream(WATCH)(watching.WatchRequest().SerializeToString(), metadata=metadata)
        assert await told.read() is not grpc.aio.EOF
        if end == "expired":
            clock.now_ns += 601 * 10**9
            admin = signed(P256, "P256", "ES256", sub="a", scope="admin", exp=clock.now_ns // 10**9 + 600)
        elif end == "grant expired":
            clock.now_ns += 61 * 10**9
        elif end == "revoked":
            remove_grant(str(archive), "ci")
            await until_not_ok(caller, token)
        else:
            key_file(tmp_path, jwks(jwk(P256, "P256")))
            await until_not_ok(caller, token)
        assert await caller.creates(admin, "m") is OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_end(told)
        assert caught.value.code() is UNKNOWN


async def read_to_end(told: Any) -> None:
    while await told.read() is not grpc.aio.EOF:
        pass


async def until_not_ok(caller: Caller, token: str) -> None:
    async def is_refused() -> bool:
        return await caller.reads(token) is not OK

    await eventually(is_refused)


async def test_an_issuer_that_never_answers_delays_neither_calls_nor_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuers, "TOTAL_SECONDS", 0.1)
    never = 10.0 * PATIENCE_SECONDS
    monkeypatch.setattr(issuers, "ADDRESS_PACE", Pace(read_seconds=never, failed_seconds=0.01, again_seconds=0))
    add_grant(str(tmp_path / "archive"), Grant("own", "token", identity_of("own"), parse_scopes(["read"]), 0))
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = settings_of(f"http://127.0.0.1:{silent.getsockname()[1]}/keys")
        async with calling(tmp_path, settings) as caller:
            for _ in range(3):
                assert await caller.reads("own") is OK
                assert await caller.reads(signed(scope="read")) is UNKNOWN
                assert "has no keys" in caller.details
            new = set(threading.enumerate()) - before  # those of other tests may be ending
            threads = [thread for thread in new if thread.name == "server issuer keys"]
            assert len(threads) == 1
        started = time.monotonic()
    # The connection is closed with the socket, so the thread ends too.
    await until(lambda: not threads[0].is_alive())
    assert time.monotonic() - started < PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(oidc_issuer="https://a"), "oidc_audience is not"),
        (Settings(oidc_audience="a"), "oidc_issuer is not"),
        (Settings(oidc_keys="keys.json"), "oidc_issuer is not"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Settings, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        issuer_of(settings)


@pytest.mark.parametrize("package", ["jwt", "cryptography"])
async def test_missing_packages_fail_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StartError, match=r"pip install 'cogment-model-registry\[oidc\]'"):
        async with serving(tmp_path / "archive", settings_of("keys.json")):
            pass
    async with serving(tmp_path / "archive"):
        pass


@pytest.mark.parametrize(("host", "is_open"), [("issuer.example", True), ("127.0.0.1", False), ("localhost", False)])
def test_keys_that_come_without_encryption_are_a_warning(host: str, is_open: bool) -> None:
    with structlog.testing.capture_logs() as log:
        issuer_of(settings_of(f"http://{host}/keys"))
        issuer_of(settings_of(f"https://{host}/keys"))
    assert len(log) == is_open
