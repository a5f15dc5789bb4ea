"""Authorities and certificates of tests, made with the program `openssl`, and a client that uses them."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.client import Client
from tests.waiting import PATIENCE_SECONDS

LOCAL = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")
"""The names of a server on this machine."""

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*words: str | Path) -> None:
    """Run `openssl`; skip the test where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on PATH")
    command = ["openssl", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert result.returncode == 0, result.stderr


@dataclass(frozen=True)
class Issued:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @property
    def flags(self) -> list[str]:
        """The flags of a server, or of a command, that shows it."""
        return [f"--tls_certificate={self.certificate}", f"--tls_key={self.key}"]

    @property
    def options(self) -> dict[str, str]:
        """The arguments of settings, or of a client, that shows it."""
        return {"tls_certificate": str(self.certificate), "tls_key": str(self.key)}

    def replace_by(self, other: "Issued") -> None:
        """Put other files in the place of these, each whole, one after the other."""
        for old, new in ((self.certificate, other.certificate), (self.key, other.key)):
            copy = old.with_suffix(".new")
            shutil.copy(new, copy)
            copy.replace(old)


class Authority:
    """An authority with a certificate of its own.

    Attributes:
        certificate: The file of its certificate.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        subject = ("-subj", f"/CN={name}", "-days", "30")
        openssl("req", "-x509", *_NEW_KEY, *subject, "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str = "server", names: tuple[str, ...] = LOCAL, days: int = 30, usage: str = "") -> Issued:
        """Return a certificate with names, for some days from now, or since some days ago."""
        files = [self._directory / f"{self._name}-{name}.{kind}" for kind in ("pem", "key", "request", "extensions")]
        certificate, key, request, extensions = files
        extensions.write_text(f"subjectAltName={','.join(names)}\n" + (f"extendedKeyUsage={usage}\n" if usage else ""))
        openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        signed_by = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        made = ("-days", str(days), "-extfile", extensions, "-out", certificate)
        openssl("x509", "-req", "-in", request, *signed_by, *made)
        return Issued(certificate, key)


@asynccontextmanager
async def connected_over_tls(port: int, authority: Authority, client: Issued | None = None) -> AsyncIterator[Client]:
    """Return a context manager with a client over TLS."""
    credentials = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(),
        client.key.read_bytes() if client else None,
        client.certificate.read_bytes() if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield Client(channel, port=port)
