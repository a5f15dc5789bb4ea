"""Ask the server in this container whether it serves, over HTTP or HTTPS; the exit code is 0 if it does.

It asks the port of metrics, which answers without a certificate of the client, whatever the other port requires. It
does not check the certificate of the server, which is for other names than that of this host.
"""

import http.client
import os
import ssl
import sys

SECONDS = 2


def is_ready(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server answers on a connection that it serves."""
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> bool:
    """Return whether the server serves. A flag may have given it a certificate, so both ways are tried."""
    host = os.environ.get("COGMENT_MODEL_REGISTRY_HOST", "")
    # What Kubernetes and Docker set for a service of this name is no host.
    host = "127.0.0.1" if host in ("", "*", "0.0.0.0", "::") or "://" in host else host  # noqa: S104
    port = os.environ.get("COGMENT_MODEL_REGISTRY_METRICS_PORT", "")
    number = int(port) if port.isdecimal() else 9003
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    plain = http.client.HTTPConnection(host, number, timeout=SECONDS)
    encrypted = http.client.HTTPSConnection(host, number, timeout=SECONDS, context=unchecked)
    # In this order: a server with TLS refuses plain text at once, and one without may wait for the end of a line.
    return is_ready(plain) or is_ready(encrypted)


if __name__ == "__main__":
    sys.exit(not main())
