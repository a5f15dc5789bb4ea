"""Checks of every request (host, caller, origin), and headers of every answer.

A server on this machine that needs no tokens trusts the browser of its user, and so the requests that pages of other
sites make that browser send. Cross-site requests have the origin of the other site. By DNS rebinding, the name of the
other site resolves to this machine, so origin and host are equal: such requests have that name as host.
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TypeAlias

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cogment_model_registry.errors import SettingError, quoted
from cogment_model_registry.system.token_files import checked_token
from cogment_model_registry.web.errors import CHALLENGE, RefusedError, problem
from cogment_model_registry.web.registries import Caller, current
from cogment_model_registry.web.sessions import Sessions
from cogment_model_registry.wire import forwarding

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
DATA_POLICY = "sandbox; default-src 'none'; frame-ancestors 'none'"
"""The policy for the bytes of versions, which may be anything."""

_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "same-origin",  # with no-referrer, browsers send forms of our own pages with the origin null
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_PORT_MAX_CHARACTERS = 5

_STRICT_TRANSPORT = "max-age=31536000"

_Names: TypeAlias = frozenset[str]


def own_names(configured: Iterable[str]) -> _Names | None:
    """Return the host names of this server; None for any.

    Args:
        configured: The value of the setting `http_hosts`.
    """
    names = {*configured, "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    return None if "*" in names else frozenset(name.rstrip(".") for name in names)


def _host_of(authority: str) -> str:
    """Return the host of ``host:port``, without brackets; empty if it is malformed."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        is_whole = bool(bracket) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        host, _, port = authority.partition(":")
        is_whole = True
    return host.rstrip(".").lower() if is_whole and (not port or port.isdecimal()) else ""


def _port_of(authority: str) -> str:
    """Return the port of ``host:port``; empty if there is none."""
    return authority.rpartition("]")[2].partition(":")[2][:_PORT_MAX_CHARACTERS]


def is_own_host(authority: str, names: _Names | None) -> bool:
    """Return whether a request for a host is one for this server.

    An IP address is always accepted: DNS rebinding needs a name.

    Args:
        authority: The header ``Host``.
        names: See `own_names`.
    """
    host = _host_of(authority)
    if not host:
        return False
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return names is None or host in names or host.endswith(".localhost")
    return True


def is_same_origin(headers: Headers, scheme: str, *, is_by_cookie: bool) -> bool:
    """Return whether a request that changes something comes from a page of this server, or not from a page.

    Args:
        headers: The headers of the request.
        scheme: ``http`` or ``https``, as far as this process knows: trusted proxies tell it.
        is_by_cookie: Whether the caller is identified by a cookie, which only browsers send.
    """
    origin = headers.get("origin")
    if origin is not None:
        # A proxy that ends the encryption sends plain requests of encrypted pages; never the other way round.
        schemes = ("https",) if scheme == "https" else ("http", "https")
        return origin.lower() in [f"{each}://{headers.get('host', '').lower()}" for each in schemes]
    if (site := headers.get("sec-fetch-site")) is not None:
        return site in ("same-origin", "none")
    return not is_by_cookie


def is_encrypted(scope: Scope) -> bool:
    """Return whether the browser has the page over TLS: from this process, or from a proxy that ends the encryption."""
    return bool(scope["scheme"] == "https" or Headers(scope=scope).get("origin", "").lower().startswith("https:"))


def cookie_name(scope: Scope, *, is_encrypted: bool) -> str:
    """Return the name of the session cookie.

    Browsers share cookies between all ports of a host, so it has the port that the browser connects to: otherwise the
    logins of two registries on a host would replace each other. Over TLS, browsers accept its prefix only for cookies
    that this host has set over TLS.
    """
    authority = Headers(scope=scope).get("host", "")
    port = _port_of(authority)
    return f"{'__Host-' if is_encrypted else ''}registry-session{f'-{port}' if port else ''}"


def session_id_of(scope: Scope) -> str:
    """Return the id of the session of a request; empty if there is none.

    Over TLS, only a cookie counts that was set over TLS.
    """
    cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
    found = cookies.get(cookie_name(scope, is_encrypted=True), "")
    if not found and scope["scheme"] != "https":
        found = cookies.get(cookie_name(scope, is_encrypted=False), "")
    return found


def _headers_of(scope: Scope) -> Mapping[str, str]:
    """Return what each answer to a request has.

    Browsers apply strict transport security to all ports of a host (RFC 6797, section 8.3), and so to what others serve
    there without encryption: only a server on the port of HTTPS may ask for it.
    """
    if scope["scheme"] == "https" and _port_of(Headers(scope=scope).get("host", "")) in ("", "443"):
        return {**_HEADERS, "strict-transport-security": _STRICT_TRANSPORT}
    return _HEADERS


class Security:
    """Checks each request first, and adds headers to each answer.

    Args:
        app: The application that answers.
        sessions: The sessions of browsers.
        names: The allowed host names; None for any.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, names: _Names | None) -> None:
        self._app = app
        self._sessions = sessions
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with_headers = _adding(_headers_of(scope), send)
        try:
            caller = self._admitted(scope)
        except RefusedError as error:
            await problem(error.status, error.detail, error.headers)(scope, receive, with_headers)
            return
        token = current.set(caller)
        scope["caller"] = caller
        try:
            await self._app(scope, receive, with_headers)
        finally:
            current.reset(token)

    def _admitted(self, scope: Scope) -> Caller:
        """Return the caller.

        Raises:
            RefusedError: The host is not this server, the page is of another site, the token is malformed, the length
                of the body has two meanings, or the client has no address any more.
        """
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _host_of(hosts[0]):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "a request must have one header Host, of a host and a port")
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may go by the other one, and take the rest for another request (RFC 9112, section 6.3).
            message = "a request must not have both headers Content-Length and Transfer-Encoding"
            raise RefusedError(HTTPStatus.BAD_REQUEST, message, {"Connection": "close"})
        if not is_own_host(hosts[0], self._names):
            host = quoted(_host_of(hosts[0]))
            raise RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"{host} is not a host name of this server; if it should be, add it to http_hosts",
            )
        caller = self._caller(scope, headers)
        if scope["method"] not in SAFE_METHODS and not is_same_origin(
            headers, scope["scheme"], is_by_cookie=caller.is_by_cookie
        ):
            raise RefusedError(HTTPStatus.FORBIDDEN, "the request comes from a page of another site")
        return caller

    def _caller(self, scope: Scope, headers: Headers) -> Caller:
        client = scope.get("client")
        if (
            client is None
        ):  # it has reset the connection already; whoever has no address could be anybody, also from here
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the address of the client is not known")
        peer = forwarding.peer_of(*client)
        given = headers.getlist("authorization")
        if given:
            return Caller(peer, _bearer(given))
        session_id = session_id_of(scope)
        token = self._sessions.token_of(session_id) if session_id else None
        return Caller(peer) if token is None else Caller(peer, token, is_by_cookie=True, session_id=session_id)


def _bearer(given: list[str]) -> str:
    """Return the token in headers.

    Raises:
        RefusedError: The header is malformed.
    """
    scheme, _, token = given[0].partition(" ")
    try:
        if len(given) > 1 or scheme.lower() != "bearer":
            raise SettingError("authorization", "...", "Bearer TOKEN")
        return checked_token(token.strip(), "authorization")
    except SettingError:
        message = "the header Authorization is malformed; it must be one Bearer TOKEN"
        raise RefusedError(HTTPStatus.UNAUTHORIZED, message, CHALLENGE) from None


def _adding(added: Mapping[str, str], send: Send) -> Send:
    """Return a function that sends an answer with additional headers, unless it has set them itself."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_with_headers
