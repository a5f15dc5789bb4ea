"""The errors of this package.

    ModelRegistryError
    ├── InvalidError        the request breaks a rule, now and later
    │   └── OutOfRangeError a part of a version begins past its end
    ├── NotFoundError       no such model or version
    ├── PreconditionError   the state of the registry does not allow it: it is read-only
    ├── UnauthenticatedError  the server does not know who calls, and has to
    ├── PermissionDeniedError  the caller may not do it
    ├── ConflictError       what was to change has changed in the meantime
    ├── ExistsError         the id of an upload is taken by another upload
    ├── TooLargeError       it does not fit a limit, the memory budget or the disk
    ├── DataLossError       what is stored is damaged
    ├── SignatureError      a version has no signature by a key that the caller trusts
    ├── TimedOutError       the other side took too long
    ├── UnavailableError    the registry cannot do it now: its archive fails
    │   ├── StoppingError   the server is stopping
    │   └── LimitedError    the caller is over one of its limits, and has to wait
    ├── WrongServerError    what answers is not a model registry, or not a Directory
    ├── ClosedError         the client was closed, or cannot be used here, or the model is not tracked
    ├── SettingError        a setting has a value that is not allowed
    └── StartError          the server cannot start

A message names the thing, what was expected and what was received. It may reach a stranger over the network, so it
never shows a path of the server; `SettingError` and `StartError` speak to the operator and may.
"""

import errno
import json
import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The system's errors of writing that mean that no space is left: those of `TooLargeError`."""


class ModelRegistryError(Exception):
    """Root of the errors of this package.

    Args:
        message: One line for people.
        model_id: The model that the error is about, if it is about one.
        version_number: The version of that model, if it is about one.

    Attributes:
        may_be_done: For a client: whether the server may have done the request nevertheless.
    """

    may_be_done = False

    def __init__(self, message: str, *, model_id: str | None = None, version_number: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.model_id = model_id
        self.version_number = version_number

    def reworded(self, message: str) -> "Self":
        """Return the same error with another message."""
        return _restored(type(self), (message,), {**self.__dict__, "message": message})

    def __reduce__(self) -> tuple[object, ...]:
        # Subclasses have other arguments; and an error that cannot be unpickled makes pools of processes hang.
        return _restored, (type(self), self.args, self.__dict__)


_Error = TypeVar("_Error", bound=ModelRegistryError)


def _restored(kind: type[_Error], arguments: tuple[object, ...], state: dict[str, object]) -> _Error:
    """Return an error as it was pickled."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class InvalidError(ModelRegistryError):
    """The request breaks a rule, whatever the state of the registry."""


class OutOfRangeError(InvalidError):
    """A part of a version was asked for that begins past its end."""


class NotFoundError(ModelRegistryError):
    """The model or the version does not exist, or no longer does."""

    @classmethod
    def model(cls, model_id: str) -> "Self":
        """Return the error for a model that does not exist."""
        return cls(f"model {quoted(model_id)} does not exist", model_id=model_id)

    @classmethod
    def version(cls, model_id: str, version_number: int) -> "Self":
        """Return the error for a version that does not exist, or that was evicted."""
        missing = "versions" if version_number == -1 else f"version {version_number}"  # -1 is the latest
        message = f"model {quoted(model_id)} has no {missing}"
        return cls(message, model_id=model_id, version_number=version_number)


class PreconditionError(ModelRegistryError):
    """The state of the registry does not allow it, such as that of a read-only one; to try again does not help."""


class UnauthenticatedError(ModelRegistryError):
    """The server does not know who calls: the token is missing, unknown, revoked, expired or malformed."""


class PermissionDeniedError(ModelRegistryError):
    """The caller may not do it. The message names the scope that is missing, and nothing that exists."""


class ConflictError(ModelRegistryError):
    """What was to change has another revision than the caller expected. The message has the current state."""


class ExistsError(ModelRegistryError):
    """The id of an upload is that of an earlier upload with another header."""


class TooLargeError(ModelRegistryError):
    """It exceeds a limit, the memory budget, or the disk."""


class DataLossError(ModelRegistryError):
    """A stored version is damaged: its bytes or its metadata are not what was stored."""

    reason: str = ""
    """The damage, if it is known."""

    @classmethod
    def version(cls, model_id: str, version_number: int, reason: str) -> "Self":
        """Return the error for a damaged version; `reason` describes the damage."""
        message = f"version {version_number} of model {quoted(model_id)} is damaged: {reason}"
        error = cls(message, model_id=model_id, version_number=version_number)
        error.reason = reason
        return error


class SignatureError(ModelRegistryError):
    """A version has no signature, or one by a key that the caller does not trust, or one that is wrong."""


class TimedOutError(ModelRegistryError):
    """The other side took too long."""


class UnavailableError(ModelRegistryError):
    """The registry cannot do it now; it may later."""


class OutOfServiceError(UnavailableError):
    """This server cannot do it now; another one that serves the same models may."""


class StoppingError(OutOfServiceError):
    """The server is stopping."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class LimitedError(UnavailableError):
    """The caller is over one of its limits. The call was refused before anything was done.

    Args:
        message: One line for people.
        model_id: The model that the call was about, if it was about one.
        version_number: The version of that model, if it was about one.
        retry_after_seconds: When the caller may try again.

    Attributes:
        retry_after_seconds: As above.
    """

    def __init__(
        self,
        message: str,
        *,
        model_id: str | None = None,
        version_number: int | None = None,
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(message, model_id=model_id, version_number=version_number)
        self.retry_after_seconds = retry_after_seconds


class WrongServerError(ModelRegistryError):
    """The server at the endpoint is not the expected one: a model registry, or a Directory."""


class ClosedError(ModelRegistryError):
    """The program closed the client, or it cannot be used here, or the model is not tracked, or not any more.

    A client cannot be used in a process that was forked after its first call, on another event loop, or while Python
    ends.
    """

    def __init__(
        self,
        message: str = "the model registry client is closed",
        *,
        model_id: str | None = None,
        version_number: int | None = None,
    ) -> None:
        super().__init__(message, model_id=model_id, version_number=version_number)


class SettingError(ModelRegistryError):
    """A setting has a value that is not allowed.

    Args:
        setting: The setting's name, with the source of its value.
        value: The value received.
        allowed: The values that are allowed.
    """

    def __init__(self, setting: str, value: str, allowed: str) -> None:
        super().__init__(f"{setting}: {quoted(_without_secrets(value))} is not allowed; it must be {allowed}")
        self.setting = setting
        self.value = value
        self.allowed = allowed


def _without_secrets(text: str) -> str:
    """Return a text with stars for the user of an address and for its query, which may be signed."""
    return re.sub(r"(://[^?\s]*)\?.*", r"\1?***", re.sub(r"://[^/?#@\s]*@", "://***@", text))


class StartError(ModelRegistryError):
    """The server cannot start: its port or its archive directory is not available."""


_SHOWN_MAX_CHARACTERS = 160


def quoted(text: str) -> str:
    """Return `text` in quotes, escaped and cut to fit a line, for use in a message."""
    shown = text if len(text) <= _SHOWN_MAX_CHARACTERS else text[:_SHOWN_MAX_CHARACTERS] + "…"
    return json.dumps(shown, ensure_ascii=not shown.isprintable())


def counted(number: int | float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, which is in the plural unless the number is 1.

    Args:
        number: The number.
        noun: The noun for one.
        plural: The noun for more, where it is not the same with an s.
    """
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun if number == 1 else plural or noun + 's'}"


def shown(value: object) -> object:
    """Return a value for the log; a string that is long or has control characters comes in quotes."""
    if isinstance(value, str) and not (value.isprintable() and len(value) <= _SHOWN_MAX_CHARACTERS):
        return quoted(value)
    return value
