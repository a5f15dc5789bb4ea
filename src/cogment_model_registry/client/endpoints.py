"""Where a registry is: a fixed address, several of them, or one that a Directory knows."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qsl, urlsplit

from cogment_model_registry.errors import InvalidError, SettingError
from cogment_model_registry.records.addresses import ENDPOINT_FORM, endpoint_text, parse_token, split_endpoint
from cogment_model_registry.records.services import Details, ServiceType

ENDPOINT_VARIABLE = "COGMENT_MODEL_REGISTRY_ENDPOINT"
DIRECTORY_ENDPOINT_VARIABLE = "COGMENT_DIRECTORY_ENDPOINT"
DIRECTORY_TOKEN_VARIABLE = "COGMENT_DIRECTORY_AUTHENTICATION_TOKEN"  # noqa: S105 # the name of it

DISCOVER = "cogment://discover"
"""The endpoint of the registry that a Directory knows."""

_TOKEN_PROPERTY = "__authentication-token"  # noqa: S105 # the name of it
_ID_PROPERTY = "__id"


@dataclass(frozen=True, slots=True)
class Direct:
    """A registry at a fixed address.

    Attributes:
        address: Host and port.
        is_secure: Whether it is over TLS.
    """

    address: str
    is_secure: bool = False

    @property
    def is_local(self) -> bool:
        """Whether the address is ``unix:PATH``, the path of a UNIX socket; no argument of a client has this form."""
        return self.address.startswith("unix:")

    def __str__(self) -> str:
        return self.address if self.is_local else endpoint_text(self.address, is_secure=self.is_secure)


@dataclass(frozen=True, slots=True)
class Several:
    """Registries at fixed addresses that serve the same models.

    Attributes:
        places: Their addresses, two at least.
    """

    places: tuple[Direct, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.places))


DEFAULT = Direct("localhost:9002")
"""Where a registry is by default: on this machine, on the default port of the server."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """A registry that a Directory looks up.

    Attributes:
        directory_address: Host and port of the Directory.
        token: The authentication token; empty for none.
        inquiry: The details that the registry must have, or the id that the Directory gave it.
        is_directory_secure: Whether the Directory is over TLS.
    """

    directory_address: str
    token: str
    inquiry: Details | int
    is_directory_secure: bool = False

    @property
    def directory(self) -> Direct:
        """The Directory's address."""
        return Direct(self.directory_address, self.is_directory_secure)

    def __str__(self) -> str:
        return f"the Directory at {self.directory}"


Location: TypeAlias = Direct | Several | Discovered
"""Where a registry is."""

_ALLOWED = f"grpc://host:port, grpcs://host:port for TLS, several of them separated by commas, or {DISCOVER}"


def locate(
    endpoint: str | Sequence[str] | None = None,
    directory_endpoint: str | None = None,
    directory_authentication_token: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Location:
    """Return where a registry is, from arguments and the environment.

    Without an endpoint it is the one of `COGMENT_MODEL_REGISTRY_ENDPOINT`, else the one that the Directory knows, if a
    Directory is given or in `COGMENT_DIRECTORY_ENDPOINT`, else `DEFAULT`.

    Args:
        endpoint: ``grpc://host:port``, ``grpcs://host:port``, ``cogment://discover``,
            ``cogment://discover?name=value&...`` or ``cogment://discover/service?__id=N``. The property
            ``__authentication-token`` overrides the token. Several of the first two forms, in one text separated by
            commas or in a sequence, are registries that serve the same models.
        directory_endpoint: The address of the Directory.
        directory_authentication_token: The token for the Directory.
        environment: The environment variables.

    Raises:
        SettingError: One of them is malformed, or no Directory is known.
        InvalidError: One of them is not a string.
    """
    directory_source, directory = _given(
        "directory_endpoint", directory_endpoint, DIRECTORY_ENDPOINT_VARIABLE, environment
    )
    source, text = _given("endpoint", _joined(endpoint), ENDPOINT_VARIABLE, environment)
    if not text:
        text = DISCOVER if directory else str(DEFAULT)
    if not text.startswith("cogment:"):
        places = tuple(dict.fromkeys(Direct(*_address(source, each.strip(), _ALLOWED)) for each in text.split(",")))
        return places[0] if len(places) == 1 else Several(places)
    if not directory:
        allowed = f"given together with a directory_endpoint (or {DIRECTORY_ENDPOINT_VARIABLE})"
        raise SettingError(source, text, allowed)
    token_source, token = _given(
        "directory_authentication_token", directory_authentication_token, DIRECTORY_TOKEN_VARIABLE, environment
    )
    directory_address, is_secure = _address(directory_source, directory, ENDPOINT_FORM)
    inquiry, own_token = _parse_discovery(source, text)
    try:
        token = parse_token(token if own_token is None else own_token)
    except ValueError:
        raise SettingError(token_source, "...", "printable ASCII") from None
    return Discovered(directory_address, token, inquiry, is_secure)


def _joined(endpoint: str | Sequence[str] | None) -> str | None:
    """Return an endpoint, or several of them, as one text.

    Raises:
        InvalidError: It is something else, or a sequence of nothing.
    """
    if endpoint is None or isinstance(endpoint, str):
        return endpoint
    given: object = endpoint
    if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
        raise InvalidError(f"endpoint is of type {type(endpoint).__name__}; it must be a string, or a list of strings")
    if not endpoint:
        raise InvalidError("endpoint has no endpoints; it must be a string, or a list of one string or more")
    if any("," in each for each in endpoint) or "" in endpoint:
        raise SettingError("endpoint", ",".join(endpoint), "a list with one endpoint in each string")
    return ",".join(endpoint)


def _given(name: str, value: str | None, variable: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the source and the value of a setting; empty when it was not given."""
    source, text = (name, value) if value is not None else (variable, environment.get(variable, ""))
    if not isinstance(text, str):  # without its value, which may be a token
        raise InvalidError(f"{source} is of type {type(text).__name__}; it must be a string")
    return source, text


def _address(source: str, text: str, allowed: str) -> tuple[str, bool]:
    try:
        return split_endpoint(text)
    except ValueError:
        raise SettingError(source, text, allowed) from None


def _parse_discovery(source: str, text: str) -> tuple[Details | int, str | None]:
    """Return the inquiry of a discovery endpoint, and its token, if it has one."""
    allowed = f"{DISCOVER}, {DISCOVER}?name=value&... or {DISCOVER}/service?{_ID_PROPERTY}=N"
    try:
        parts = urlsplit(text)
    except ValueError:  # it has brackets as IPv6 addresses have, and no such address
        raise SettingError(source, text, allowed) from None
    properties = dict(parse_qsl(parts.query, keep_blank_values=True))
    token = properties.pop(_TOKEN_PROPERTY, None)
    if not text.isprintable() or parts.scheme != "cogment" or parts.netloc != "discover" or parts.fragment:
        raise SettingError(source, text, allowed)
    if parts.path.strip("/") == "service":
        service_id = properties.pop(_ID_PROPERTY, "")
        if not re.fullmatch("[0-9]{1,20}", service_id) or properties or not 0 < int(service_id) < 2**64:
            raise SettingError(source, text, allowed)
        return int(service_id), token
    if parts.path.strip("/"):
        raise SettingError(source, text, allowed)
    return Details(ServiceType.MODEL_REGISTRY, properties), token
