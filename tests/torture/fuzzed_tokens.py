"""Credentials of any shape, and scopes of any text: nobody gets in, or does something, who may not.

The first proof sends credentials to a real server over one connection: own tokens and JSON Web Tokens, good ones and
spoilt ones, and `authorization` headers of any shape. What no client can send, since gRPC takes printable ASCII alone,
is given to the code behind it. Which of them are good is known from how they were made. Those that are good make calls,
and whether they may is decided here too, by `allows`, which shares no code with the server.

The second one compares how the server reads scopes and matches patterns with an oracle, without a server.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import grpc
import grpc.aio
import jwt

from cogment_model_registry.errors import InvalidError, UnauthenticatedError
from cogment_model_registry.records.access import Action, Grant, Need, Scope, identity_of, parse_scopes
from cogment_model_registry.records.access import matches as matches_pattern
from cogment_model_registry.server.identities import Identities
from cogment_model_registry.server.issuer import FILE_PACE, Issuer
from cogment_model_registry.serving.calls import Call
from cogment_model_registry.storage.tools.tokens import add_grant, remove_grant
from cogment_model_registry.wire import lifecycle, models
from cogment_model_registry.wire import messages as m
from tests.client import connected
from tests.issued_tokens import (
    ALL_KEYS,
    AUDIENCE,
    ISSUER,
    KIDS,
    OTHER_RSA,
    PRIVATE,
    PUBLIC_TEXT,
    bad_tokens,
    claims_of,
    crafted,
    encoded,
    is_same,
    mutated,
    signed,
)
from tests.processes import ServerProcess
from tests.torture.oracle import fork, in_round, unharmed_server
from tests.torture.proof import Figures, Proof
from tests.waiting import PATIENCE_SECONDS

_AT_ONCE = 16
_GRANTS = 60
_ISSUED = 60
_METADATA_BYTES = 7000
"""Above it, gRPC may refuse a call itself, because its metadata is too large."""

_PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]
_WORDS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_ODD = ["\0", "\n", "\x7f", "é", "\u202e", "\ud800", "\U0001f511", "ſ", "İ"]
_ACTIONS = ("read", "publish", "store", "alias", "delete", "admin")
_WINDOW = 16
"""How many characters of a credential in a line of the log count as showing it."""


# The oracle: what scopes allow.


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches a text: by all ways at once, one character of the pattern after the other."""
    ends = {0}
    for letter in pattern:
        if letter == "*":
            ends = set(range(min(ends), len(text) + 1)) if ends else set()
        else:
            ends = {end + 1 for end in ends if text[end : end + 1] == letter}
    return len(text) in ends


def read_scope(text: str) -> tuple[str, str, str] | None:
    """Return the action and the patterns of models and aliases of a scope; None for what is no scope."""
    action, colon, rest = text.partition(":")
    models_pattern, slash, aliases_pattern = rest.partition("/")
    if action not in _ACTIONS or (slash and action != "alias"):
        return None
    for given, pattern in ((colon, models_pattern), (slash, aliases_pattern)):
        is_good = 1 <= len(pattern.encode("utf-8", "replace")) <= 255 and pattern.isprintable() and "/" not in pattern
        if given and not is_good:
            return None
    return action, models_pattern if colon else "*", aliases_pattern if slash else "*"


def allows(scopes: Sequence[str], actions: Sequence[str], model_id: str, alias: str = "") -> bool:
    """Return whether one of the scopes allows one of the actions on a model, and on an alias if it is about one."""
    for action, models_pattern, aliases_pattern in filter(None, map(read_scope, scopes)):
        if not matches(models_pattern, model_id):
            continue
        if action == "admin" or (action in actions and (not alias or matches(aliases_pattern, alias))):
            return True
    return False


# Scopes and patterns.


def some_pattern(random: Random) -> str:
    """Return a pattern of a few letters and stars, so that texts match often enough."""
    return "".join(random.choices("ab*-", (3, 3, 2, 1), k=random.randint(1, 7)))


def some_name(random: Random, pattern: str) -> str:
    """Return the name of a model that a pattern may match, or may just not."""
    name = "".join(
        "".join(random.choices("ab-", k=random.randint(0, 3))) if letter == "*" else letter for letter in pattern
    )
    if random.random() < 0.4:
        place = random.randint(0, len(name))
        name = name[:place] + random.choice(("a", "b", "-", "", "")) + name[place + random.randint(0, 1) :]
    return name or "a"


def some_scope(random: Random) -> str:
    """Return a scope that is well formed."""
    action = random.choice(_ACTIONS)
    if random.random() < 0.2:
        return action
    return f"{action}:{some_pattern(random)}" + (
        f"/{some_pattern(random)}" if action == "alias" and random.random() < 0.6 else ""
    )


# Credentials.


@dataclass(frozen=True)
class Credential:
    """What comes with a call.

    Attributes:
        kind: How it was made.
        values: The values of the metadata `authorization`.
        scopes: What its holder may do; None if it must be refused.
        is_open: Whether it may as well be refused: it is a good one in another spelling.
    """

    kind: str
    values: tuple[str, ...]
    scopes: tuple[str, ...] | None = None
    is_open: bool = False

    @property
    def is_sendable(self) -> bool:
        """Whether gRPC sends it."""
        return all(value.isascii() and value.isprintable() for value in self.values)

    @property
    def bytes(self) -> int:
        return sum(map(len, self.values))


class Wallet:
    """Good tokens of both kinds, and ways to spoil them.

    Args:
        archive_dir: The archive directory of the server, which gets the grants.
        random: The source of all choices.
    """

    def __init__(self, archive_dir: Path, random: Random) -> None:
        self._random = random
        self.grants: list[Grant] = []
        self._own: dict[str, tuple[str, ...]] = {}
        self._over: list[str] = []
        for number in range(_GRANTS):
            token = "cmr_" + self._letters(43)
            scopes = tuple(some_scope(random) for _ in range(random.randint(1, 4)))
            now_ns = time.time_ns()
            over = random.choice(("", "", "", "", "expired", "revoked"))
            expires_ns = now_ns - 1 if over == "expired" else None
            grant = Grant(f"g{number}", "token", identity_of(token), parse_scopes(scopes), now_ns, expires_ns)
            add_grant(str(archive_dir), grant)
            if over == "revoked":
                remove_grant(str(archive_dir), grant.name)
            else:
                self.grants.append(grant)
            if over:
                self._over.append(token)
            else:
                self._own[token] = scopes
        self._issued = dict(self._issue(archive_dir) for _ in range(_ISSUED))
        self._bad = {token for token in bad_tokens().values() if token}

    def _letters(self, count: int) -> str:
        return "".join(self._random.choices(_WORDS, k=count))

    def _issue(self, archive_dir: Path) -> tuple[str, tuple[str, ...]]:
        """Return a good token of the issuer, and what its holder may do."""
        random = self._random
        algorithm = random.choice(list(PRIVATE))
        kid = next(kid for kid, private in KIDS.items() if private is PRIVATE[algorithm])
        words = [some_scope(random) if random.random() < 0.7 else self._letters(5) for _ in range(random.randint(0, 4))]
        subject = f"subject-{self._letters(8)}"
        granted: tuple[str, ...] = ()
        if random.random() < 0.5:
            granted = tuple(some_scope(random) for _ in range(2))
            grant = Grant(f"for {subject}", "subject", subject, parse_scopes(granted), time.time_ns())
            add_grant(str(archive_dir), grant)
            self.grants.append(grant)
        claim = random.choice((words, " ".join(words)))
        token = signed(PRIVATE[algorithm], kid, algorithm, sub=subject, scope=claim, exp=int(time.time()) + 10**6)
        return token, (*words, *granted)

    def draw(self) -> Credential:
        """Return the next credential."""
        return self._random.choice(_DRAWS)(self)

    def own(self) -> Credential:
        token, scopes = self._random.choice(list(self._own.items()))
        return Credential("good own token", (f"{self._random.choice(('Bearer', 'bearer', 'BEARER'))} {token}",), scopes)

    def issued(self) -> Credential:
        token, scopes = self._random.choice(list(self._issued.items()))
        return Credential("good token of the issuer", (f"Bearer {token}",), scopes)

    def over(self) -> Credential:
        return Credential("expired or revoked", (f"Bearer {self._random.choice(self._over)}",))

    def unknown(self) -> Credential:
        return Credential("unknown", (f"Bearer cmr_{self._letters(self._random.choice((0, 1, 42, 43, 44, 500)))}",))

    def own_mutated(self) -> Credential:
        random, token = self._random, self._random.choice([*self._own, *self._over])
        changed = random.choice(
            (
                lambda: mutated(token, random, random.choice((_PRINTABLE, [*_WORDS], _ODD))),
                lambda: token[: random.randrange(len(token))],
                lambda: token[random.randrange(1, len(token)) :],
                token.swapcase,
                lambda: token * random.randint(2, 300),
                lambda: identity_of(token),
                lambda: token.replace("_", " ", 1),
            )
        )().strip()
        return Credential("own token, mutated", (f"Bearer {changed}",), self._own.get(changed))

    def issued_mutated(self) -> Credential:
        random, token = self._random, self._random.choice(list(self._issued))
        alphabet = random.choice((_PRINTABLE, [*_WORDS, ".", "="], _ODD))
        changed = (
            mutated(token, random, alphabet) if random.random() < 0.8 else token[: random.randrange(200)]
        ).strip()
        scopes = self._issued.get(changed) or (self._issued[token] if is_same(changed, token) else None)
        return Credential("token of the issuer, mutated", (f"Bearer {changed}",), scopes, is_open=changed != token)

    def issued_badly(self) -> Credential:
        return Credential("token that no issuer makes", (f"Bearer {self._random.choice(sorted(self._bad))}",))

    def composed(self) -> Credential:
        """Return a token with one or more things wrong, of any algorithm; or with nothing wrong."""
        random, now = self._random, int(time.time())
        header: dict[str, Any] = {"alg": random.choice(list(PRIVATE)), "typ": random.choice(("JWT", "at+jwt", "x"))}
        header["kid"] = next(kid for kid, private in KIDS.items() if private is PRIVATE[header["alg"]])
        scopes = tuple(some_scope(random) for _ in range(2))
        claims: dict[str, Any] = {**claims_of(), "exp": now + 10**6, "scope": [*scopes], "sub": "nobody-else"}
        key, wrong = PRIVATE[header["alg"]], random.sample(_WRONGS, random.choice((0, 1, 1, 1, 2)))
        for spoil in wrong:
            other = spoil(random, header, claims)
            key = key if other is None else other
        token = _signed(header, claims, key)
        return Credential("token of the issuer, composed", (f"Bearer {token}",), None if wrong else scopes)

    def shaped(self) -> Credential:
        """Return a header of another shape, with a good token in it."""
        token = self._random.choice([*self._own, *self._issued])
        values = self._random.choice(
            (
                lambda: (token,),
                lambda: (f"Basic {token}",),
                lambda: (f"Bearer{token}",),
                lambda: (f"Bearer\t{token}",),
                lambda: (f"Bearer:{token}",),
                lambda: (f"Bearer {token},Bearer {token}",),
                lambda: (f"Bearer {token} {token}",),
                lambda: (f"Bearer '{token}'",),
                lambda: (f"Bearer Bearer {token}",),
                lambda: (f"Bearer {token}", f"Bearer {token}"),
                lambda: (f"Bearer {token}", ""),
                lambda: ("", f"Bearer {token}"),
                lambda: ("",),
                lambda: ("Bearer",),
                lambda: ("Bearer ",),
                lambda: (),
                lambda: ("".join(self._random.choices(_PRINTABLE, k=self._random.randint(0, 300))),),
                lambda: ("Bearer " + "".join(self._random.choices([*_PRINTABLE, *_ODD], k=30)),),
            )
        )()
        return Credential("header of another shape", cast("tuple[str, ...]", values))

    def huge(self) -> Credential:
        token = self._random.choice([*self._own, *self._issued])
        length = self._random.choice((8_000, 8_193, 12_000, 20_000))
        text = self._random.choice((token + "a" * length, "a." * (length // 2), token + "." * length, "a" * length))
        return Credential("huge", (f"Bearer {text}",))


_DRAWS: Sequence[Callable[[Wallet], Credential]] = (
    *(Wallet.own, Wallet.issued, Wallet.over, Wallet.unknown, Wallet.own_mutated, Wallet.own_mutated),
    *(Wallet.issued_mutated, Wallet.issued_mutated, Wallet.issued_badly, Wallet.composed, Wallet.composed),
    *(Wallet.shaped, Wallet.shaped, Wallet.huge),
)


def _signed(header: dict[str, Any], claims: dict[str, Any], key: Any) -> str:
    """Return a token with any header and any claims: signed by a key, or with an HMAC if that is bytes."""
    if isinstance(key, bytes):
        return crafted(header, claims, key)
    algorithm = header["alg"] if PRIVATE.get(header["alg"]) is key else _ALGORITHMS[key]
    text = crafted(header, claims)
    signature = jwt.get_algorithm_by_name(algorithm).sign(text.rstrip(".").encode(), key)
    return text + encoded(signature)


_ALGORITHMS: Mapping[Any, str] = {OTHER_RSA: "RS256", **{private: algorithm for algorithm, private in PRIVATE.items()}}


Spoil = Callable[[Random, dict[str, Any], dict[str, Any]], Any]


def _setting(part: str, name: str, *values: Any) -> Spoil:
    """Return what sets a member of the header or of the claims to a wrong value; the value None removes it."""

    def spoil(random: Random, header: dict[str, Any], claims: dict[str, Any]) -> None:
        target, value = header if part == "header" else claims, random.choice(values)
        target[name] = value() if callable(value) else value
        if target[name] is None:
            del target[name]

    return spoil


def _with_hmac(random: Random, header: dict[str, Any], _claims: dict[str, Any]) -> bytes:
    header["alg"] = random.choice(("HS256", "HS384", "HS512", header["alg"]))
    return random.choice((PUBLIC_TEXT, PUBLIC_TEXT.strip(), ALL_KEYS, b"", b"secret"))


def _with_another_key(_random: Random, header: dict[str, Any], _claims: dict[str, Any]) -> Any:
    header["alg"] = "RS256"
    return OTHER_RSA


_WRONGS: Sequence[Spoil] = (
    _with_hmac,
    _with_another_key,
    _setting("header", "alg", "none", "None", "NONE", "", "HS256", "ES256K", "rs256", "dir", "é"),
    _setting("header", "kid", "", "other", "RSA ", "rsa"),
    _setting("header", "crit", ["exp"], [], "b64"),
    _setting("claims", "iss", None, ISSUER + "/", ISSUER.upper(), "", "https://evil.example", [ISSUER], 7),
    _setting("claims", "aud", None, "", AUDIENCE.upper(), AUDIENCE + " ", [], ["other"], [[AUDIENCE]], 7),
    _setting("claims", "sub", None, "", " ", "a" * 256, "a\nb", "\u202e", 7),
    _setting("claims", "exp", None, 0, -1, lambda: int(time.time()) - 1, "never", True, 1e300, [2**40], {}),
    _setting("claims", "nbf", lambda: time.time() + 600, "now", -1, True, []),
    _setting("claims", "iat", lambda: time.time() + 600, "now", -1, False, {}),
)


# The calls.


@dataclass(frozen=True)
class Attempt:
    """A call about a model that does not exist.

    Attributes:
        path: Of the call.
        request: Its message.
        actions: Any of which it needs.
        model_id: The model.
        alias: The alias, if it is about one.
    """

    path: str
    request: bytes
    actions: tuple[str, ...]
    model_id: str
    alias: str = ""


def some_attempt(random: Random, scopes: Sequence[str]) -> Attempt:
    """Return a call that some of the scopes may allow."""
    read = [scope for scope in map(read_scope, scopes) if scope] or [("read", "*", "*")]
    _, models_pattern, aliases_pattern = random.choice(read)
    model_id, alias = some_name(random, models_pattern), some_name(random, aliases_pattern)
    ref = lifecycle.VersionRef(model_id=model_id, version_number=1)
    changes = [lifecycle.SetAliasesRequest.Change(alias=alias, version_number=1)]
    calls: Sequence[tuple[str, str, Any, tuple[str, ...], str]] = (
        (m.SERVICE_NAMES[0], "RetrieveVersionInfos", m.RetrieveVersionInfosRequest(model_id=model_id), ("read",), ""),
        (
            lifecycle.SERVICE_NAME,
            "UpdateVersion",
            lifecycle.UpdateVersionRequest(version=ref),
            ("publish", "store"),
            "",
        ),
        (lifecycle.SERVICE_NAME, "PromoteVersion", lifecycle.PromoteVersionRequest(version=ref), ("store",), ""),
        (lifecycle.SERVICE_NAME, "DeleteVersion", lifecycle.DeleteVersionRequest(version=ref), ("delete",), ""),
        (
            lifecycle.SERVICE_NAME,
            "SetAliases",
            lifecycle.SetAliasesRequest(model_id=model_id, changes=changes),
            ("alias",),
            alias,
        ),
        (
            lifecycle.SERVICE_NAME,
            "UpdateModel",
            models.UpdateModelRequest(model_id=model_id, retention=models.UpdateModelRequest.Retention()),
            ("admin",),
            "",
        ),
    )
    service, method, request, actions, about = random.choice(calls)
    return Attempt(f"/{service}/{method}", request.SerializeToString(), actions, model_id, about)


class Presenter:
    """Shows credentials to a server, or to the code behind it, and judges the answers."""

    def __init__(self, wallet: Wallet, channel: grpc.aio.Channel, identities: Identities, figures: Figures) -> None:
        self._wallet = wallet
        self._channel: Any = channel
        self._identities = identities
        self._figures = figures
        self.windows: set[str] = set()

    async def present(self, rounds: Iterator[int], random: Random) -> None:
        """Show credentials as long as rounds are left."""
        for number in rounds:
            with in_round(number):
                credential = self._wallet.draw()
                self._remember(credential)
                self._figures.count("credentials")
                if credential.is_sendable:
                    await self._send(credential, random)
                else:
                    self._give(credential)

    def _remember(self, credential: Credential) -> None:
        for value in credential.values:
            text = value.rpartition(" ")[2]
            if len(text) >= 2 * _WINDOW:
                middle = len(text) // 2
                self.windows |= {text[:_WINDOW], text[middle : middle + _WINDOW], text[-_WINDOW:]}

    async def _send(self, credential: Credential, random: Random) -> None:
        attempt = some_attempt(random, credential.scopes or ())
        metadata = [("authorization", value) for value in credential.values]
        status = grpc.StatusCode.OK
        try:
            await self._channel.unary_unary(attempt.path)(attempt.request, metadata=metadata, timeout=PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            status = error.code()
        self._judge(credential, attempt, status)

    def _judge(self, credential: Credential, attempt: Attempt, status: grpc.StatusCode) -> None:
        shown = (credential, attempt, status)
        assert status.name not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"), shown
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED and credential.bytes > _METADATA_BYTES:
            self._figures.count("refused by gRPC for their size")
            return
        is_in = status is not grpc.StatusCode.UNAUTHENTICATED
        self._check_admission(credential, is_in=is_in)
        if is_in:
            may = allows(credential.scopes or (), attempt.actions, attempt.model_id, attempt.alias)
            assert (status is not grpc.StatusCode.PERMISSION_DENIED) == may, f"may: {may}: {shown}"
            self._figures.count("calls allowed" if may else "calls denied")

    def _give(self, credential: Credential) -> None:
        """Give to the code behind gRPC what a client cannot send."""
        self._figures.count("credentials that cannot be sent")
        try:
            caller = self._identities.identify(cast("Call", _Call(credential.values)))
        except UnauthenticatedError:
            caller = None
        self._check_admission(credential, is_in=caller is not None)

    def _check_admission(self, credential: Credential, *, is_in: bool) -> None:
        if is_in:
            assert credential.scopes is not None, f"accepted: {credential}"
            self._figures.count("accepted, as they should be")
        elif not credential.is_open:
            assert credential.scopes is None, f"refused: {credential}"


class _Call:
    """A call of which only the metadata is asked for."""

    def __init__(self, values: Sequence[str]) -> None:
        self._values = values

    @property
    def context(self) -> "_Call":
        return self

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", value) for value in self._values]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "ipv4:192.0.2.1:1"


async def _present(wallet: Wallet, server: ServerProcess, rounds: int, random: Random, figures: Figures) -> None:
    async def read_grants() -> Sequence[Grant]:
        return wallet.grants

    issuer = Issuer(ISSUER, AUDIENCE, "scope", read_keys=lambda: ALL_KEYS, pace=FILE_PACE)
    await issuer.read()
    identities = Identities("nothing", read_grants, issuer=issuer)
    await identities.refresh()
    numbers = iter(range(rounds))
    async with connected(server.port) as client:
        presenter = Presenter(wallet, client.channel, identities, figures)
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(presenter.present(numbers, fork(random)))
    await identities.close()
    await issuer.close()
    for line in server.lines:
        shown = {line[start : start + _WINDOW] for start in range(len(line) - _WINDOW + 1)} & presenter.windows
        assert not shown, f"a line of the log shows a credential: {line}"
    figures.count("lines of the log", len(server.lines))


def show_credentials(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Show credentials of any shape to a server."""
    for never in ("accepted wrongly", "answered with INTERNAL or UNKNOWN", "lines of the log with a credential"):
        figures.count(never, 0)
    archive_dir = place / "archive"
    wallet = Wallet(archive_dir, random)
    keys = place / "jwks.json"
    keys.write_bytes(ALL_KEYS)
    flags = ["--anonymous=nothing", f"--oidc_issuer={ISSUER}", f"--oidc_audience={AUDIENCE}", f"--oidc_keys={keys}"]
    with unharmed_server(archive_dir, *flags, "--log_format=json", "--log_level=debug") as server:
        asyncio.run(_present(wallet, server, rounds, random, figures))


# Scopes, without a server.


def _some_text(random: Random) -> str:
    """Return a text that may be a scope."""
    dice = random.random()
    if dice < 0.4:
        return some_scope(random)
    if dice < 0.7:
        return mutated(some_scope(random), random, [*"ab*-/: ", *_ODD, "read", "admin", "alias"])
    if dice < 0.8:
        return f"{random.choice(_ACTIONS)}:{random.choice('a*é') * random.choice((127, 128, 254, 255, 256))}"
    return "".join(random.choices([*_PRINTABLE, *_ODD], k=random.randint(0, 12)))


def read_scopes(_place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Read texts as scopes, and compare what they allow."""
    for never in ("texts read in another way", "decisions that differ"):
        figures.count(never, 0)
    for number in range(rounds):
        with in_round(number):
            text = _some_text(random)
            expected, scope = read_scope(text), _parsed(text)
            figures.count("texts")
            found = None if scope is None else (scope.action, scope.models, scope.aliases)
            assert found == expected, f"{text!r} is read as {found}, and not as {expected}"
            if scope is None:
                continue
            figures.count("scopes")
            assert Scope.parse(str(scope)) == scope, f"{text!r} is written as {scope}"
            for _ in range(5):
                _compare(scope, text, random, figures)


def _parsed(text: str) -> Scope | None:
    with contextlib.suppress(InvalidError):
        return Scope.parse(text)
    return None


def _compare(scope: Scope, text: str, random: Random, figures: Figures) -> None:
    """Compare what a scope allows with the oracle, for names that it just matches, or just does not."""
    name, alias = some_name(random, scope.models), random.choice(("", some_name(random, scope.aliases)))
    assert matches_pattern(scope.models, name) == matches(scope.models, name), (scope.models, name)
    actions = tuple(random.sample(_ACTIONS[:5], random.randint(1, 2)))
    need = Need(cast("tuple[Action, ...]", actions), name, alias)
    assert scope.covers(need) == allows([text], actions, name, alias), (text, need)
    figures.count("decisions")


PROOF_TOKENS = Proof(
    name="fuzzed_tokens",
    promise="No credential is accepted that should not be, and none allows more than its scopes say",
    attempt=show_credentials,
    unit="credentials",
    short=300,
    long=100_000,
    batch=20_000,
)

PROOF_SCOPES = Proof(
    name="fuzzed_scopes",
    promise="Scopes are read and matched as documented, whatever their text",
    attempt=read_scopes,
    unit="texts",
    short=1_000,
    long=100_000,
    batch=20_000,
)
