"""New versions by PUT or POST: the body is the version, and is passed on while it arrives."""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cogment_model_registry.client.passing_on import PassingOn
from cogment_model_registry.errors import InvalidError, ModelRegistryError, quoted
from cogment_model_registry.records.documents import version_as_json
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import DATA_SIZE_MAX_BYTES, VersionHeader, VersionInfo
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.parameters import flag, parameters
from cogment_model_registry.web.ranges import tag_of
from cogment_model_registry.web.state import address_of, registry_of, state_of

_DIGEST = re.compile(r"(?:^|,)[ \t]*sha-256[ \t]*=[ \t]*:([A-Za-z0-9+/=]*):", re.IGNORECASE)


async def create(request: Request) -> Response:
    """Create a version from the body of a request, and answer with its record."""
    header = _header_of(request)
    registry, state = registry_of(request), state_of(request)
    idle_seconds = state.options.idle_seconds

    async def parts() -> AsyncIterator[bytes]:
        stream = request.stream()
        try:
            while True:
                async with asyncio.timeout(idle_seconds):
                    part = await anext(stream)
                yield part
        except StopAsyncIteration:
            return
        except TimeoutError:
            message = f"no bytes of the body were received for {idle_seconds:g} seconds"
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, message, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the connection ended within the body") from None

    # If it is refused, the connection stays open, and what arrives is dropped: it would be reset otherwise, and the
    # answer be lost.
    with state.uploads.taken(address_of(request)):
        info = await PassingOn(registry.calls).upload(header, parts)
    place = f"/api/v1/models/{quote(info.model_id)}/versions/{info.number}"
    headers = {"location": place, "etag": tag_of(info)}
    return JSONResponse(version_as_json(await _described(request, info)), HTTPStatus.CREATED, headers)


async def _described(request: Request, info: VersionInfo) -> VersionInfo:
    """Return a version with its aliases, tags and metrics, if the caller may read it and it still exists."""
    try:
        return await registry_of(request).describe_version(info.model_id, info.number)
    except ModelRegistryError:
        return info


def _header_of(request: Request) -> UploadHeader:
    """Return the declaration of a version, from the parameters and the headers of a request.

    Raises:
        InvalidError: A parameter is malformed.
        RefusedError: The size is missing.
    """
    query = parameters(request, {"archived", "tag", "metric", "alias", "user_data", "create_model"})
    aliases = tuple(request.query_params.getlist("alias"))
    if "content-encoding" in request.headers:
        raise RefusedError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "the header Content-Encoding is not allowed; send the bytes of the version unencoded",
        )
    text = request.headers.get("content-length")
    if text is None:
        message = "the size of the version is missing: send the header Content-Length"
        raise RefusedError(HTTPStatus.LENGTH_REQUIRED, message)
    size_bytes = int(text)  # the parser of HTTP has checked that it has only digits
    if size_bytes > DATA_SIZE_MAX_BYTES:
        raise RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the version is too large; the limit is {DATA_SIZE_MAX_BYTES} bytes"
        )
    version = VersionHeader(
        request.path_params["model"],
        flag(query, "archived") or bool(aliases),
        size_bytes,
        _hash_of(request),
        user_data=_entries(request, "user_data"),
    )
    return UploadHeader(
        version,
        tags=_entries(request, "tag"),
        metrics={name: _number(name, value) for name, value in _entries(request, "metric").items()},
        aliases=aliases,
        request_id=request.headers.get("idempotency-key", "").strip('"'),
        create_model=flag(query, "create_model", default=True),
    )


def _entries(request: Request, name: str) -> Mapping[str, str]:
    """Return the entries of a repeated parameter, each ``KEY=TEXT``."""
    entries: dict[str, str] = {}
    for text in request.query_params.getlist(name):
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidError(f"{name} is {quoted(text)}; it must be NAME=VALUE")
        if key in entries:
            raise InvalidError(f"{name} has {quoted(key)} twice")
        entries[key] = value
    return entries


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidError(f"metric {quoted(name)} is {quoted(text)}; it must be a number") from None


def _hash_of(request: Request) -> str:
    """Return the hash in the header ``Repr-Digest``; empty if there is none (RFC 9530).

    Raises:
        InvalidError: It is malformed.
    """
    given = ",".join(request.headers.getlist("repr-digest") + request.headers.getlist("content-digest"))
    match = _DIGEST.search(given)
    if match is None:
        return ""
    try:
        base64.b64decode(match[1], validate=True)
    except binascii.Error:
        raise InvalidError("the digest sha-256 is malformed; it must be base64 between colons") from None
    return match[1]
