"""Access control in words: scopes, what a call needs, and the grants that people make.

A scope is written ``ACTION``, ``ACTION:MODELS`` or ``alias:MODELS/ALIASES``, where ``MODELS`` and ``ALIASES`` are
patterns: ``*`` stands for any characters, none included, and every other character for itself.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, cast, get_args

from cogment_model_registry.errors import ExistsError, InvalidError, quoted

Action: TypeAlias = Literal["read", "publish", "store", "alias", "delete", "admin"]

ACTIONS: dict[Action, str] = {
    "read": "see and fetch versions, follow models, and report what runs",
    "publish": "create transient versions, and what goes with them: models, tags, metrics",
    "store": "create archived versions and promote transient ones, and what goes with them",
    "alias": "set, move and remove aliases",
    "delete": "delete models and versions, and apply retention",
    "admin": "everything, rules of retention and shares of the transient store included",
}
"""What scopes allow, by the word for it."""

ANY = "*"
"""The pattern that matches everything, and where a need names no model or alias, every one of them."""

PATTERN_MAX_BYTES = 255
SCOPES_MAX = 100
"""How many scopes a grant may have."""

NAME_MAX_BYTES = 255
"""The longest name of a grant, and of what it is for."""

GrantKind: TypeAlias = Literal["token", "certificate", "subject"]


def matches(pattern: str, text: str) -> bool:
    """Return whether a pattern matches a text, in time that grows with the length of both alone."""
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    *inner, last = others
    if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
        return False
    start, end = len(first), len(text) - len(last)
    for part in inner:
        found = text.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True


class Need(NamedTuple):
    """What a call needs.

    Attributes:
        actions: Any one of these is enough, besides ``admin``.
        model_id: The model; `ANY` for every model, None for at least one.
        alias: The alias, for ``alias``; `ANY` for every alias.
    """

    actions: tuple[Action, ...]
    model_id: str | None
    alias: str = ""

    def __str__(self) -> str:
        if self.model_id is None:
            return " or ".join(self.actions)
        alias = f"/{self.alias}" if self.alias else ""
        return " or ".join(f"{action}:{self.model_id}{alias}" for action in self.actions)


@dataclass(frozen=True, slots=True)
class Scope:
    """One permission.

    Attributes:
        action: What is allowed.
        models: The pattern of the models' ids.
        aliases: For ``alias``, the pattern of the aliases.
    """

    action: Action
    models: str = ANY
    aliases: str = ANY

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """Return the scope that a text stands for.

        Raises:
            InvalidError: It is not a scope.
        """
        action, colon, patterns = text.partition(":")
        models, slash, aliases = patterns.partition("/")
        if action not in get_args(Action):
            raise InvalidError(f"the scope {quoted(text)} is malformed: it must begin with one of {', '.join(ACTIONS)}")
        if slash and action != "alias":
            raise InvalidError(f"the scope {quoted(text)} is malformed: only alias has a pattern of aliases")
        for pattern, is_given in ((models, colon), (aliases, slash)):
            if is_given and not _is_pattern(pattern):
                raise InvalidError(
                    f"the scope {quoted(text)} is malformed: a pattern has 1 to {PATTERN_MAX_BYTES} bytes of printable "
                    "characters, and no /"
                )
        return cls(cast("Action", action), models or ANY, aliases or ANY)

    def __str__(self) -> str:
        if self.aliases != ANY:
            return f"{self.action}:{self.models}/{self.aliases}"
        return self.action if self.models == ANY else f"{self.action}:{self.models}"

    def covers(self, need: Need) -> bool:
        """Return whether the scope allows what a call needs."""
        if self.action != "admin" and self.action not in need.actions:
            return False
        if need.model_id is not None and not matches(self.models, need.model_id):
            return False
        return self.action == "admin" or not need.alias or matches(self.aliases, need.alias)


def _is_pattern(text: str) -> bool:
    return text.isprintable() and "/" not in text and 0 < len(text.encode(errors="replace")) <= PATTERN_MAX_BYTES


def parse_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """Return the scopes that texts stand for, each once.

    Raises:
        InvalidError: There are none or too many, or one is malformed.
    """
    scopes = tuple(dict.fromkeys(map(Scope.parse, texts)))
    if not 0 < len(scopes) <= SCOPES_MAX:
        raise InvalidError(f"a token has {len(scopes)} scopes; it must have 1 to {SCOPES_MAX}")
    return scopes


@dataclass(frozen=True, slots=True)
class Grant:
    """What one caller may do.

    Attributes:
        name: Its name, which the log shows and by which it is revoked.
        kind: How the caller shows who it is: by a ``token``, by a name in the ``certificate`` of its connection, or as
            the ``subject`` of a token of an issuer.
        identity: Of a token, its SHA-256 hash in hexadecimal; otherwise the name or the subject.
        scopes: What it may do.
        created_ns: When it was made, in nanoseconds since the Unix epoch.
        expires_ns: When it ends, in nanoseconds since the Unix epoch; None for never.
    """

    name: str
    kind: GrantKind
    identity: str
    scopes: tuple[Scope, ...]
    created_ns: int
    expires_ns: int | None = None


_BETWEEN = "\n"
"""Between two scopes in a text with all of them; no scope has it."""


def scopes_text(scopes: Iterable[Scope]) -> str:
    """Return the text with scopes that a catalog keeps."""
    return _BETWEEN.join(map(str, scopes))


def scopes_of(text: str) -> tuple[Scope, ...]:
    """Return the scopes in a text that a catalog keeps.

    Raises:
        InvalidError: There is one that this release does not know.
    """
    return parse_scopes(text.split(_BETWEEN))


def missing_grants(grants: Iterable[Grant], known: Iterable[Grant]) -> list[Grant]:
    """Return the grants that a catalog with some known ones does not have as they are."""
    by_name = {grant.name: grant for grant in known}
    return [grant for grant in grants if by_name.get(grant.name) != grant]


def taken_by(grant: Grant, holder: str) -> ExistsError:
    """Return the error of a grant that is not added, since another one has its name or is for the same caller.

    Args:
        grant: The grant.
        holder: The name of the other one.
    """
    what = "the name" if holder == grant.name else f"the {grant.kind}"
    return ExistsError(f"{what} is taken by token {quoted(holder)}; revoke that one first")


def identity_of(token: str) -> str:
    """Return the SHA-256 hash of a token, in hexadecimal: all that is kept of it.

    A token has 256 random bits, so its hash needs no salt; and a search by the hash takes a time that says nothing of
    the token.
    """
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def check_name(what: str, name: str) -> str:
    """Return a name of a grant, or of what it is for, as it is.

    Args:
        what: What it is, for the message.
        name: The name.

    Raises:
        InvalidError: It is empty or too long, or it has characters that cannot be printed.
    """
    if not name.isprintable() or name != name.strip() or not 0 < len(name.encode(errors="replace")) <= NAME_MAX_BYTES:
        raise InvalidError(f"{what} is {quoted(name)}; it must be 1 to {NAME_MAX_BYTES} bytes of printable characters")
    return name
