"""The token of a client: where it comes from, and how calls carry it."""

import os
import time
from collections.abc import Mapping
from typing import Any

from cogment_model_registry.client.arguments import checked_path
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.system.token_files import AGAIN_SECONDS, checked_token, read_token

TOKEN_VARIABLE = "COGMENT_MODEL_REGISTRY_TOKEN"  # noqa: S105 # the name of it
TOKEN_FILE_VARIABLE = "COGMENT_MODEL_REGISTRY_TOKEN_FILE"  # noqa: S105 # the name of it


class Credentials:
    """The token that calls carry: a fixed one, or that of a file, which may be replaced at any time.

    Args:
        token: The token; empty for none.
        path: The file that has it instead; empty for none.
    """

    def __init__(self, token: str = "", path: str = "") -> None:
        self._path = path
        self._read_at = float("-inf")
        self._metadata = _metadata(token)

    @property
    def is_any(self) -> bool:
        """Whether calls carry anything, now or later."""
        return bool(self._path or self._metadata)

    def forwarded_peer(self) -> str:
        """Return the address of whoever calls are made for; empty where they are made for this process."""
        return ""

    def authorization(self) -> str:
        """Return what calls carry as the metadata ``authorization``; empty without a token.

        Raises:
            SettingError: The file cannot be read, or has no token. The message does not show what it has.
        """
        metadata = self.metadata()
        return metadata[0][1] if metadata else ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call, the same as long as the token is; empty without one.

        Raises:
            SettingError: As above.
        """
        if self._path and time.monotonic() - self._read_at >= AGAIN_SECONDS:
            self._metadata = _metadata(read_token("token_file", self._path))
            self._read_at = time.monotonic()
        return self._metadata


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def find_credentials(
    token: str | None, token_file: str | os.PathLike[str] | None, environment: Mapping[str, str] = os.environ
) -> Credentials:
    """Return the token of a client, from its arguments and the environment; arguments come first, and a token.

    Args:
        token: The token itself.
        token_file: A file that has it, and nothing else but white space.
        environment: The environment variables.

    Raises:
        SettingError: It is malformed, or the file cannot be read.
        InvalidError: An argument is not a string.
    """
    if token is not None and not isinstance(token, str):
        raise InvalidError(f"token is a {type(token).__name__}; it must be a string")
    if token:
        return Credentials(checked_token(token, "token"))
    if token_file is not None and token is None:
        return _of_file(checked_path("token_file", token_file))
    if token is None and (text := environment.get(TOKEN_VARIABLE, "")):
        return Credentials(checked_token(text.strip(), f"token (from {TOKEN_VARIABLE})"))
    if token is None and (path := environment.get(TOKEN_FILE_VARIABLE, "")):
        return _of_file(path)
    return Credentials()


def _of_file(path: str) -> Credentials:
    credentials = Credentials(path=path)
    credentials.authorization()  # what is wrong with it is said now
    return credentials


def authorized(channel: Any, credentials: Credentials) -> Any:
    """Return a channel of gRPC, of either flavour, on whose calls the token travels, if there is one."""
    return _AuthorizedChannel(channel, credentials) if credentials.is_any else channel


class _AuthorizedChannel:
    """A channel on whose calls the token travels."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self._channel = channel
        self._credentials = credentials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def unary_unary(self, path: str) -> Any:
        """Return what makes calls of a method."""
        return _Authorized(self._channel.unary_unary(path), self._credentials)

    def unary_stream(self, path: str) -> Any:
        """Return what makes calls of a method."""
        return _Authorized(self._channel.unary_stream(path), self._credentials)

    def stream_unary(self, path: str) -> Any:
        """Return what makes calls of a method."""
        return _Authorized(self._channel.stream_unary(path), self._credentials)

    def stream_stream(self, path: str) -> Any:
        """Return what makes calls of a method."""
        return _Authorized(self._channel.stream_stream(path), self._credentials)


class _Authorized:
    """A method of a channel, called with the token."""

    def __init__(self, method: Any, credentials: Credentials) -> None:
        self._method = method
        self._credentials = credentials

    def __call__(self, *args: Any, metadata: Any = None, **named: Any) -> Any:
        own = self._credentials.metadata()
        return self._method(*args, metadata=(*metadata, *own) if metadata else own, **named)

    def future(self, *args: Any, metadata: Any = None, **named: Any) -> Any:
        """Begin a call of the blocking flavour."""
        own = self._credentials.metadata()
        return self._method.future(*args, metadata=(*metadata, *own) if metadata else own, **named)
