"""Errors over HTTP: one table of statuses, and one format, `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from cogment_model_registry import errors

STATUS_BY_ERROR: Mapping[type[errors.ModelRegistryError], HTTPStatus] = {
    errors.OutOfRangeError: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    errors.InvalidError: HTTPStatus.BAD_REQUEST,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.PreconditionError: HTTPStatus.CONFLICT,
    errors.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    errors.PermissionDeniedError: HTTPStatus.FORBIDDEN,
    errors.ConflictError: HTTPStatus.PRECONDITION_FAILED,
    errors.ExistsError: HTTPStatus.CONFLICT,
    errors.TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.LimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TimedOutError: HTTPStatus.GATEWAY_TIMEOUT,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ClosedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SettingError: HTTPStatus.BAD_REQUEST,
}
"""The status for each class of errors; the most specific class counts. All others are 500."""

CONTENT_TYPE = "application/problem+json"

CHALLENGE = {"WWW-Authenticate": 'Bearer realm="model registry"'}

_RETRY_SECONDS = 1


class RefusedError(Exception):
    """A request is refused before it becomes a call.

    Args:
        status: The status.
        detail: One line: what is wrong, and what to do.
        headers: Headers of the answer.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def status_of(error: errors.ModelRegistryError) -> HTTPStatus:
    """Return the status of an error."""
    statuses = (STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in STATUS_BY_ERROR)
    return next(statuses, HTTPStatus.INTERNAL_SERVER_ERROR)


def problem(status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None, **members: Any) -> Response:
    """Return an answer in the format of all errors.

    Args:
        status: The status.
        detail: One line: what is wrong, and what to do.
        headers: More headers.
        members: More members of the body.
    """
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail, **members}
    return JSONResponse(body, status.value, headers, CONTENT_TYPE)


def problem_of(error: errors.ModelRegistryError) -> Response:
    """Return the answer for an error."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status is HTTPStatus.UNAUTHORIZED:
        headers.update(CHALLENGE)
    if isinstance(error, errors.LimitedError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds + 0.5)))
    elif status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    about = {
        name: value
        for name, value in (("model_id", error.model_id), ("version_number", error.version_number))
        if value is not None
    }
    return problem(status, error.message, headers, error=type(error).__name__, **about)


async def on_registry_error(_request: Request, error: Exception) -> Response:
    """Answer a request whose call failed."""
    if not isinstance(error, errors.ModelRegistryError):
        raise error
    return problem_of(error)


async def on_refusal(_request: Request, error: Exception) -> Response:
    """Answer a request that was refused here."""
    if not isinstance(error, RefusedError):
        raise error
    return problem(error.status, error.detail, error.headers)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer a request for a path or with a method that does not exist."""
    if not isinstance(error, HTTPException):
        raise error
    error = with_all_methods(request, error)
    return problem(HTTPStatus(error.status_code), detail_of(error, request.method), error.headers)


def with_all_methods(request: Request, error: HTTPException) -> HTTPException:
    """Return an error of a method with the methods of all routes of the address; Starlette names those of the first."""
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return error
    routes = (route for route in request.app.routes if isinstance(route, Route))
    fitting = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    methods = sorted({method for route in fitting for method in route.methods or ()})
    return HTTPException(error.status_code, error.detail, {**(error.headers or {}), "Allow": ", ".join(methods)})


def detail_of(error: HTTPException, method: str) -> str:
    """Return what is wrong with the path or the method of a request, and what exists."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "this address does not exist; /api/v1/openapi.json describes the API, and / is the web interface"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return f"{method} is not possible at this address; possible are {allowed}"
    return error.detail
