"""Log in with a token: the browser gets the id of a session, and the token stays in this process."""

import math
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogment_model_registry.errors import LimitedError, SettingError, UnauthenticatedError, counted
from cogment_model_registry.system.token_files import checked_token
from cogment_model_registry.web.forms import read_form
from cogment_model_registry.web.registries import Caller, current
from cogment_model_registry.web.security import cookie_name, is_encrypted, session_id_of
from cogment_model_registry.web.sessions import LONGEST_SECONDS
from cogment_model_registry.web.state import address_of, caller_of, state_of


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
        identity = await _identify(request, token)
    except (SettingError, UnauthenticatedError):
        state.tally.count_login("refused")
        return _refused(request, HTTPStatus.FORBIDDEN, target, "The server does not know this token.")
    except LimitedError as error:
        state.tally.count_login("limited")
        answer = _refused(request, HTTPStatus.TOO_MANY_REQUESTS, target, error.message)
        answer.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_seconds)))
        return answer
    state.tally.count_login("accepted")
    _end_session(request)
    answer = RedirectResponse(target, HTTPStatus.SEE_OTHER)
    session_id = state.sessions.begin(token, identity)
    answer.set_cookie(value=session_id, max_age=int(LONGEST_SECONDS), **_cookie(request))
    return answer


def _refused(request: Request, status: HTTPStatus, target: str, problem: str) -> Response:
    """Return the form again, with what is wrong."""
    templates = state_of(request).templates
    return templates.page(request, "login.html", status, target=target, problem=problem, has_ended=False)


async def _identify(request: Request, token: str) -> str:
    """Return whose token it is.

    A host that has tried too many invalid tokens has to wait, but for tokens that the server knows: others behind the
    same address can still log in.

    Raises:
        UnauthenticatedError: It is not valid.
        LimitedError: The host has tried too many.
    """
    state, caller = state_of(request), caller_of(request)
    address = address_of(request)
    current.set(Caller(caller.peer, token))
    has_taken = state.logins.take(address)
    if not has_taken and not await state.registry.knows_token():
        seconds = math.ceil(state.logins.wait_seconds(address))
        message = f"Too many tokens from your address were not valid; try again in {counted(seconds, 'second')}."
        raise LimitedError(message, retry_after_seconds=seconds)
    description = await state.registry.describe_caller()
    if has_taken:
        state.logins.give_back(address)
    return f"{description.kind}:{description.name}"


async def end(request: Request) -> Response:
    """End a session, and with it the streams of its other pages."""
    _end_session(request)
    answer = RedirectResponse("/login?ended=yes", HTTPStatus.SEE_OTHER)
    answer.delete_cookie(**_cookie(request))
    return answer


def _cookie(request: Request) -> dict[str, Any]:
    """Return the name and the attributes of the session cookie: browsers replace a cookie by one with the same."""
    is_secure = is_encrypted(request.scope)
    return {
        "key": cookie_name(request.scope, is_encrypted=is_secure),
        "path": "/",
        "secure": is_secure,
        "httponly": True,
        "samesite": "lax",
    }


def _end_session(request: Request) -> None:
    state_of(request).sessions.end(session_id_of(request.scope))
