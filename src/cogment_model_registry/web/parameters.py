"""Parameters of requests: checked, and refused if they are unknown."""

from collections.abc import Collection, Mapping

from starlette.requests import Request

from cogment_model_registry.errors import InvalidError, quoted

_TRUE, _FALSE = ("1", "true", "yes", "on", ""), ("0", "false", "no", "off")


def parameters(request: Request, allowed: Collection[str]) -> Mapping[str, str]:
    """Return the parameters in the address of a request, the last of each name.

    Raises:
        InvalidError: One is unknown; so a misspelt one is never ignored.
    """
    for name in request.query_params:
        if name not in allowed:
            known = ", ".join(sorted(allowed)) or "none"
            raise InvalidError(f"the parameter {quoted(name)} is unknown; allowed are {known}")
    return request.query_params


def flag(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return whether a parameter is on; one without a value is on.

    Raises:
        InvalidError: Its value is neither true nor false.
    """
    if name not in query:
        return default
    text = query[name].lower()
    if text not in _TRUE + _FALSE:
        raise InvalidError(f"{name} is {quoted(query[name])}; it must be true or false")
    return text in _TRUE


def whole_number(query: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    """Return a parameter that is a whole number in a range.

    Raises:
        InvalidError: It is not.
    """
    if name not in query:
        return default
    text = query[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
        raise InvalidError(f"{name} is {quoted(text)}; it must be a whole number from {least} to {most}")
    return int(text)
