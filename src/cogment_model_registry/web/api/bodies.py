"""JSON bodies of requests: an object with known fields of known types."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.web.forms import read_json

_NAMES = {
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    object: "a number or a string",
}
_SHOWN = 200


REVISIONS = LONG = range(2**63)
"""The range of revisions and sizes."""

NUMBERS = range(2**32)
"""The range of numbers of versions, counts and seconds."""


async def read_fields(request: Request, **kinds: type | range) -> Mapping[str, Any]:
    """Return the fields of the object in a body; those that are null count as not given.

    Args:
        request: The request.
        kinds: The fields that it may have, with their types; a range for whole numbers.

    Raises:
        InvalidError: A field is unknown or has another type.
        RefusedError: The body is not JSON.
    """
    document = await read_json(request)
    if not isinstance(document, dict):
        raise InvalidError("the body must be a JSON object")
    for name, value in document.items():
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise InvalidError(f"the field {quoted(name)} in the body is unknown; allowed are {known}")
        if value is not None and not _is_of(value, kinds[name]):
            raise InvalidError(f"{name} is {quoted(str(value)[:_SHOWN])}; it must be {_text_of(kinds[name])}")
    return {name: value for name, value in document.items() if value is not None}


def _is_of(value: object, kind: type | range) -> bool:
    if isinstance(kind, range):
        return isinstance(value, int) and not isinstance(value, bool) and value in kind
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _text_of(kind: type | range) -> str:
    if isinstance(kind, range):
        return f"a whole number from {kind.start} to {kind.stop - 1}"
    return _NAMES[kind]


def texts(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return a field that is an object of strings.

    Raises:
        InvalidError: A value is not a string.
    """
    given: dict[str, Any] = fields.get(name, {})
    for key, value in given.items():
        if not isinstance(value, str):
            raise InvalidError(f"{name}.{key} is {quoted(str(value))}; it must be a string")
    return given
