"""Channels to other servers: the options of all of them, and what a failed call says about the other side.

A channel of gRPC never ends by itself. It keeps a connection to a process that froze until a ping goes unanswered, and
servers allow one ping in five minutes by default; so the user of a channel replaces it when nothing is answered. A new
one resolves the name again, and shares no connection with the old one.
"""

import re
import socket
import time
from contextlib import suppress

import grpc

from cogment_model_registry.errors import LimitedError, ModelRegistryError, UnavailableError, WrongServerError
from cogment_model_registry.system.certificates import CertificateError
from cogment_model_registry.wire import tls
from cogment_model_registry.wire.convert import error_type_of
from cogment_model_registry.wire.pushback import retry_after_seconds

SILENT_SECONDS = 5
"""How long the other machine may acknowledge nothing before a connection counts as lost."""

OPTIONS = (
    # A server that comes back is found within seconds, not within gRPC's two minutes; an address that does not answer
    # delays the next one of its name by two seconds, not by 20.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # The same for one that comes back at another address of its name: gRPC would resolve it once in 30 seconds.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Five minutes is what servers allow by default between pings of a client.
    ("grpc.keepalive_time_ms", 330_000),
    # With pings, gRPC also lets the kernel end a connection on which so long nothing was acknowledged. Otherwise TCP
    # waits twice as long before each further attempt, and a call hangs for as long after a cut as the cut lasted. The
    # kernel at the other end acknowledges, so it makes no difference how busy the process there is.
    ("grpc.keepalive_timeout_ms", SILENT_SECONDS * 1000),
    # Each channel has a connection of its own, so that a new one does not get the connection of the old one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

REGISTRY = "a model registry"
DIRECTORY = "a Directory"

_UNREACHABLE = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")
"""The beginnings of the details of calls that gRPC never sent; gRPC gives no other sign of that."""

_REFUSED = "Connection refused"
_UNKNOWN_NAME = "Domain name not found"
_OUT_OF_TIME = "Deadline Exceeded"
"""How gRPC itself says it, and no server of ours."""

_HTTP_STATUS = re.compile(r"Received http2 header with status: (\d+)")
"""How gRPC reports the answer of a web server or a proxy that knows no gRPC."""

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client begins to speak HTTP/2: with this line, and a frame of settings, here an empty one (RFC 9113, 3.4)."""

_SETTINGS = b"\x04"
"""The type of that frame, its fourth byte; a server begins with such a frame too."""

_ANSWER_BYTES = len("HTTP/1.1 503")

_AWAY = re.compile(rb"HTTP/1.[01] 50[234]")
"""What a proxy answers while the server behind it is away, as gRPC sees it too."""

_STRANGERS = ((b"HTTP/", "an HTTP/1 server"), (b"SSH-", "an SSH server"))

_TLS_ALERT = b"\x15\x03"
"""How many servers that require TLS answer to anything else; those of gRPC close the connection."""


def was_sent(error: BaseException | None) -> bool:
    """Return whether a call that failed was sent, as far as gRPC says."""
    return not (isinstance(error, grpc.RpcError) and str(error.details()).startswith(_UNREACHABLE))


def described(error: grpc.RpcError, where: str, kind: str, advice: str = "") -> tuple[type[ModelRegistryError], str]:
    """Return the class of error that a failed call means, and its message.

    Args:
        error: What gRPC raised.
        where: Whom the call was for.
        kind: What should be there: `REGISTRY` or `DIRECTORY`.
        advice: What to do if nothing is there.
    """
    status = error.code()
    details = str(error.details() or status.name)
    if not was_sent(error):
        # The rest is the list of addresses that were tried, with the reason of the last one at its end.
        if failure := tls.explained(details, where.rpartition("://")[2]):
            return error_type_of(status), f"cannot connect to {where}: {failure}"
        reason = details.rsplit(": ", 1)[-1].rstrip("]")
        if reason == _REFUSED:
            reason += f"; {advice or f'check that {kind} runs there, on this port'}"
        elif reason == _UNKNOWN_NAME:
            reason += "; check the host"
        return error_type_of(status), f"cannot connect to {where}: {reason}"
    http = _HTTP_STATUS.match(details)
    is_http = http is not None or (status is grpc.StatusCode.UNKNOWN and details == "No status received")
    # HTTP statuses that mean "later" are UNAVAILABLE: they come from a proxy whose server is away.
    if status is grpc.StatusCode.UNIMPLEMENTED or (is_http and status is not grpc.StatusCode.UNAVAILABLE):
        answer = f"answers with HTTP status {http[1]}" if http else "answers without a status of gRPC"
        answer = answer if is_http else f"does not know the call ({details})"
        return WrongServerError, _not(kind, where, f"the server there {answer}")
    error_type = error_type_of(status)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and _OUT_OF_TIME in details:
        return error_type, "it took longer than its timeout"
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_seconds(error) is not None:
        return LimitedError, details
    return error_type, f"{details} ({status.name})" if error_type is ModelRegistryError else details


def check_tls(error: BaseException | None, address: str, where: str, files: tls.TlsFiles) -> None:
    """Raise an error that says why a server refuses TLS, if gRPC has not said why; block until that is known.

    Args:
        error: What gRPC raised.
        address: Host and port, where it could not connect.
        where: The address, for the message.
        files: What it trusts and shows.

    Raises:
        UnavailableError: The reason is known now.
    """
    details = str(error.details()) if isinstance(error, grpc.RpcError) else ""
    if _REFUSED in details or tls.is_certain(details):
        return
    with suppress(CertificateError):
        if failure := tls.handshake_failure(address, files):
            raise UnavailableError(f"cannot connect to {where}: {failure}") from error


def is_about_tls(error: BaseException | None) -> bool:
    """Return whether a call failed since the two sides could not agree on TLS, as far as gRPC says."""
    return isinstance(error, grpc.RpcError) and not was_sent(error) and tls.is_certain(str(error.details()))


def _not(kind: str, where: str, reason: str) -> str:
    return f"{where} is not {kind}: {reason}; check the host and the port"


def check_stranger(address: str, where: str, kind: str, seconds: float = 1.0) -> None:
    """Raise an error if a server at an address does not speak HTTP/2 without TLS; block until that is known.

    Of a name with several addresses gRPC reports the last one only, and so "Connection refused" where a web server
    answers at the first.

    Args:
        address: Host and port, where gRPC could not connect.
        where: The address, for the message.
        kind: What should be there: `REGISTRY` or `DIRECTORY`.
        seconds: How long to look at most.

    Raises:
        WrongServerError: It is another server.
        UnavailableError: It requires TLS, and may be the right server.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # a name without an address, or not a name
    addresses = [(str(place[0]), int(place[1])) for *_, place in places]
    answers = [_answer(place, deadline) for place in addresses]
    if any(each[3:4] == _SETTINGS or _AWAY.match(each) for each in answers):
        return
    is_encrypted = any(each.startswith(_TLS_ALERT) for each in answers)
    if is_encrypted or (not any(answers) and any(_speaks_tls(place, deadline) for place in addresses)):
        raise UnavailableError(
            f"cannot connect to {where}: it requires TLS; use grpcs:// in place of grpc://, and name the file of the "
            "authority of its certificate with tls_ca, unless that is a public one"
        )
    for answer in filter(None, answers):
        stranger = next((text for start, text in _STRANGERS if answer.startswith(start)), "something else")
        raise WrongServerError(_not(kind, where, f"{stranger} answers there"))


def _answer(place: tuple[str, int], deadline: float) -> bytes:
    """Return the first bytes that are answered to the greeting of HTTP/2; none if nothing is."""
    return _answer_to(_GREETING, _ANSWER_BYTES, place, deadline)


def _speaks_tls(place: tuple[str, int], deadline: float) -> bool:
    """Return whether a server begins to answer a handshake."""
    return _answer_to(tls.client_hello(), 1, place, deadline) in tls.TLS_RECORDS


def _answer_to(greeting: bytes, size_bytes: int, place: tuple[str, int], deadline: float) -> bytes:
    answer = b""
    with suppress(OSError), socket.create_connection(place, max(deadline - time.monotonic(), 0.001)) as connection:
        connection.sendall(greeting)
        while len(answer) < size_bytes:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            if not (part := connection.recv(size_bytes - len(answer))):
                break
            answer += part
    return answer
