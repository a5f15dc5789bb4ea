"""The services that a Directory knows, and its rules: tokens, secrets, duplicates, health, load, order.

A change of the roster writes its file and so blocks: call it from a thread, one call at a time. Reading is safe at any
time, since a change replaces the entries as a whole.

Entries live in memory and, if a file is given, survive a restart in it: each change replaces the whole file, atomically
and durably.
"""

import contextlib
import dataclasses
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from cogment_model_registry.errors import InvalidError, StartError, UnavailableError
from cogment_model_registry.records.services import (
    LOAD_UNSERVICEABLE,
    Details,
    Endpoint,
    Protocol,
    Service,
    ServiceType,
)
from cogment_model_registry.system.replacement import Replacement

FAILURES_MAX = 3
"""A service that failed so many checks in a row is removed."""

_FILE_MODE = 0o600
"""The file has secrets and tokens, so only its owner may read it."""

LOAD_TOLERANCE = 10
"""With load balancing, services whose load is within this of the lowest one are returned."""


@dataclass(eq=False, slots=True)
class Entry:
    """A service, with what only the Directory knows about it.

    Attributes:
        service: The service.
        secret: The secret that deregisters it.
        token: The token that an inquiry must have to find it.
        healthy: Whether its last check passed.
        load: Its load at the last check.
        failures: How many checks in a row failed.
        restored: Whether it was registered before the Directory started, and was not checked since.
    """

    service: Service
    secret: str
    token: str
    healthy: bool = False
    load: int = 0
    failures: int = 0
    restored: bool = False

    @property
    def is_checked(self) -> bool:
        """Whether its health is checked: not if it cannot be called, and not if it is permanent."""
        return self.service.endpoint.protocol is not Protocol.COGMENT and not self.service.permanent


class Roster:
    """The registered services.

    Args:
        load_balancing: Whether to return only services with the lowest load.
        file: The file that keeps them over a restart; empty for none.
    """

    def __init__(self, *, load_balancing: bool, file: str) -> None:
        self._load_balancing = load_balancing
        self._file = file
        self._entries: dict[int, Entry] = {}  # in the order of registration

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def __contains__(self, entry: Entry) -> bool:
        return self._entries.get(entry.service.service_id) is entry

    def load(self) -> None:
        """Read the services that were registered before a restart.

        Raises:
            StartError: The file cannot be read or written, or is malformed.
        """
        if not self._file:
            return
        try:
            with open(self._file, encoding="utf-8") as file:
                entries = [_entry_from_json(fields) for fields in json.load(file)["services"]]
        except FileNotFoundError:
            entries = []
        except (OSError, ValueError, KeyError, TypeError) as error:
            advice = "repair it, or move it away to start without services"
            raise StartError(f"persistence file {self._file} cannot be read: {error}; {advice}") from error
        try:
            self._replace({entry.service.service_id: entry for entry in entries})
        except UnavailableError as error:
            raise StartError(f"persistence file {self._file} cannot be written: {error.message}") from error

    def register(self, endpoint: Endpoint, details: Details, token: str, *, permanent: bool) -> Entry:
        """Add a service. A permanent one that has the same type and properties as an existing one replaces it.

        Raises:
            UnavailableError: The change could not be persisted.
        """
        duplicate = next((e for e in self._entries.values() if _is_duplicate(e, details, token)), None)
        if permanent and duplicate is not None:
            service = dataclasses.replace(duplicate.service, endpoint=endpoint, details=details)
            entry = dataclasses.replace(duplicate, service=service)
            self._replace({**self._entries, service.service_id: entry})
            return entry
        service_id = secrets.randbelow(2**63 - 1) + 1
        entry = Entry(Service(service_id, endpoint, details, permanent), secrets.token_urlsafe(12), token)
        entry.healthy = not entry.is_checked
        self._replace({**self._entries, service_id: entry})
        return entry

    def deregister(self, service_id: int, secret: str, token: str) -> None:
        """Remove a service.

        Raises:
            InvalidError: No service has this id, secret and token.
            UnavailableError: The change could not be persisted.
        """
        entry = self._entries.get(service_id)
        # One answer for all cases, so that ids and secrets cannot be guessed one after the other.
        if entry is None or not _same(entry.secret, secret) or not _same(entry.token, token):
            raise InvalidError(f"service {service_id} with this secret and token does not exist")
        self.remove(entry)

    def remove(self, entry: Entry) -> None:
        """Remove a registered service.

        Raises:
            UnavailableError: The change could not be persisted.
        """
        self._replace({key: other for key, other in self._entries.items() if other is not entry})

    def inquire(self, inquiry: Details | int, token: str) -> list[Service]:
        """Return the matching services, most recently registered first."""
        found = [
            entry
            for entry in reversed(self._entries.values())
            if _same(entry.token, token)
            and entry.healthy
            and (
                entry.service.service_id == inquiry
                if isinstance(inquiry, int)
                else entry.service.details.match(inquiry)
            )
        ]
        if self._load_balancing and not isinstance(inquiry, int):
            lowest = min((entry.load for entry in found), default=0)
            found = [entry for entry in found if entry.load <= lowest + LOAD_TOLERANCE]
        return [entry.service for entry in found]

    def note_check(self, entry: Entry, load: int | None) -> bool:
        """Record a check: the load that the service reported, or None when it failed.

        Returns:
            Whether the service stays.
        """
        if load is not None:
            entry.load = load
            entry.healthy = load < LOAD_UNSERVICEABLE
            entry.failures = 0
            entry.restored = False
            return True
        entry.healthy = False
        entry.failures += 1
        if entry.restored or entry.failures >= FAILURES_MAX:
            self.remove(entry)
            return False
        return True

    def _replace(self, entries: dict[int, Entry]) -> None:
        """Replace the services by these, durably; on an error the present ones stay."""
        if self._file:
            text = json.dumps({"services": [_entry_to_json(entry) for entry in entries.values()]}, indent=1)
            try:
                os.makedirs(os.path.dirname(self._file) or ".", exist_ok=True)
                with contextlib.closing(Replacement(self._file, _FILE_MODE, keeps_mode=False)) as replacement:
                    replacement.open().write(text.encode())
                    replacement.commit()
            except OSError as error:
                raise UnavailableError(f"the Directory cannot write its persistence file: {error.strerror}") from error
        self._entries = entries


def _is_duplicate(entry: Entry, details: Details, token: str) -> bool:
    """Return whether an inquiry for these details would find a permanent service."""
    return entry.service.permanent and _same(entry.token, token) and entry.service.details.match(details)


def _same(one: str, other: str) -> bool:
    """Compare in a time that does not reveal where two strings differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def _entry_to_json(entry: Entry) -> dict[str, object]:
    service = entry.service
    return {
        "service_id": service.service_id,
        "protocol": service.endpoint.protocol.value,
        "host": service.endpoint.host,
        "port": service.endpoint.port,
        "type": service.details.type.value,
        "properties": dict(service.details.properties),
        "permanent": service.permanent,
        "secret": entry.secret,
        "token": entry.token,
    }


def _entry_from_json(fields: dict[str, object]) -> Entry:
    properties = fields["properties"]
    if not isinstance(properties, dict):
        raise TypeError("the properties must be a mapping")
    endpoint = Endpoint(Protocol(fields["protocol"]), str(fields["host"]), int(str(fields["port"])))
    service_id = int(str(fields["service_id"]))
    least_port = 0 if endpoint.protocol is Protocol.COGMENT else 1
    if not endpoint.host or not least_port <= endpoint.port <= 65535 or not 1 <= service_id < 2**64:
        raise ValueError("the endpoint or the id is not valid")
    service = Service(
        service_id,
        endpoint,
        Details(ServiceType(fields["type"]), {str(name): str(value) for name, value in properties.items()}),
        bool(fields["permanent"]),
    )
    entry = Entry(service, str(fields["secret"]), str(fields["token"]), restored=True)
    entry.healthy = not entry.is_checked
    return entry
