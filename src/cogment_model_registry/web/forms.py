"""Forms and bodies of requests, within bounds of size and time."""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.state import state_of

_BODY_MAX_BYTES = 4 * 1024 * 1024
"""More than any form or document needs; `user_data` takes a quarter of it at most."""

_SMALL_BODY_BYTES = 64 * 1024
"""How much of a body anybody may have here; all connections together then take no more than some 256 MiB."""

_LARGE_BODIES_MAX = 16
"""How many larger ones may be on their way: they are read before it is known who sends them."""

_BODY_SECONDS = 30.0
_FIELDS_MAX = 1000


async def read_body(request: Request, max_bytes: int = _BODY_MAX_BYTES) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: It is too large, or takes too long, or there are too many large ones.
    """
    parts: list[bytes] = []
    size_bytes = 0
    state, is_large = state_of(request), False
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size_bytes += len(part)
                if size_bytes > max_bytes:
                    message = f"the body has more than {max_bytes} bytes, the limit"
                    raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
                if size_bytes > _SMALL_BODY_BYTES and not is_large:
                    if state.large_bodies >= _LARGE_BODIES_MAX:
                        message = f"{_LARGE_BODIES_MAX} large bodies are on their way; try again later"
                        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message, {"retry-after": "1"})
                    state.large_bodies += 1
                    is_large = True
                parts.append(part)
    except TimeoutError:
        raise RefusedError(
            HTTPStatus.REQUEST_TIMEOUT, "the body was not received in time", {"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the connection ended within the body") from None
    finally:
        state.large_bodies -= is_large
    return b"".join(parts)


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form, the last of each name.

    Raises:
        RefusedError: The body is not such a form, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        message = "the body must be a form, application/x-www-form-urlencoded"
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
    body = await read_body(request)
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX))
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the form is malformed") from None


async def read_json(request: Request) -> object:
    """Return the JSON document in a body; an empty object if the body is empty.

    Raises:
        RefusedError: It is not JSON, or too large, or has another content type, such as pages of other sites can send.
    """
    body = await read_body(request)
    if not body:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/merge-patch+json"):
        message = "the body must be JSON, with the header Content-Type: application/json"
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f", at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is not JSON{where}") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity, which are not JSON
