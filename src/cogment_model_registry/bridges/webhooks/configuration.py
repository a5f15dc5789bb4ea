"""The configuration of webhooks: a file in TOML."""

import fnmatch
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cogment_model_registry.bridges.webhooks.signing import keys_of
from cogment_model_registry.errors import InvalidError, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

PUBLISHED = "version.published"
ARCHIVED = "version.archived"
DELETED = "version.deleted"
EVICTED = "version.evicted"
DAMAGED = "version.damaged"
MODEL_DELETED = "model.deleted"
ALIAS_MOVED = "alias.moved"
LAGGING = "consumer.lagging"
RECOVERED = "consumer.recovered"
EVENTS = (PUBLISHED, ARCHIVED, DELETED, EVICTED, DAMAGED, MODEL_DELETED, ALIAS_MOVED, LAGGING, RECOVERED)
"""The types of events."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Hook:
    """A receiver, and the events that it gets.

    Attributes:
        name: Its name, in the log and in the state.
        url: The address for its posts.
        keys: The keys that sign them: two while a secret is replaced.
        events: The types of events.
        models: Patterns of models.
        aliases: Patterns of aliases, for events about aliases.
        timeout_seconds: How long one try may take.
        first_pause_seconds: The pause after the first try that failed; it doubles with each one.
        longest_pause_seconds: The longest pause.
        give_up_seconds: How long after its first try an event is given up.
    """

    name: str
    url: str
    keys: tuple[bytes, ...] = field(repr=False)
    events: tuple[str, ...]
    models: tuple[str, ...] = ("*",)
    aliases: tuple[str, ...] = ("*",)
    timeout_seconds: float = 10.0
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 3600.0
    give_up_seconds: float = 86_400.0

    def wants(self, event: str, model_id: str, alias: str = "") -> bool:
        """Return whether it gets an event."""
        return (
            event in self.events
            and any(fnmatch.fnmatchcase(model_id, pattern) for pattern in self.models)
            and (not alias or any(fnmatch.fnmatchcase(alias, pattern) for pattern in self.aliases))
        )

    @property
    def shown_url(self) -> str:
        """Its address without parts that may be secret: only the scheme and the host."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of all webhooks.

    Attributes:
        hooks: The receivers.
        state_path: The database with the position in the watch and the waiting posts.
        dead_letters_path: The file for events that were given up.
        versions_behind: A consumer that is this many versions behind lags.
        seconds_behind: A consumer that has been behind for this long lags.
        promotions_seconds: How often to look for promoted versions.
        waiting_max: How many posts may wait for one receiver; more are given up, the oldest first.
    """

    hooks: tuple[Hook, ...]
    state_path: Path
    dead_letters_path: Path
    versions_behind: int = 10
    seconds_behind: float = 300.0
    promotions_seconds: float = 10.0
    waiting_max: int = 100_000

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models to follow; none for all, unless no pattern has a wildcard."""
        patterns = {pattern for hook in self.hooks for pattern in hook.models}
        return () if any(set(pattern) & set("*?[") for pattern in patterns) else tuple(sorted(patterns))

    @classmethod
    def read(cls, path: "str | os.PathLike[str]", environment: Mapping[str, str]) -> "Configuration":
        """Return the configuration in a file; paths in it are relative to it.

        Args:
            path: The file.
            environment: The variables that may have secrets.

        Raises:
            InvalidError: It is malformed, a value is not allowed, or a file with a secret cannot be read. The message
                names it, and has no secret.
            OSError: It cannot be read.
        """
        place = Path(os.path.abspath(os.path.expanduser(path)))
        try:
            values = tomllib.loads(place.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"{place.name} is not TOML: {error}") from None
        given = values.pop("hook", [])
        if not isinstance(given, list) or not given:
            raise InvalidError(f"{place.name} has no hook: add a table [[hook]] for each receiver")
        hooks = tuple(_hook(each, place.parent, environment) for each in given)
        names = [hook.name for hook in hooks]
        if len(set(names)) < len(names):
            raise InvalidError(f"two hooks have the name {next(n for n in names if names.count(n) > 1)!r}")
        reader = _Reader(values, place.name)
        found = cls(
            hooks,
            place.parent / reader.text("state", f"{place.stem}.db"),
            place.parent / reader.text("dead_letters", f"{place.stem}.dead.jsonl"),
            int(reader.number("versions_behind", 10, 1)),
            reader.number("seconds_behind", 300.0, 0),
            reader.number("promotions_seconds", 10.0, 0.05),
            int(reader.number("waiting_max", 100_000, 1)),
        )
        reader.finish()
        return found


class _Reader:
    """Takes values out of a table, and refuses unknown ones.

    Args:
        values: The table.
        name: The name of the table in messages.
    """

    def __init__(self, values: Any, name: str) -> None:
        if not isinstance(values, dict):
            raise InvalidError(f"{name} must be a table")
        self._values = dict(values)
        self.name = name

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string; without a default, it is required."""
        value = self._values.pop(key, default)
        if not isinstance(value, str) or not value:
            what = "is missing" if value is None else f"is {value!r}"
            raise InvalidError(f"{key} of {self.name} {what}; it must be a string")
        return value

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._values.pop(key, list(default))
        if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
            raise InvalidError(f'{key} of {self.name} must be a list of strings, such as {key} = ["..."]')
        return tuple(value)

    def number(self, key: str, default: float, least: float) -> float:
        """Return a number that is not less than another one."""
        value = self._values.pop(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= 10**9:
            raise InvalidError(f"{key} of {self.name} is {value!r}; it must be a number, {least:g} or more")
        return value

    def optional(self, key: str) -> str | None:
        """Return a string, or None."""
        return self.text(key) if key in self._values else None

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._values.pop(key, False)
        if not isinstance(value, bool):
            raise InvalidError(f"{key} of {self.name} must be true or false")
        return value

    def finish(self) -> None:
        """Refuse the values that were not taken."""
        if self._values:
            raise InvalidError(f"{self.name} has {quoted(next(iter(self._values)))}, which is not a known setting")


def _hook(values: Any, folder: Path, environment: Mapping[str, str]) -> Hook:
    reader = _Reader(values, "a hook")
    name = reader.text("name")
    if not _PLAIN_NAME.fullmatch(name):
        raise InvalidError(
            f"the name {quoted(name)} of a hook must be 1 to 64 letters, digits, dots, hyphens and underscores"
        )
    reader.name = f"hook {quoted(name)}"
    url = _checked_url(reader.text("url"), reader.name, is_plain=reader.flag("allow_http"))
    events = reader.texts("events")
    if unknown := [event for event in events if event not in EVENTS]:
        raise InvalidError(f"{reader.name} has the event {quoted(unknown[0])}; events are {', '.join(EVENTS)}")
    hook = Hook(
        name,
        url,
        _keys(reader, folder, environment),
        events,
        reader.texts("models", ("*",)),
        reader.texts("aliases", ("*",)),
        reader.number("timeout_seconds", 10.0, 0.1),
        reader.number("first_pause_seconds", 1.0, 0.01),
        reader.number("longest_pause_seconds", 3600.0, 0.01),
        reader.number("give_up_seconds", 86_400.0, 0),
    )
    reader.finish()
    return hook


def _keys(reader: _Reader, folder: Path, environment: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return the keys of a hook, from a file or a variable, since other people may read the configuration."""
    file, variable = reader.optional("secret_file"), reader.optional("secret_variable")
    if (file is None) == (variable is None):
        raise InvalidError(f"{reader.name} needs either secret_file or secret_variable")
    if file is not None:
        try:
            secret = (folder / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidError(f"secret_file of {reader.name} is not UTF-8") from None
        except (OSError, ValueError) as error:  # the latter for a name with a null character
            reason = getattr(error, "strerror", None) or error
            raise InvalidError(f"secret_file {quoted(str(file))} of {reader.name} cannot be read: {reason}") from None
    elif variable in environment:
        secret = environment[str(variable)]
    else:
        raise InvalidError(f"the variable {quoted(str(variable))} with the secret of {reader.name} is not set")
    try:
        return keys_of(secret)
    except InvalidError as error:
        raise InvalidError(f"{reader.name}: {error.message}") from None


def _checked_url(url: str, name: str, *, is_plain: bool) -> str:
    """Return an address; error messages do not contain it, since it may contain a secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError:  # also for a name with an empty or too long part
        raise InvalidError(f"the url of {name} is malformed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isascii():
        raise InvalidError(f"the url of {name} must be https://host/path")
    if any(character <= " " for character in url) or parts.fragment:
        raise InvalidError(f"the url of {name} must have neither spaces nor a fragment")
    if parts.username is not None:
        raise InvalidError(f"the url of {name} must not have a user or a password; posts are signed instead")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not is_plain:
        raise InvalidError(f"the url of {name} is not https; set allow_http = true to allow it")
    return url
