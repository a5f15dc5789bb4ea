"""The errors of the library of object stores, in the words of this package: one table.

What the library says goes to the log alone, cut to the line that matters and without what may be secret: it quotes the
addresses of requests, whose queries may be signed.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions as foreign

from cogment_model_registry.errors import NO_ROOM, ModelRegistryError, TooLargeError, UnavailableError

_SHOWN_CHARACTERS = 200
_SECRET_NAME = re.compile(r"(AWS|AZURE|GOOGLE|GCP)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS)")
_SECRET_MIN_CHARACTERS = 4
_INSUFFICIENT_STORAGE = "status code: 507"


class ObjectMissing(Exception):  # an answer, which only this folder sees
    """There is no object of that name."""


class ObjectExists(Exception):  # as above
    """There is an object of that name, or is about to be, so none was created."""


_TABLE: tuple[tuple[type[BaseException], type[Exception], str], ...] = (
    (FileNotFoundError, ObjectMissing, ""),
    (foreign.AlreadyExistsError, ObjectExists, ""),
    (foreign.PreconditionError, ObjectExists, ""),
    (foreign.UnauthenticatedError, UnavailableError, "the object store does not accept the credentials"),
    (foreign.PermissionDeniedError, UnavailableError, "the object store does not permit it"),
    (foreign.NotSupportedError, UnavailableError, "the object store does not support it"),
    (foreign.BaseError, UnavailableError, "the object store does not answer as it should"),
    (ValueError, UnavailableError, "the object store does not answer as it should"),
    (OSError, UnavailableError, "the object store does not answer as it should"),
)
"""The first line that matches counts: an error of the library, ours, and what its message says."""


@contextmanager
def translated() -> Iterator[None]:
    """Return a context manager that translates what the library raises.

    Raises:
        ObjectMissing: There is no object of that name.
        ObjectExists: There is one, so none was created.
        TooLargeError: No space is left.
        UnavailableError: The store failed. `reason_of` returns why.
    """
    try:
        yield
    except ModelRegistryError:
        raise
    except (foreign.BaseError, OSError, ValueError) as error:
        raise _translation(error) from error


def _translation(error: Exception) -> Exception:
    reason = str(error)
    number = re.search(r"\(os error ([0-9]+)\)", reason)
    if _INSUFFICIENT_STORAGE in reason or (number and int(number[1]) in NO_ROOM):
        return TooLargeError("the archive has no space left")
    kind, text = next((kind, text) for known, kind, text in _TABLE if isinstance(error, known))
    return kind(f"the archive failed: {text}" if text else "")


def reason_of(error: BaseException) -> str:
    """Return what the library said, for the log: one line, without what may be secret."""
    cause = error.__cause__ or error
    text = str(cause).split("\n", 1)[0].split("<", 1)[0].strip()
    for name, value in os.environ.items():
        if _SECRET_NAME.fullmatch(name) and len(value) >= _SECRET_MIN_CHARACTERS:
            text = text.replace(value, "***")
    return re.sub(r"\?[^\s)]*", "?***", text)[:_SHOWN_CHARACTERS]
