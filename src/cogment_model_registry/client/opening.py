"""What both flavours of the client are besides their calls: their arguments, checked, shown and pickled."""

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypedDict, TypeVar

from cogment_model_registry.client.arguments import (
    checked_path,
    checked_seconds,
    checked_whole,
)
from cogment_model_registry.client.backends import Backend
from cogment_model_registry.client.cache import DEFAULT_MAX_BYTES, Cache
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.connection import Connection
from cogment_model_registry.client.core import Core
from cogment_model_registry.client.credentials import find_credentials
from cogment_model_registry.client.deadlines import Timeouts
from cogment_model_registry.client.encryption import encryption_of
from cogment_model_registry.client.endpoints import locate
from cogment_model_registry.client.progress import Wish

_B = TypeVar("_B", bound=Backend)

RETRY_SECONDS = 10.0
"""How long a call is retried by default while the registry is unavailable: longer than a restart takes."""

CACHE_VARIABLE = "COGMENT_MODEL_REGISTRY_CACHE_DIR"


class Options(TypedDict):
    """The arguments of a client; see `ModelRegistry`."""

    endpoint: str | Sequence[str] | None
    directory_endpoint: str | None
    directory_authentication_token: str | None
    token: str | None
    token_file: str | os.PathLike[str] | None
    tls_ca: str | os.PathLike[str] | None
    tls_certificate: str | os.PathLike[str] | None
    tls_key: str | os.PathLike[str] | None
    timeout: float | None
    retry_seconds: float
    cache_dir: str | os.PathLike[str] | None
    cache_max_bytes: int
    progress: Wish


def _open_core(backend: Backend, options: Options) -> Core:
    """Return what makes the calls of a client with these arguments."""
    location = locate(options["endpoint"], options["directory_endpoint"], options["directory_authentication_token"])
    directory, max_bytes = options["cache_dir"], checked_whole("cache_max_bytes", options["cache_max_bytes"])
    directory = os.environ.get(CACHE_VARIABLE, "") if directory is None else checked_path("cache_dir", directory)
    encryption = encryption_of(location, options["tls_ca"], options["tls_certificate"], options["tls_key"])
    connection = Connection(location, encryption, find_credentials(options["token"], options["token_file"]))
    calls = Calls(backend, connection, checked_seconds("retry_seconds", options["retry_seconds"]))
    timeout = options["timeout"]
    limit = None if timeout is None else checked_seconds("timeout", timeout)
    return Core(calls, Timeouts(limit), Cache(directory, max_bytes) if directory else None, options["progress"])


class Client(ABC, Generic[_B]):
    """What both clients are besides their calls: their arguments, shown and pickled.

    Unpickled, or copied, it is another client with the same arguments: a connection belongs to one process.
    """

    _shown_as: ClassVar[str]

    def __init__(
        self,
        endpoint: str | Sequence[str] | None = None,
        *,
        directory_endpoint: str | None = None,
        directory_authentication_token: str | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_certificate: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        retry_seconds: float = RETRY_SECONDS,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_max_bytes: int = DEFAULT_MAX_BYTES,
        progress: Wish = None,
    ) -> None:
        self._options: Options = {
            "endpoint": tuple(endpoint) if isinstance(endpoint, list) else endpoint,  # it may change later
            "directory_endpoint": directory_endpoint,
            "directory_authentication_token": directory_authentication_token,
            "token": token,
            "token_file": token_file,
            "tls_ca": tls_ca,
            "tls_certificate": tls_certificate,
            "tls_key": tls_key,
            "timeout": timeout,
            "retry_seconds": retry_seconds,
            "cache_dir": cache_dir,
            "cache_max_bytes": cache_max_bytes,
            "progress": progress,
        }
        self._backend = self._make_backend()
        self._core = self._open_core()

    def _open_core(self) -> Core:
        """Return what makes its calls."""
        return _open_core(self._backend, self._options)

    @abstractmethod
    def _make_backend(self) -> _B:
        """Return how its calls are made and awaited."""

    def __repr__(self) -> str:
        connection = self._core.calls.connection
        state = ", closed" if connection.is_closed else ""
        return f"<{self._shown_as}: {connection.location}{state}>"

    def __reduce__(self) -> tuple[object, ...]:
        kind: Callable[..., Client[_B]] = type(self)
        return functools.partial(kind, **self._options), ()
