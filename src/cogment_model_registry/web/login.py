"""Log in with a token: the browser gets the id of a session, and the token stays in this process."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogment_model_registry.errors import (
    LimitedError,
    PermissionDeniedError,
    SettingError,
    UnauthenticatedError,
)
from cogment_model_registry.system.token_files import checked_token
from cogment_model_registry.web.forms import read_form
from cogment_model_registry.web.registries import Caller, current
from cogment_model_registry.web.security import cookie_name
from cogment_model_registry.web.sessions import LONGEST_SECONDS
from cogment_model_registry.web.state import caller_of, state_of


def local_path(text: str) -> str:
    """Return where to go after logging in: always a path of this server."""
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable()
    return text if is_path and "\\" not in text else "/"


async def show(request: Request) -> Response:
    """Answer with the form."""
    target = local_path(request.query_params.get("next", "/"))
    has_ended = request.query_params.get("ended") == "yes"
    return state_of(request).templates.page(request, "login.html", target=target, problem="", has_ended=has_ended)


async def begin(request: Request) -> Response:
    """Begin a session with the token of a form, if it is valid."""
    fields = await read_form(request)
    target = local_path(fields.get("next", "/"))
    state = state_of(request)
    try:
        token = checked_token(fields.get("token", "").strip(), "token")
        current.set(Caller(caller_of(request).peer, token))
        await _check(request)
    except (SettingError, UnauthenticatedError, LimitedError) as error:
        problem = error.message if isinstance(error, LimitedError) else "The server does not know this token."
        status = HTTPStatus.TOO_MANY_REQUESTS if isinstance(error, LimitedError) else HTTPStatus.FORBIDDEN
        return state.templates.page(request, "login.html", status, target=target, problem=problem, has_ended=False)
    _end_session(request)
    answer = RedirectResponse(target, HTTPStatus.SEE_OTHER)
    answer.set_cookie(
        cookie_name(request.scope),
        state.sessions.begin(token),
        max_age=int(LONGEST_SECONDS),
        path="/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


async def _check(request: Request) -> None:
    """Make a call with the token.

    Raises:
        UnauthenticatedError: It is not valid.
    """
    try:
        await state_of(request).registry.find_models(limit=1)
    except PermissionDeniedError:
        return  # it is valid, and allows something else


async def end(request: Request) -> Response:
    """End a session, and with it the streams of its other pages."""
    _end_session(request)
    answer = RedirectResponse("/login?ended=yes", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(
        cookie_name(request.scope),
        path="/",
        secure=request.scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def _end_session(request: Request) -> None:
    state_of(request).sessions.end(request.cookies.get(cookie_name(request.scope), ""))
