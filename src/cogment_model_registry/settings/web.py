"""What the server hands to the process that serves HTTP: a line of JSON, on its standard input."""

import json
from dataclasses import asdict, dataclass

RENEW = "renew"
"""The line that lets the process read the files of its certificate again. The end of its input ends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """What the process that serves HTTP needs to know.

    Attributes:
        socket_path: The UNIX socket at which the registry takes its calls.
        descriptors: The sockets that it accepts connections from, which listen already.
        grpc_port: The TCP port of gRPC, for the endpoint that pages name.
        hosts: The names by which it is reached; see the setting `http_hosts`.
        trusted_proxies: The networks of the proxies whose headers count; see the setting `http_trusted_proxies`.
        access_log: Whether to log each request.
        tls_certificate: The file of its certificate; empty for no encryption.
        tls_key: The file of the key.
        tls_client_ca: The file of the authorities of clients' certificates, which they must then show; empty for none.
        idle_seconds: How long a client may take no bytes of a download, or send none of an upload.
    """

    socket_path: str
    descriptors: tuple[int, ...]
    grpc_port: int
    hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    access_log: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    idle_seconds: float = 60.0

    def encoded(self) -> str:
        """Return the line that says so."""
        return json.dumps(asdict(self))

    @classmethod
    def decoded(cls, line: str) -> "WebOptions":
        """Return what a line says."""
        fields = json.loads(line)
        lists = {name: tuple(fields[name]) for name in ("descriptors", "hosts", "trusted_proxies")}
        return cls(**{**fields, **lists})
