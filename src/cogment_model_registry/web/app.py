"""The routes of HTTP, and the layers around them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from cogment_model_registry.errors import ModelRegistryError, UnauthenticatedError
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web import api, errors, health, login, pages
from cogment_model_registry.web.access_log import AccessLog
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.proxies import TrustedProxies
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.security import SAFE_METHODS, Security, own_names
from cogment_model_registry.web.state import State, caller_of, state_of
from cogment_model_registry.web.tally import Counting, naming
from cogment_model_registry.web.templates import wants_page


def new_app(options: WebOptions, write: Callable[[str], None]) -> Starlette:
    """Return the ASGI application.

    Args:
        options: The options from the server.
        write: Writes lines of the access log to the server; called on a thread.
    """
    state = State(options, Registry(options.socket_path))
    access_log = AccessLog(state.registry, write) if options.access_log else None
    feeds = pages.install(state)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            async with access_log.writing() if access_log else nullcontext():
                yield
        finally:
            await feeds.close()
            await state.registry.close()

    # Over TLS, the certificate proves the name.
    names = None if options.tls_certificate else own_names(options.hosts)
    proxies = [Middleware(TrustedProxies, networks=options.trusted_proxies)] if options.trusted_proxies else []
    app = Starlette(
        routes=_routes(state),
        middleware=[
            *proxies,
            Middleware(Counting, tally=state.tally, log=access_log.log if access_log else None),
            Middleware(Security, sessions=state.sessions, names=names),
        ],
        exception_handlers={
            ModelRegistryError: _answered(errors.on_registry_error),
            RefusedError: _answered(errors.on_refusal),
            HTTPException: _answered(errors.on_http_error),
            Exception: _on_failure,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.shared = state
    app.state.feeds = feeds
    return app


def _routes(state: State) -> Sequence[BaseRoute]:
    static = state.templates.static.answer
    routes = [
        Route("/healthz", health.alive),
        Route("/readyz", health.ready),
        Route("/metrics", health.metrics),
        Route("/login", login.show, methods=["GET"]),
        Route("/login", login.begin, methods=["POST"]),
        Route("/logout", login.end, methods=["POST"]),
        Route("/static/{tag}/{name}", static),
        Route("/static/{name}", static),
        *api.routes(),
        *pages.routes(),
    ]
    for route in routes:
        if isinstance(route, Route):
            route.app = naming(route.app, route.path)
    return routes


_Answer = Callable[[Request, Exception], Awaitable[Response]]


def _answered(answer: _Answer) -> _Answer:
    """Return a handler of errors, which answers browsers with a page."""

    async def answer_fitting(request: Request, error: Exception) -> Response:
        response = await answer(request, error)
        if not wants_page(request):
            return response
        if isinstance(error, UnauthenticatedError) and not caller_of(request).token:
            target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(target)}", HTTPStatus.SEE_OTHER)
        status = HTTPStatus(response.status_code)
        detail = getattr(error, "message", None) or getattr(error, "detail", "")
        if isinstance(error, HTTPException):
            detail = errors.detail_of(errors.with_all_methods(request, error), request.method)
        if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
            address = _without_slash(request)
            if address:
                return RedirectResponse(address, HTTPStatus.PERMANENT_REDIRECT)
        page = state_of(request).templates.page(request, "problem.html", status, title=status.phrase, detail=detail)
        for name in ("www-authenticate", "retry-after", "allow"):
            if name in response.headers:
                page.headers[name] = response.headers[name]
        return page

    return answer_fitting


def _without_slash(request: Request) -> str:
    """Return the address of a page without a slash at its end; empty if it has none."""
    path = request.scope["raw_path"].decode("ascii", "replace")
    if request.method not in SAFE_METHODS or not path.endswith("/") or not path.strip("/"):
        return ""
    query = f"?{request.url.query}" if request.url.query else ""
    return f"/{path.strip('/')}{query}"  # with one slash at its beginning: two would name another host


async def _on_failure(_request: Request, _error: Exception) -> Response:
    """Answer a request that failed unexpectedly; uvicorn logs the error."""
    return errors.problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why")
